"""Compare the Flax twins of timm's backbones with the originals, for the lists in docs/jax.md."""

import importlib.metadata
import re
import warnings
from collections.abc import Mapping, Sequence
from itertools import groupby
from operator import itemgetter
from pathlib import Path
from typing import Any

import timm
import torch
from omegaconf import DictConfig
from tqdm import tqdm

from ..engine.drawing.tables import Table, read_records
from ..models.backbone import TimmBackbone
from .failures import require_none, tolerated

# Largest differences that are accepted, relative to the largest value of a feature map.
LIMIT, FLOAT64_LIMIT = 1e-4, 1e-9
_REFUSED = re.compile(r"(?:\w+\.)*(\w+) has no JAX counterpart: (?:JAX does not support its (\w+)=(\w+))?")


def compare_backbones(config: DictConfig, device: torch.device) -> str:
    """Compare all backbones that timm can dilate to output stride 8; return the lists for docs/jax.md in Markdown.

    Weights and statistics are random. Both networks run on the CPU in float32 and, if the difference exceeds the limit,
    in float64. One row per backbone is appended to ``<output>_jax_backbones.csv``; backbones that it already contains
    are not compared again.

    Raises:
        ValueError: a twin differs from timm's backbone, or a backbone could not be compared.
    """
    options = config.backbones
    path = Path(f"{config.output}_jax_backbones.csv")
    done = {row["backbone"] for row in read_records(path)}
    if unknown := [name for name in options.names or () if not timm.is_model(name)]:
        raise ValueError(f"backbones.names contains {', '.join(map(str, unknown))}: timm has no such model")
    failures: list[str] = []
    sizes = _parameters([name for name in options.names or timm.list_models() if name not in done])
    for name in tqdm(sorted(sizes, key=sizes.__getitem__), desc="backbones", disable=None):
        row = None
        with tolerated(name, failures):
            too_large = sizes[name] > 1e6 * options.max_parameters_m
            row = {
                "backbone": name,
                "family": timm.models.model_entrypoint(name).__module__.rpartition(".")[2],
                "parameters_m": round(sizes[name] / 1e6, 1),
                **(_row("too large") if too_large else _compared(name, tuple(options.size))),
                "timm": timm.__version__,
                "torch": torch.__version__,
                "jax": importlib.metadata.version("jax"),
            }
        if row is not None:
            Table.of_records([row]).append_csv(path)
    rows = read_records(path)
    failures += [f"{row['backbone']} differs by {row['float32']}" for row in rows if row["outcome"] == "differs"]
    require_none(failures, markdown(rows))
    return markdown(rows)


def markdown(rows: Sequence[Mapping[str, str]]) -> str:
    """Return the rows of ``<output>_jax_backbones.csv`` as the lists in docs/jax.md: supported, refused, too large."""
    by_outcome = _grouped(rows, "outcome")
    supported = [
        [family, _names(group), str(len(group)), max(group, key=lambda row: float(row["float32"]))["float32"]]
        for family, group in _grouped(by_outcome.get("agrees", []), "family").items()
    ]
    refused = [
        [reason, _names(group), str(len(group))]
        for reason, group in _grouped(by_outcome.get("refused", []), "reason").items()
    ]
    parts = [
        Table(("timm module", "backbones", "number", "largest difference"), supported).markdown(),
        Table(("refused because of", "backbones", "number"), refused).markdown(),
    ]
    if "too large" in by_outcome:
        parts.append(f"Too large to compare: {_names(by_outcome['too large'])}.")
    return "\n\n".join(parts)


def _parameters(names: Sequence[str]) -> dict[str, int]:
    """Return the number of parameters of each backbone that timm can dilate to output stride 8."""
    counts: dict[str, int] = {}
    for name in names:
        try:
            with torch.device("meta"), warnings.catch_warnings(action="ignore"):
                counts[name] = sum(parameter.numel() for parameter in TimmBackbone(name).parameters())
        except ValueError:  # timm cannot dilate it
            continue
    return counts


def _compared(name: str, size: tuple[int, int]) -> dict[str, str]:
    """Return the outcome of the comparison, with the differences or the reason why the backbone is refused."""
    from ..models.nnx import backbone_difference

    backbone = TimmBackbone(name)
    try:
        difference = backbone_difference(backbone, size)
    except ValueError as error:
        refused = _REFUSED.match(str(error))
        if refused is None:
            raise
        module, setting, value = refused.groups()
        return _row("refused", reason=f"`{module}`" if setting is None else f"`{setting}={value}` of `{module}`")
    if difference < LIMIT:
        return _row("agrees", f"{difference:.1e}")
    exact = backbone_difference(backbone, size, torch.float64)
    return _row("agrees" if exact < FLOAT64_LIMIT else "differs", f"{difference:.1e}", f"{exact:.1e}")


def _row(outcome: str, float32: str = "", float64: str = "", reason: str = "") -> dict[str, str]:
    return {"outcome": outcome, "float32": float32, "float64": float64, "reason": reason}


def _grouped(rows: Sequence[Mapping[str, str]], column: str) -> dict[str, list[Mapping[str, str]]]:
    """Return the rows by their value in a column; the values, and the backbones in a group, are sorted."""
    ordered = sorted(rows, key=itemgetter(column, "backbone"))
    return {value: list(group) for value, group in groupby(ordered, key=itemgetter(column))}


def _names(rows: Sequence[Mapping[str, Any]]) -> str:
    return ", ".join(row["backbone"] for row in rows)
