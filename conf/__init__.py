"""The Hydra configuration of every entry point, and where it is installed."""

from pathlib import Path

CONF = Path(__file__).resolve().parent
