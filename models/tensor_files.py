"""Files of tensors, read without running what else they may hold and without unpacking more than they are."""

import pickle
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor


def read(path: Path) -> Any:
    """What torch or safetensors saved in ``path``, provided that it is tensors and plain values alone."""
    if not path.is_file():
        raise FileNotFoundError(f"there is no checkpoint {path}")
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        _check_archive(path)
        return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:  # torch's own text suggests to load it all the same
        raise ValueError(
            f"{path} is not a checkpoint of this project: it holds more than tensors and plain values, which could run "
            "code. If it is a published one whose source you trust, save its tensors alone: "
            "torch.save(torch.load(FILE, weights_only=False)['state_dict'], NEW)"
        ) from error
    except OSError:
        raise
    except Exception as error:  # each kind of damage fails in its own way
        raise ValueError(f"{path} is not a checkpoint of this project, or it is damaged: {error}") from error


def _check_archive(path: Path) -> None:
    """torch stores tensors as they are; an archive that unpacks to more than it is was made to fill the memory."""
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            unpacked = sum(entry.file_size for entry in archive.infolist())
        if unpacked > path.stat().st_size:
            raise ValueError(f"it would unpack to {unpacked} bytes, which torch does not write")


def is_plain(value: Any) -> bool:
    """Whether it is a tensor whose numbers are all in the file; a view may claim to have more."""
    return (
        isinstance(value, Tensor)
        and value.layout == torch.strided
        and value.device.type == "cpu"
        and not value.is_quantized
        and value.nbytes <= value.untyped_storage().nbytes()
        and 0 not in value.shape
    )


def size(tensors: Mapping[str, Tensor]) -> int:
    """Numbers in the file, those that several tensors share counted once."""
    stored = {tensor.untyped_storage().data_ptr(): tensor for tensor in tensors.values()}
    return sum(tensor.untyped_storage().nbytes() // tensor.element_size() for tensor in stored.values())
