"""Find, read and write tensor files; reading executes no code in them and unpacks no more bytes than their size."""

import os
import pickle
import re
import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from . import checksums
from .checksums import CHECKSUM, HEADER

FOLDER_WEIGHTS = "model.safetensors"  # file name in a folder with config.json, as in Hugging Face repositories
_OWN_SUFFIXES = (".safetensors", ".pt")
_PUBLISHED_SUFFIX = ".pth"


def find(path: Path) -> Path:
    """Return the file that ``RUN/best``, ``RUN/last``, ``RUN`` (its best weights), a folder or a file name refers to.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is a file of another kind, by its suffix.
    """
    if path.is_dir():
        path /= FOLDER_WEIGHTS if (path / FOLDER_WEIGHTS).is_file() else "best"
    candidates = [path]
    if path.suffix not in (*_OWN_SUFFIXES, _PUBLISHED_SUFFIX):
        candidates = [path.with_name(path.name + suffix) for suffix in _OWN_SUFFIXES]
    for candidate in candidates:
        if candidate.is_file():
            return candidate
    if path.is_file():
        raise ValueError(
            f"{path} is not a checkpoint, as its name does not end in .safetensors, .pt or .pth: pass the folder of a "
            "run, one of these files in it, or a published file, renamed to end in .pth if necessary"
        )
    listed = " or ".join(str(candidate) for candidate in candidates)
    hint = "a run writes best.safetensors and last.pt"
    if path.stem == "best" and (newest := path.with_name("last.pt")).is_file():
        hint = f"a run writes it after its first validation; {newest} holds the newest weights"
    raise FileNotFoundError(f"there is no checkpoint {listed}: {hint}")


class TensorFile(NamedTuple):
    """The content of a tensor file.

    Attributes:
        content: the saved object; for a .safetensors file, a dict of tensors.
        metadata: metadata in the header of a .safetensors file; empty for torch's formats.
        checksums_match: whether all CRC-32 checksums of a torch zip archive, or the one in the metadata of a run's
            .safetensors file, are correct. False for torch's older format, which has none; True for .safetensors files
            without one.
    """

    content: Any
    metadata: dict[str, str]
    checksums_match: bool


def read(path: Path) -> TensorFile:
    """Read a file saved by torch or safetensors; it is opened only once.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is damaged, or contains more than tensors and plain values.
    """
    if not path.is_file():
        raise FileNotFoundError(f"there is no checkpoint {path}")
    try:
        return _read_safetensors(path) if path.suffix == ".safetensors" else _read_torch(path)
    except OSError:
        raise
    except Exception as error:  # each kind of damage raises a different error
        raise ValueError(_explained(error, path)) from error


def _explained(error: Exception, path: Path) -> str:
    """Return why a file cannot be read."""
    with open(path, "rb") as file:
        start = file.read(8)  # in a tensor file, the length of the header, or the signature of a format
    if all(32 <= byte < 127 or byte in b"\r\n\t" for byte in start):
        error = ValueError(
            f"it is {'a text file' if start else 'empty'}; a download may have saved a web page or a Git LFS pointer "
            "in its place"
        )
    if isinstance(error, pickle.UnpicklingError):  # torch's own message suggests loading it anyway
        return (
            f"{path} is not a checkpoint of this project: it contains more than tensors and plain values, which could "
            "run code. If it is a published checkpoint from a source that you trust, save only its tensors: "
            "torch.save(torch.load(FILE, weights_only=False)['state_dict'], NEW)"
        )
    return f"{path} is not a checkpoint of this project, or it is damaged: {error}"


def _read_safetensors(path: Path) -> TensorFile:
    handle: Any = safe_open(path, framework="pt")
    with handle as file:
        tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118, a handle is not iterable
        metadata: dict[str, str] = file.metadata() or {}
    expected = metadata.get(CHECKSUM) and checksum(metadata.get(HEADER, ""), tensors)
    return TensorFile(tensors, metadata, checksums_match=not expected or expected == metadata[CHECKSUM])


def write_safetensors(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> None:
    """Write a .safetensors file with a checksum of its tensors and of ``HEADER`` in its metadata.

    Raises:
        OSError: the file cannot be written, for example because the disk is full.
    """
    stored = {key: tensor.detach().cpu().contiguous() for key, tensor in tensors.items()}
    checked = {**metadata, CHECKSUM: checksum(metadata.get(HEADER, ""), stored)}
    try:
        save_file(stored, path, metadata=checked)
    except SafetensorError as error:  # it names the cause as in "No space left on device (os error 28)"
        if number := re.search(r"\(os error (\d+)\)", str(error)):
            raise OSError(int(number[1]), os.strerror(int(number[1]))) from error
        raise OSError(str(error)) from error


def checksum(header: str, weights: Mapping[str, Tensor]) -> str:
    """Return the CRC-32 of a run's configuration header and its tensors."""
    flat = {key: tensor.reshape(-1).view(torch.uint8) for key, tensor in weights.items()}
    return checksums.checksum(header, {key: tensor.numpy().data for key, tensor in flat.items()})


def _read_torch(path: Path) -> TensorFile:
    with open(path, "rb") as file:
        if not zipfile.is_zipfile(file):  # torch's older format, or not a torch file
            file.seek(0)
            content = torch.load(file, map_location="cpu", weights_only=True)
            return TensorFile(content, {}, checksums_match=False)
        with zipfile.ZipFile(file) as archive:
            _refuse_bomb(archive, os.fstat(file.fileno()).st_size)
            file.seek(0)
            content = torch.load(file, map_location="cpu", weights_only=True)
            return TensorFile(content, {}, checksums_match=_is_intact(archive))


def _refuse_bomb(archive: zipfile.ZipFile, size: int) -> None:
    """Raise ValueError if an archive would unpack to more bytes than the file has; torch never compresses tensors."""
    unpacked = sum(entry.file_size for entry in archive.infolist())
    if unpacked > size:
        raise ValueError(f"it would unpack to {unpacked} bytes, more than the file's {size}; torch does not compress")


def _is_intact(archive: zipfile.ZipFile) -> bool:
    try:
        return archive.testzip() is None
    except (zipfile.BadZipFile, zlib.error, NotImplementedError, EOFError):
        return False


def is_plain(value: Any) -> bool:
    """Return whether a value is a dense, non-empty CPU tensor backed by enough storage; a view may claim more."""
    return (
        isinstance(value, Tensor)
        and value.layout == torch.strided
        and value.device.type == "cpu"
        and not value.is_quantized
        and value.nbytes <= value.untyped_storage().nbytes()
        and 0 not in value.shape
    )


def size(tensors: Mapping[str, Tensor]) -> int:
    """Return the number of elements that the tensors store, counting shared storage once."""
    stored = {tensor.untyped_storage().data_ptr(): tensor for tensor in tensors.values()}
    return sum(tensor.untyped_storage().nbytes() // tensor.element_size() for tensor in stored.values())
