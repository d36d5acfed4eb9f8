"""Checksums of weight files, which need neither torch nor JAX."""

import zlib
from collections.abc import Mapping
from typing import Any

HEADER, CHECKSUM = "ccnet", "crc32"  # keys in the metadata of a run's .safetensors file


def checksum(header: str, content: Mapping[str, Any]) -> str:
    """Return the CRC-32 of a run's configuration header and the bytes of its tensors, sorted by name.

    Args:
        header: the header; "" for a file without one.
        content: a contiguous buffer with the bytes of each tensor, by name.
    """
    total = zlib.crc32(header.encode())
    for key in sorted(content):
        total = zlib.crc32(key.encode(), total)
        total = zlib.crc32(content[key], total)
    return f"{total:08x}"
