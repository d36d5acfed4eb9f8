"""Command-line overrides, parsed by Hydra."""

from collections.abc import Sequence
from typing import Any

from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import OmegaConf


def given_overrides() -> dict[str, Any]:
    """Return this run's overrides as {option: value}; empty if the run was not started by Hydra."""
    return parse_overrides(HydraConfig.get().overrides.task) if HydraConfig.initialized() else {}


def parse_overrides(overrides: Sequence[str]) -> dict[str, Any]:
    """Parse ``["+experiment=fcn", "recipe.lr=1e-2"]`` into ``{"+experiment": "fcn", "recipe.lr": 0.01}``."""
    parsed = OverridesParser.create().parse_overrides(list(overrides))
    return {override.get_key_element(): override.value() for override in parsed}


def in_sweep() -> bool:
    """Return True if this run is part of a sweep."""
    return HydraConfig.initialized() and not OmegaConf.is_missing(HydraConfig.get().job, "num")
