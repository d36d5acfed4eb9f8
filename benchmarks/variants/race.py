"""Race the kernels on trial against those in use, on a Hopper GPU."""

import copy
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from omegaconf import DictConfig

from ...engine.drawing.tables import Table
from ...engine.runtime.provenance import machine_of, provenance
from ...kernels.launches.tiles import Problem
from ..comparison.rows import check_error
from ..failures import require_none, tolerated
from ..timing import Stream, input_sets, measure_in_turns
from ..tuning.warm_cache import SHAPES


class Variant(NamedTuple):
    """A variant of the forward or backward passes of a call.

    Attributes:
        kernel: "forward" or "backward".
        function: the name of a function in ``passes.py``.
        options: its arguments besides those of the passes in use.
        shapes: the shapes (N, H, W) to race at.
    """

    kernel: str
    function: str
    options: dict[str, Any]
    shapes: list[tuple[int, int, int]]


_LONG = [(8, 128, 256)]
VARIANTS = {
    "persistent-backward": Variant("backward", "persistent_backward", {}, SHAPES),
    **{
        f"long-backward-{'-'.join(map(str, buffers))}": Variant(
            "backward", "persistent_backward", {"long": buffers}, _LONG
        )
        for buffers in ((32, 3, 5), (32, 4, 2), (64, 2, 1))
    },
}


def race_variants(config: DictConfig, device: torch.device) -> str:
    """Time the variants in turns with the kernels in use, and return a table; ``<output>_variants.csv`` has the rows.

    A variant with a wrong result is not timed.

    Raises:
        ValueError: the device is not a Hopper GPU, a variant does not exist, or one failed; the others are measured.
    """
    names = list(config.race.variants or VARIANTS)
    if unknown := [name for name in names if name not in VARIANTS]:
        raise ValueError(f"race.variants names {', '.join(unknown)}: choose from {', '.join(VARIANTS)}")
    if device.type != "cuda" or torch.cuda.get_device_capability(device)[0] != 9:
        raise ValueError(f"mode=race needs a Hopper GPU (H100, H200), but the device is {machine_of(device)}")
    torch.manual_seed(config.seed)
    path = Path(f"{config.output}_variants.csv")
    failures: list[str] = []
    rows: list[dict[str, Any]] = []
    for name in names:
        for shape in VARIANTS[name].shapes:
            with tolerated(f"{name} {_text(shape)}", failures):
                row = race(name, shape, config, device) | provenance(device)
                Table.of_records([row]).append_csv(path)
                rows.append(row)
    text = f"{Table.of_records(rows).text()}\n\n{path}" if rows else ""
    require_none(failures, text)
    return text


def race(name: str, shape: tuple[int, int, int], config: DictConfig, device: torch.device) -> dict[str, Any]:
    """Verify a variant and time it at one shape; return a row of the table.

    Raises:
        ValueError: the result is wrong.
    """
    from ..tuning.trial import Trial  # imports Triton
    from . import passes  # imports Gluon

    batch, *spatial = shape
    problem = Problem(
        batch, tuple(spatial), (0, 1), config.query_channels, config.value_channels, "bfloat16", aligned=True
    )
    kernel, function, options, _ = VARIANTS[name]
    ours = Trial(kernel, problem, device, input_sets(problem, config.cache_mib), config.repeats)
    variant = copy.copy(ours)
    setattr(variant, kernel, partial(getattr(passes, function), **options))
    check_error(variant.error(), problem.dtype)
    pairs = zip(variant.run(0), ours.run(0), strict=True)
    difference = max(((theirs - own).abs().max() / own.abs().max()).item() for theirs, own in pairs)
    for i in range(3):
        variant.run(i)
        ours.run(i)
    taken, shipped = measure_in_turns([variant.run, ours.run], config.repeats, Stream())
    return {
        "call": f"{kernel} with {'residual' if kernel == 'forward' else 'gamma'}",
        "shape": _text(shape),
        "variant": name,
        "median_us": round(taken.median_us, 2),
        "shipped_us": round(shipped.median_us, 2),
        "ratio": round(taken.median_us / shipped.median_us, 4),
        "p20_us": round(taken.p20_us, 2),
        "p80_us": round(taken.p80_us, 2),
        "runs": config.repeats,
        "difference": f"{difference:.1e}",
        "dtype": problem.dtype,
    }


def _text(shape: tuple[int, int, int]) -> str:
    return "x".join(map(str, shape))
