"""The Hydra configuration of every entry point, and its location."""

from pathlib import Path

CONF = Path(__file__).resolve().parent
