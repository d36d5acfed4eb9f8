"""Photos and masks as users have them, and the data sets that read them."""

import zlib

import numpy as np
from PIL import Image

from ccnet.data.reading.label_files import LabelReader
from ccnet.data.reading.label_values import label_values
from ccnet.data.sets.folder import Folder

_GENERATOR = np.random.default_rng(0)
DEEP = _GENERATOR.integers(0, 65536, (20, 30), dtype=np.uint16)
PHOTO = _GENERATOR.integers(0, 256, (20, 30, 3), dtype=np.uint8)
MASK = _GENERATOR.integers(0, 3, (20, 30), dtype=np.uint8)


def save(path, pixels, **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path, **options)
    return path


def write_png(path, samples, depth, palette=None):
    """Write a PNG of samples (H, W) or (H, W, 3) with a bit depth that Pillow cannot write; return its path."""
    height, width = samples.shape[:2]
    lines = samples.reshape(height, -1)
    bits = [np.unpackbits(line.astype(">u2").view(np.uint8)).reshape(-1, 16)[:, 16 - depth :] for line in lines]
    rows = b"".join(b"\0" + np.packbits(line).tobytes() for line in bits)
    colour = 3 if palette is not None else 2 if samples.ndim == 3 else 0
    chunks = [(b"IHDR", width.to_bytes(4) + height.to_bytes(4) + bytes([depth, colour, 0, 0, 0]))]
    chunks += [(b"PLTE", bytes(palette))] if palette is not None else []
    chunks += [(b"IDAT", zlib.compress(rows)), (b"IEND", b"")]
    parts = [len(data).to_bytes(4) + kind + data + zlib.crc32(kind + data).to_bytes(4) for kind, data in chunks]
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(parts))
    return path


def pictures(root, *names):
    """Write ``PHOTO`` under each name; return the folder."""
    for name in names:
        save(root / name, PHOTO)
    return root


def masks(root, *names):
    """Write ``MASK`` under each name; return the folder."""
    for name in names:
        save(root / name, MASK, format=None)
    return root


def labels(path, values=None, classes=3, ignore_label=None):
    """Read one mask as ``dataset=folder`` does."""
    return LabelReader(label_values(values, classes, ignore_label).label_ids)(path).numpy()


def folder(images, masks, split="all", **options):
    options = {"classes": 3, "val_share": 0.2} | options
    return Folder(images, masks, split=split, transform=None, **options)


def names(dataset):
    return [dataset.name(index) for index in range(len(dataset))]
