"""Time this project's and other projects' input pipelines with the paper's recipes for Cityscapes and ADE20K.

Cityscapes: a 2048x1024 PNG and its label PNG, scaled by U(0.75, 2), cropped to 769x769. ADE20K: a 683x512 JPEG and its
label PNG, resized to a short side of 300 to 600, cropped to 512x512 and padded. Both are flipped at random. The time
covers the work of a loader process, up to the uint8 image that is sent to the device.
"""

import os
import statistics
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
import torchvision
from omegaconf import DictConfig
from PIL import Image
from torch import Tensor
from torch.nn.functional import interpolate

from ..data.image_pairs import ImagePairs
from ..data.reading import fast_decoders
from ..data.sets.cityscapes import Cityscapes
from ..data.transforms import train_transform
from ..engine.drawing.tables import Table
from ..engine.runtime.provenance import provenance
from .input_peers import Loader, Recipe, albumentations, mmsegmentation, pillow, torchvision_io, torchvision_loader

CITYSCAPES = Recipe("cityscapes", size=(1024, 2048), crop=(769, 769), scale=(0.75, 2.0))
ADE20K = Recipe("ade20k", size=(512, 683), crop=(512, 512), short_sides=(300, 375, 450, 525, 600))
_CLASSES = 150
_IN_A_ROW = 8  # samples per turn of a loader, so that caches are warm as in a worker process

Pairs = Sequence[tuple[Path, Path]]


def made_pair(folder: Path, recipe: Recipe = CITYSCAPES) -> tuple[Path, Path]:
    """Write a synthetic image and its labels, with file sizes typical of the data set; return their paths."""
    generator = torch.Generator().manual_seed(0)
    height, width = recipe.size

    def field(channels: int, cells: int) -> Tensor:
        coarse = torch.rand(1, channels, cells, cells * width // height, generator=generator)
        return interpolate(coarse, recipe.size, mode="bicubic")[0]

    suffix, noise, regions = ("png", 1, 12) if recipe.name == CITYSCAPES.name else ("jpg", 10, 4)
    pixels = 60 * field(3, 8) + 80 * field(3, 64) + noise * torch.randn(3, *recipe.size, generator=generator)
    image, label = folder / f"{recipe.name}_leftImg8bit.{suffix}", folder / f"{recipe.name}_gtFine_labelTrainIds.png"
    Image.fromarray(pixels.clamp(0, 255).to(torch.uint8).permute(1, 2, 0).numpy()).save(image)
    Image.fromarray(field(19, regions).argmax(dim=0).to(torch.uint8).numpy()).save(label)
    return image, label


def crop_first(recipe: Recipe, pairs: Pairs) -> Loader:
    """Return a loader that processes samples as ``train.py`` does."""
    transform = train_transform(crop_size=recipe.crop, scale=recipe.scale, short_sides=recipe.short_sides)
    names = [str(index) for index in range(_CLASSES)]
    dataset = ImagePairs(pairs, classes=names, palette=[], transform=transform)
    numbers = {pair: number for number, pair in enumerate(pairs)}  # the search for a pair is not timed

    return lambda image, label: dataset[numbers[image, label]]


def _cpu_seconds(loaders: dict[str, Loader], pairs: Pairs, repeats: int) -> dict[str, list[float]]:
    """Return each loader's single-threaded CPU seconds for every timed sample; the loaders take turns."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    seconds = {name: [] for name in loaders}
    try:
        for turn in range(-(-repeats // _IN_A_ROW) + 1):
            for name, load in loaders.items():
                for number in range(turn * _IN_A_ROW, (turn + 1) * _IN_A_ROW):
                    torch.manual_seed(number)
                    np.random.seed(number)
                    start = time.process_time()
                    load(*pairs[number % len(pairs)])
                    if turn:  # the first turn is a warm-up
                        seconds[name].append(time.process_time() - start)
    finally:
        torch.set_num_threads(threads)
    return seconds


def _rows(recipe: Recipe, pairs: Pairs, repeats: int) -> list[dict]:
    """Time all loaders with a recipe; return one row per loader."""
    size = statistics.mean(os.path.getsize(image) for image, _ in pairs[:100]) / 1e6
    peers: dict[str, Loader | None] = {
        "torchvision, Pillow": torchvision_loader(recipe, pillow),
        "torchvision, torchvision.io": torchvision_io(recipe),
        "mmsegmentation": mmsegmentation(recipe),
        "albumentations": albumentations(recipe),
    }
    loaders = {name: load for name, load in peers.items() if load is not None}
    seconds = _cpu_seconds(loaders | {f"ccnet, {fast_decoders.names()}": crop_first(recipe, pairs)}, pairs, repeats)
    first = statistics.median(seconds["torchvision, Pillow"])
    scale = f"scale U{recipe.scale}" if recipe.scale else f"short side {'|'.join(map(str, recipe.short_sides or ()))}"
    return [
        {
            "recipe": recipe.name,
            "loader": name,
            "images_per_s_per_core": round(1 / statistics.median(times), 2),
            "median_ms": round(1e3 * statistics.median(times), 1),
            "p20_ms": round(1e3 * float(np.quantile(times, 0.2)), 1),
            "p80_ms": round(1e3 * float(np.quantile(times, 0.8)), 1),
            "speedup": round(first / statistics.median(times), 2),
            "about": f"{recipe.size[1]}x{recipe.size[0]}, {size:.2f} MB, {scale}, crop {recipe.crop[0]}, flip",
            "samples": len(times),
        }
        for name, times in seconds.items()
    ]


def time_input(config: DictConfig, device: torch.device) -> str:
    """Time all loaders on the CPU; append the rows to ``<output>_input.csv`` and return the table."""
    with tempfile.TemporaryDirectory() as folder:
        rows = []
        for recipe in (CITYSCAPES, ADE20K):
            pairs = [made_pair(Path(folder), recipe)]
            if config.input.root and recipe.name == CITYSCAPES.name:
                cityscapes = Cityscapes(config.input.root, split="train", transform=None, labels="labelTrainIds")
                pairs = [(image, label) for image, label in cityscapes.pairs if label is not None]
            rows += _rows(recipe, pairs, config.repeats)
    about = provenance(torch.device("cpu"))
    about.pop("triton")
    versions = {"torchvision": torchvision.__version__, "pillow": Image.__version__}
    path = Path(f"{config.output}_input.csv")
    Table.of_records([row | about | versions for row in rows]).append_csv(path)
    shown = ("recipe", "loader", "images_per_s_per_core", "median_ms", "p20_ms", "p80_ms", "speedup")
    return f"{Table.of_records([{key: row[key] for key in shown} for row in rows]).text()}\n\n{path}"
