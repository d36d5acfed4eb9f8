"""Time the input pipeline with the paper's Cityscapes recipe, next to a plain pipeline of torchvision transforms.

Both read a 2048x1024 PNG and its label PNG, scale by U(0.75, 2), crop to 769x769, flip, and return float32 in [0, 1]
and int64. The plain pipeline decodes, resizes and flips full images, as torchvision's own training recipes do.
"""

import os
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
import torchvision
from omegaconf import DictConfig
from PIL import Image
from torch import Tensor
from torch.nn.functional import interpolate
from torchvision import tv_tensors
from torchvision.transforms import v2

from ..data import IGNORE_INDEX
from ..data.image_pairs import ImagePairs
from ..data.reading import fast_decoders
from ..data.sets.cityscapes import Cityscapes
from ..data.transforms import MEAN_COLOUR, train_transform
from ..engine.drawing.tables import Table
from .timing import provenance

SIZE, CROP, SCALE = (1024, 2048), (769, 769), (0.75, 2.0)

Loader = Callable[[Path, Path], tuple[Tensor, Tensor]]


def made_pair(folder: Path) -> tuple[Path, Path]:
    """Write a synthetic image and its labels with the file sizes of Cityscapes (2.3 MB, 20 kB); return their paths."""
    generator = torch.Generator().manual_seed(0)

    def field(channels: int, cells: int) -> Tensor:
        coarse = torch.rand(1, channels, cells, 2 * cells, generator=generator)
        return interpolate(coarse, SIZE, mode="bicubic")[0]

    pixels = 60 * field(3, 8) + 80 * field(3, 64) + torch.randn(3, *SIZE, generator=generator)
    image, label = folder / "made_leftImg8bit.png", folder / "made_gtFine_labelTrainIds.png"
    Image.fromarray(pixels.clamp(0, 255).to(torch.uint8).permute(1, 2, 0).numpy()).save(image)
    Image.fromarray(field(19, 12).argmax(dim=0).to(torch.uint8).numpy()).save(label)
    return image, label


def plain_loader(decode: Callable[[Path], Tensor]) -> Loader:
    """Return a loader that transforms full images with torchvision; `decode` returns uint8 (C, H, W)."""
    fill = {tv_tensors.Image: list(MEAN_COLOUR), tv_tensors.Mask: IGNORE_INDEX}
    dtype = {tv_tensors.Image: torch.float32, tv_tensors.Mask: torch.int64, "others": None}
    chain = v2.Compose(
        [
            # Scales by U(0.75, 2); the sides are swapped because torchvision compares the first one with the width.
            v2.ScaleJitter((SIZE[1], SIZE[0]), SCALE, antialias=True),
            v2.RandomHorizontalFlip(),
            v2.RandomCrop(CROP, pad_if_needed=True, fill=fill),
            v2.ToDtype(dtype, scale=True),
            v2.ToPureTensor(),
        ]
    )
    return lambda image, label: chain(tv_tensors.Image(decode(image)), tv_tensors.Mask(decode(label)[0]))


def pillow(path: Path) -> Tensor:
    """Return a uint8 image (C, H, W) decoded by Pillow."""
    return v2.functional.pil_to_tensor(Image.open(path))


def torchvision_io(path: Path) -> Tensor:
    """Return a uint8 image (C, H, W) decoded by torchvision."""
    return torchvision.io.decode_image(str(path), mode=torchvision.io.ImageReadMode.UNCHANGED)


def crop_first(pairs: list[tuple[Path, Path]]) -> Loader:
    """Return a loader that processes samples as ``train.py dataset=cityscapes`` does."""
    transform = train_transform(crop_size=CROP, scale=SCALE)
    dataset = ImagePairs(pairs, classes=[str(index) for index in range(19)], palette=[], transform=transform)
    return lambda *pair: dataset[pairs.index(pair)]


def _cpu_seconds(loaders: dict[str, Loader], pairs: list[tuple[Path, Path]], repeats: int) -> dict[str, list[float]]:
    """Return the single-threaded CPU seconds of each loader, per sample; the loaders take turns."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    seconds = {name: [] for name in loaders}
    try:
        for number in range(repeats + 1):
            for name, load in loaders.items():
                torch.manual_seed(number)
                start = time.process_time()
                load(*pairs[number % len(pairs)])
                if number:  # the first round is a warm-up
                    seconds[name].append(time.process_time() - start)
    finally:
        torch.set_num_threads(threads)
    return seconds


def time_input(config: DictConfig, device: torch.device) -> str:
    """Time all loaders on the CPU; append the rows to ``<output>.csv`` and return the table."""
    with tempfile.TemporaryDirectory() as folder:
        if config.input.root:
            transform = train_transform(crop_size=CROP, scale=SCALE)
            cityscapes = Cityscapes(config.input.root, split="train", transform=transform, labels="labelTrainIds")
            pairs = [(image, label) for image, label in cityscapes.pairs if label is not None]
        else:
            pairs = [made_pair(Path(folder))]
        size = statistics.mean(os.path.getsize(image) for image, _ in pairs[:100]) / 1e6
        loaders = {
            "plain chain, Pillow": plain_loader(pillow),
            "plain chain, torchvision.io": plain_loader(torchvision_io),
            f"crop first, {fast_decoders.names()}": crop_first(pairs),
        }
        seconds = _cpu_seconds(loaders, pairs, config.repeats)
    about = provenance(torch.device("cpu"))
    about.pop("triton")
    first = statistics.median(seconds["plain chain, Pillow"])
    rows = [
        {
            "loader": name,
            "images_per_s_per_core": round(1 / statistics.median(times), 2),
            "median_ms": round(1e3 * statistics.median(times), 1),
            "p20_ms": round(1e3 * float(np.quantile(times, 0.2)), 1),
            "p80_ms": round(1e3 * float(np.quantile(times, 0.8)), 1),
            "speedup": round(first / statistics.median(times), 2),
            "recipe": f"{SIZE[1]}x{SIZE[0]} png of {size:.1f} MB, scale U{SCALE}, crop {CROP[0]}, flip",
            "samples": len(times),
        }
        | about
        | {"torchvision": torchvision.__version__, "pillow": Image.__version__}
        for name, times in seconds.items()
    ]
    path = Path(f"{config.output}.csv")
    Table.of_records(rows).append_csv(path)
    shown = ("loader", "images_per_s_per_core", "median_ms", "p20_ms", "p80_ms", "speedup")
    return f"{Table.of_records([{key: row[key] for key in shown} for row in rows]).text()}\n\n{path}"
