"""The Hydra configuration files of all entry points, and their location."""

from pathlib import Path

CONF = Path(__file__).resolve().parent
