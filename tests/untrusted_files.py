"""Malicious files, and a small network to read them with."""

import struct
import zlib

import torch

from ccnet.engine import checkpoints
from ccnet.engine.checkpoints import Checkpoint

HUGE = 100_000  # pixels per side: 10^10 in total, 30 GB as RGB


def bomb(path, *, colour=2):
    """Write a PNG of a few bytes whose header claims 100000 x 100000 pixels; return its path."""

    def chunk(kind, content):
        body = kind + content
        return struct.pack(">I", len(content)) + body + struct.pack(">I", zlib.crc32(body))

    header = struct.pack(">IIBBBBB", HUGE, HUGE, 8, colour, 0, 0, 0)
    data = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(bytes(1000))) + chunk(b"IEND", b"")
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + data)
    return path


def stranger(path, config, **parts):
    """Write a checkpoint with this configuration and meaningless weights; return its path."""
    checkpoints.save(Checkpoint({"w": torch.ones(2)}, config, ["a"], [[0, 0, 0]], 1, {}, **parts), path)
    return path


NAMED = {"_target_": "logging.FileHandler", "filename": "ran"}  # creates a file when called


def small_config(**head):
    """Return the configuration of a small network with the given settings of its head."""
    return {
        "model": {
            "_target_": "ccnet.models.segmentor.Segmentor",
            "backbone": {"_target_": "ccnet.models.backbone.TimmBackbone", "name": "resnet10t"},
            "head": {
                "_target_": "ccnet.models.heads.context.ContextHead", "_partial_": True, "context": None,
                "recurrence": 0,
                "channels": 64, "num_classes": 4,
            } | head,
        }
    }  # fmt: skip
