"""Decoders for the most common image formats that are faster than Pillow and return the same pixels."""

import functools
import struct
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

_PNG, _JPEG = b"\x89PNG\r\n\x1a\n", b"\xff\xd8"
_PNG_MODES = {(8, 2): "RGB", (8, 0): "L"}  # by bit depth and colour type
_JPEG_MODES = {"YCbCr": "RGB", "RGB": "RGB"}  # by colour space
_EXIF_TEXT = b"Raw profile type exif"  # how ImageMagick stores EXIF data in a PNG
_END = b"\0\0\0\0IEND\xaeB`\x82"
_BLOCK = 65535  # bytes in a stored block
_INFLATED = 2**27  # bytes; for larger images, the copies made by `_uncompressed` would take too much memory


class Header(NamedTuple):
    """Metadata of a PNG or JPEG file.

    Attributes:
        kind: "PNG" or "JPEG".
        mode: the mode in which Pillow would decode the file, "RGB" or "L".
        height, width: size in pixels.
        may_be_turned: whether the file may contain an EXIF orientation.
    """

    kind: str
    mode: str
    height: int
    width: int
    may_be_turned: bool


def read(path: Path) -> bytes | None:
    """Return the content of a PNG or JPEG file; None for other files and for files that cannot be opened."""
    try:
        with open(path, "rb") as file:
            if not file.read(len(_PNG)).startswith((_PNG, _JPEG)):
                return None
            file.seek(0)
            return file.read()
    except OSError:
        return None


def is_png(content: bytes) -> bool:
    """Return whether a file with this content is a PNG, by its signature."""
    return content.startswith(_PNG)


def header_of(content: bytes) -> Header | None:
    """Return the header of a PNG or JPEG file if :func:`decode` may be able to decode it, else None."""
    try:
        return _png_header(content) if is_png(content) else _jpeg_header(content)
    except (ImportError, IndexError, ValueError, struct.error):
        return None


def decode(content: bytes, header: Header) -> np.ndarray | None:
    """Return the pixels as stored, uint8 (H, W, 3) or (H, W); None if Pillow has to decode them."""
    decoder = _decoders().get((header.kind, header.mode))
    if decoder is None:
        return None
    try:
        pixels = np.asarray(decoder(content))
    except Exception:  # Pillow accepts some damaged files and has better error messages for the others
        return None
    expected = (header.height, header.width, 3)[: 3 if header.mode == "RGB" else 2]
    return pixels if pixels.dtype == np.uint8 and pixels.shape == expected else None


def names() -> str:
    """Return the names of the decoders in use, such as "pyspng, isal, simplejpeg", or "Pillow"."""
    libraries = {"PNG": ["pyspng", *(["isal"] if _isal() else [])], "JPEG": ["simplejpeg"]}
    return ", ".join(dict.fromkeys(name for kind, _ in _decoders() for name in libraries[kind])) or "Pillow"


def may_be_turned(content: bytes) -> bool:
    """Return whether a PNG has chunks that may contain an orientation; Pillow decodes the whole image to find out."""
    for kind, data, _ in _chunks(content):
        if kind in (b"eXIf", b"iTXt") or (kind in (b"tEXt", b"zTXt") and bytes(data[:21]) == _EXIF_TEXT):
            return True
    return False


def wrong_checksums(content: bytes) -> list[bytes]:
    """Return the types of the complete chunks of a PNG whose checksum is wrong, up to its end.

    pyspng ignores checksums, and Pillow that of the pixels: both would return damaged pixels.
    """
    crc32, wrong = (_isal() or zlib).crc32, []
    for kind, data, checksum in _chunks(content):
        if len(checksum) == 4 and crc32(data, crc32(kind)) != int.from_bytes(checksum):
            wrong.append(kind)
        if kind == b"IEND":
            break
    return wrong


def _png_header(content: bytes) -> Header | None:
    width, height, depth, colour = struct.unpack_from(">IIBB", content, 16)
    mode = _PNG_MODES.get((depth, colour))
    return Header("PNG", mode, height, width, may_be_turned(content)) if mode else None


def _jpeg_header(content: bytes) -> Header | None:
    import simplejpeg

    height, width, colours, _ = simplejpeg.decode_jpeg_header(content)
    mode, turned = _JPEG_MODES.get(colours), b"Exif\0\0" in content or b"Orientation" in content
    return Header("JPEG", mode, int(height), int(width), turned) if mode else None


def _chunks(content: bytes) -> Iterator[tuple[bytes, memoryview, memoryview]]:
    """Yield the type, data and checksum of each chunk of a PNG, including those after the pixels."""
    view, place = memoryview(content), len(_PNG)
    while place + 8 <= len(content):
        length = int.from_bytes(view[place : place + 4])
        end = place + 8 + length
        yield content[place + 4 : place + 8], view[place + 8 : end], view[end : end + 4]
        place = end + 4


@functools.cache
def _decoders() -> dict[tuple[str, str], Callable[[bytes], Any]]:
    """Return a decoder for each (kind, mode) that an installed library decodes to the same pixels as Pillow."""
    decoders: dict[tuple[str, str], Callable[[bytes], Any]] = {}
    try:
        import pyspng

        decoders["PNG", "RGB"] = lambda content: pyspng.load(_uncompressed(content, 3) or content, format="RGB")
        decoders["PNG", "L"] = lambda content: pyspng.load(_uncompressed(content, 1) or content, format="L")
    except ImportError:
        pass
    try:
        import simplejpeg

        decoders["JPEG", "RGB"] = functools.partial(simplejpeg.decode_jpeg, colorspace="RGB")
    except ImportError:
        pass
    return decoders


def _uncompressed(content: bytes, channels: int) -> bytes | None:
    """Return an 8-bit PNG re-encoded with uncompressed pixels; None if that is not possible.

    ISA-L inflates three times as fast as the zlib in pyspng, which then only has to undo the PNG filters.
    """
    height, width, interlaced = *struct.unpack_from(">II", content, 16)[::-1], content[28]
    size = height * (1 + channels * width)
    isal = _isal()
    if isal is None or interlaced or size > _INFLATED:
        return None
    deflated = b"".join(data for kind, data, _ in _chunks(content) if kind == b"IDAT")
    stream = isal.decompressobj()
    try:
        pixels = memoryview(stream.decompress(deflated, size))
    except isal.error:
        return None
    if len(pixels) != size or not stream.eof or stream.unused_data:
        return None
    parts: list[Any] = [b"IDAT", b"\x78\x01"]  # the type of the chunk, and the header of a zlib stream
    for start in range(0, size, _BLOCK):
        block = pixels[start : start + _BLOCK]
        parts += [struct.pack("<BHH", start + _BLOCK >= size, len(block), len(block) ^ 0xFFFF), block]
    parts.append(deflated[-4:])  # the checksum of the pixels
    length, crc = sum(map(len, parts[1:])), functools.reduce(lambda crc, part: isal.crc32(part, crc), parts, 0)
    return b"".join([content[:33], struct.pack(">I", length), *parts, struct.pack(">I", crc), _END])


@functools.cache
def _isal() -> Any:
    try:
        from isal import isal_zlib
    except ImportError:  # some platforms have no wheels
        return None
    return isal_zlib
