"""Race the kernels on trial against those in use, on a Hopper GPU."""

import copy
import itertools
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from omegaconf import DictConfig

from ...engine.drawing.tables import Table
from ...engine.runtime.provenance import machine_of, provenance
from ...kernels.launches.problem import Problem
from ..comparison.rows import check_error, largest_error
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
        fused: for each race, whether the call has a residual and gamma.
    """

    kernel: str
    function: str
    options: dict[str, Any]
    shapes: list[tuple[int, int, int]]
    fused: tuple[bool, ...] = (True,)


def _forward(rings: dict[tuple[int, bool], tuple[int, ...]], shape: tuple[int, int, int]) -> Variant:
    return Variant("forward", "persistent_forward", {"rings": rings}, [shape], (False,))


def _backward(long: tuple[int, int, int]) -> Variant:
    return Variant("backward", "persistent_backward", {"long": long}, [(8, 128, 256)])


VARIANTS = {
    "persistent-forward": Variant("forward", "persistent_forward", {}, SHAPES, (False, True)),
    "persistent-forward-long-2-6-2": _forward({(256, False): (2, 6, 2)}, (8, 128, 256)),
    "persistent-forward-short-6-6-2": _forward({(128, False): (6, 6, 2)}, (8, 97, 97)),
    "persistent-backward": Variant("backward", "persistent_backward", {}, SHAPES),
    "persistent-backward-long-32-3-5": _backward((32, 3, 5)),
    "persistent-backward-long-32-4-2": _backward((32, 4, 2)),
    "persistent-backward-long-64-2-1": _backward((64, 2, 1)),
}


def runs_variants(device: torch.device) -> bool:
    """Return whether the kernels on trial support a device: they are for Hopper GPUs (H100, H200)."""
    return device.type == "cuda" and torch.cuda.get_device_capability(device)[0] == 9


def race_variants(config: DictConfig, device: torch.device) -> str:
    """Time the variants and the kernels in use alternately; return a table and write it to ``<output>_variants.csv``.

    A variant with a wrong result is not timed.

    Raises:
        ValueError: the device is not a Hopper GPU, a variant does not exist, or one failed; the others are measured.
    """
    names = list(config.race.variants or VARIANTS)
    if unknown := [name for name in names if name not in VARIANTS]:
        raise ValueError(f"race.variants names {', '.join(unknown)}: choose from {', '.join(VARIANTS)}")
    if not runs_variants(device):
        raise ValueError(f"mode=race needs a Hopper GPU (H100, H200), but the device is {machine_of(device)}")
    torch.manual_seed(config.seed)
    path = Path(f"{config.output}_variants.csv")
    failures: list[str] = []
    rows: list[dict[str, Any]] = []
    for name in names:
        for shape, fused in itertools.product(VARIANTS[name].shapes, VARIANTS[name].fused):
            row = None
            with tolerated(f"{name} {_text(shape)}", failures):
                row = race(name, shape, fused, config, device) | provenance(device)
            if row is not None:
                Table.of_records([row]).append_csv(path)
                rows.append(row)
    text = f"{Table.of_records(rows).text()}\n\n{path}" if rows else ""
    require_none(failures, text)
    return text


def race(
    name: str, shape: tuple[int, int, int], fused: bool, config: DictConfig, device: torch.device
) -> dict[str, Any]:
    """Verify a variant and time it at one shape, with a residual and gamma if ``fused``; return a row of the table.

    Raises:
        ValueError: the result is wrong, or not always the same.
    """
    from ..tuning.trial import Trial  # imports Triton
    from . import passes  # imports Gluon

    batch, *spatial = shape
    problem = Problem(
        batch, tuple(spatial), (0, 1), config.query_channels, config.value_channels, "bfloat16", aligned=True
    )
    kernel, function, options, *_ = VARIANTS[name]
    copies = max(4, input_sets(problem, config.cache_mib))
    ours = Trial(kernel, problem, device, copies, config.repeats, fused)
    variant = copy.copy(ours)
    setattr(variant, kernel, partial(getattr(passes, function), **options))
    check_error(variant.error(), problem.dtype)
    results, again = variant.run(0), variant.run(0)
    if not all(map(torch.equal, results, again)):
        raise ValueError("two runs on the same inputs have different results")
    difference = largest_error(results, ours.run(0))  # of all images; the error above is of the last one
    check_error(difference, problem.dtype)
    for i in range(3):
        variant.run(i)
        ours.run(i)

    def run_variant(i: int) -> Any:
        return variant.run(i + copies // 2)  # not the inputs that the kernels in use have just read, or are about to

    taken, shipped = measure_in_turns([run_variant, ours.run], config.repeats, Stream())
    added = "" if not fused else " with residual" if kernel == "forward" else " with gamma"
    return {
        "call": kernel + added,
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
