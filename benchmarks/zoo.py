"""Measure the cost and speed of every network in the zoo for one input."""

import statistics
import time
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig
from tqdm import tqdm

from ..engine.drawing.tables import Table
from ..engine.evaluation.cost import Cost, network_cost
from ..engine.runtime.provenance import provenance
from ..models import create_model, list_models
from ..models.heads.context import ContextHead
from .failures import require_none, tolerated
from .timing import measure_launched

# Network settings with separate rows in the paper.
VARIANTS: dict[str, list[dict[str, Any]]] = {
    "ccnet": [{"head__recurrence": recurrence} for recurrence in (1, 2, 3)],
    "nonlocal": [{"head__recurrence": recurrence} for recurrence in (1, 2)],
}
LEFT_OUT = ("mask_rcnn",)  # its cost depends on the objects in an image
BASELINE = "fcn"  # the network without a context module, which the columns "added" refer to


def measure_zoo(config: DictConfig, device: torch.device) -> str:
    """Measure the networks; return the table in Markdown; append each row to ``<output>_zoo.csv`` immediately.

    Raises:
        ValueError: some networks were not measured; the table of the others is printed first.
    """
    options = config.zoo
    names = options.models or [name for name in list_models() if name not in LEFT_OUT]
    entries = [(name, settings) for name in names for settings in VARIANTS.get(name, [{}])]
    about = {"backbone": options.backbone, "size": "x".join(map(str, options.size))}
    about |= {"timed_size": "x".join(map(str, options.timed_size)), "dtype": "float32"} | provenance(device)
    rows: list[dict[str, Any]] = []
    failures: list[str] = []
    baseline = None
    if BASELINE not in names:
        with tolerated(f"{BASELINE}, the baseline", failures):
            baseline = _measured(BASELINE, config)[1]
    for name, settings in tqdm(sorted(entries, key=lambda entry: entry[0] != BASELINE), desc="zoo", disable=None):
        recurrence = settings.get("head__recurrence")
        network = f"{name}, R = {recurrence}" if recurrence else name
        row = None
        with tolerated(network, failures):
            model, cost = _measured(name, config, **settings)
            if name == BASELINE:
                baseline = cost
            # Networks with other heads differ from the baseline in more than their context module.
            base = baseline if isinstance(model.head, ContextHead) else None
            speed = _images_per_s(model, tuple(options.timed_size), device, options.repeats)
            row = {"network": network, **_columns(cost, base), "images_per_s": round(speed, 2)}
        if row is not None:
            Table.of_records([row | about]).append_csv(Path(f"{config.output}_zoo.csv"))
            rows.append(row)
    require_none(failures, markdown(rows))
    return markdown(rows)


def _measured(name: str, config: DictConfig, **settings: Any) -> tuple[torch.nn.Module, Cost]:
    """Return a network with random weights, and its cost."""
    torch.manual_seed(config.seed)
    options = config.zoo
    model = create_model(name, num_classes=options.num_classes, backbone=options.backbone, **settings)
    return model, network_cost(model, (3, *options.size))


def _columns(cost: Cost, base: Cost | None) -> dict[str, Any]:
    """Return a network's costs, and what it adds to those of the baseline, if it can be compared with it."""
    return {
        "parameters_m": round(cost.parameters, 1),
        "gflops": round(cost.gflops, 1),
        "added_gflops": "" if base is None else round(cost.gflops - base.gflops, 1),
        "saved_mb": round(cost.saved_mb),
        "added_mb": "" if base is None else round(cost.saved_mb - base.saved_mb, 1),
    }


def markdown(rows: list[dict[str, Any]]) -> str:
    """Return the rows of ``<output>_zoo.csv`` as the Markdown table in the README."""
    header = ("network", "parameters (M)", "GFLOPs", "added", "saved for backward (MB)", "added", "images/s")
    fields = ("network", "parameters_m", "gflops", "added_gflops", "saved_mb", "added_mb", "images_per_s")
    return Table(header, [[str(row[field]) for field in fields] for row in rows]).markdown()


@torch.inference_mode()
def _images_per_s(model: torch.nn.Module, size: tuple[int, int], device: torch.device, repeats: int) -> float:
    """Return images per second; on a CPU, per core by process time, which other processes barely affect."""
    model = model.eval().to(device=device).to(memory_format=torch.channels_last)  # pyrefly: ignore[no-matching-overload], in torch 2.11
    image = torch.rand(1, 3, *size, device=device).to(memory_format=torch.channels_last)
    if device.type == "cuda":
        return 1e6 / measure_launched(lambda _: model(image), repeats).median_us
    spans = []
    for _ in range(1 + repeats):
        start = time.process_time()
        model(image)
        spans.append(time.process_time() - start)
    return 1 / statistics.median(spans[1:])
