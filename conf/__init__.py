"""Hydra's configuration: what every entry point can be told."""

from pathlib import Path

CONF = Path(__file__).resolve().parent
