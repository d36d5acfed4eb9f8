"""Convert published checkpoints to networks of this project."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from hydra.errors import InstantiationException
from torch import Tensor, nn

from ..factory import build
from ..layers import MAX_RECURRENCE, Uninitialised
from ..tensor_files import is_plain, read, size
from . import authors, mmseg
from .configuration import settings
from .layout import Layout

_COLOURS = ("mean", "std")  # buffers that published files lack, because the original code hard-codes them
_COUNTER = "num_batches_tracked"  # unused batch norm buffer, which older files lack


@dataclass
class Published:
    """A published checkpoint converted to a network of this project.

    Attributes:
        model: the ``model`` node of a configuration that builds the network.
        weights: the network's state dict.
        num_classes: number of classes K.
        classes, palette: K names and K RGB triples, if stored in the file.
        crop_size: size of the training crops, (H, W) in pixels, if known.
        iteration: number of training iterations, if stored in the file.
    """

    model: dict[str, Any]
    weights: dict[str, Tensor]
    num_classes: int
    classes: list[str] | None
    palette: list[list[int]] | None
    crop_size: tuple[int, int] | None
    iteration: int | None

    def network(self) -> nn.Module:
        """Build the network, load its weights and set it to eval mode."""
        with Uninitialised():
            network = build(self.model)
        network.load_state_dict(self.weights)
        return network.eval()


def import_checkpoint(path: str | Path, *, recurrence: int = 2, align_corners: bool | None = None) -> nn.Module:
    """Load a published checkpoint as a network in eval mode, which can also be trained further.

    Two layouts are supported: the CCNet authors', and mmsegmentation's with the heads ccnet, nonlocal, fcn, pspnet and
    deeplabv3 on a ResNet-50 or -101 with output stride 8. The layout, depth, widths and number of classes are inferred
    from the file. The network converts images to the channel order, scale and statistics of the original training.

    Args:
        path: the file, .pth or .safetensors; it is read with ``weights_only=True``.
        recurrence: number of loops R of a criss-cross head, which cannot be inferred from the weights; it must agree
            with the file's configuration, if there is one.
        align_corners: whether bilinear upsampling aligns corners. None for True with the authors' files; with
            mmsegmentation's, for the value in the file's configuration, or else True if the file name contains 769x769.

    Returns:
        A network that maps RGB images (N, 3, H, W) in [0, 1] to {"out": logits (N, K, H, W)}; see
        :class:`~ccnet.models.segmentor.Segmentor`.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the layout or a setting in the file's configuration is not supported, or tensors are missing,
            unused, misshapen or not finite; the message lists all of them.

    Example:
        >>> net = import_checkpoint("ccnet_r50-d8_769x769_40k_cityscapes_20200616_145125-76d11884.pth")
    """
    path = Path(os.path.expanduser(path))
    return convert(read(path).content, path, recurrence=recurrence, align_corners=align_corners).network()


def convert(content: Any, path: Path, *, recurrence: int = 2, align_corners: bool | None = None) -> Published:
    """Convert the content of a file to this project's names and configuration.

    See :func:`import_checkpoint` for the other arguments and the errors.

    Args:
        content: the content of the file as returned by :func:`~ccnet.models.tensor_files.read`.
        path: path of the file, whose name may contain the crop size; the file is not opened.
    """
    if recurrence not in range(1, MAX_RECURRENCE + 1):
        raise ValueError(f"recurrence is {recurrence}: set the number of loops in training, 1 to {MAX_RECURRENCE}")
    try:
        tensors = _tensors(content)
        meta = _mapping(content.get("meta"))  # mmsegmentation saves it with the state dict
        layout, crop = _layout(tensors, meta, path.name, recurrence, align_corners)
        weights = _weights(layout, tensors)
    except ValueError as error:
        raise ValueError(f"{path} cannot be imported as a published checkpoint: {error}") from error
    num_classes = layout.model["head"]["num_classes"]
    named = _mapping(meta.get("dataset_meta") or {"classes": meta.get("CLASSES"), "palette": meta.get("PALETTE")})
    return Published(
        layout.model,
        weights,
        num_classes,
        classes=_each_class(named, "classes", num_classes),
        palette=_each_class(named, "palette", num_classes),
        crop_size=crop,
        iteration=meta.get("iter"),
    )


def _layout(
    tensors: Mapping[str, Tensor], meta: dict[str, Any], name: str, recurrence: int, align_corners: bool | None
) -> tuple[Layout, tuple[int, int] | None]:
    """Return the file's layout, and the training crop (H, W) in pixels if known."""
    if authors.recognises(tensors):
        aligned = True if align_corners is None else align_corners
        return authors.layout(tensors, recurrence=recurrence, align_corners=aligned), authors.CROP
    if mmseg.recognises(tensors):
        trained = settings(str(meta.get("config") or meta.get("cfg") or ""), name)
        aligned = trained.align_corners if align_corners is None else align_corners
        return mmseg.layout(tensors, recurrence=recurrence, align_corners=aligned, trained=trained), trained.crop
    if any(key.startswith("backbone.net.") for key in tensors):
        raise ValueError(
            "its tensors are those of a network of this project, but the configuration that builds it is missing: pass "
            "best.safetensors or last.pt of the run, or model.safetensors in a folder with its config.json; in Python, "
            "create_model(...).load_state_dict(...) loads a state dict"
        )
    raise ValueError(
        f"its tensor names ({', '.join(list(tensors)[:3])}, ...) match neither the CCNet authors' layout (layer1, "
        "head.conva, dsn) nor mmsegmentation's (backbone, decode_head, auxiliary_head)"
    )


def _each_class(named: dict[Any, Any], key: str, number: int) -> list[Any] | None:
    """Return the list stored under ``key`` if it has one entry per class, else None."""
    value = named.get(key)
    entries = list(cast(Sequence[Any], value)) if isinstance(value, (list, tuple)) else []
    return entries if len(entries) == number else None


def _tensors(content: Any) -> dict[str, Tensor]:
    """Return the state dict without the "module." prefix that torch's data-parallel wrappers add to every key."""
    held = _mapping(content)
    for wrapper in ("state_dict", "model"):
        held = _mapping(held.get(wrapper)) if isinstance(held.get(wrapper), Mapping) else held
    if not held or not all(isinstance(key, str) for key in held):
        raise ValueError("it contains no state dict")
    if foreign := [key for key, value in held.items() if not is_plain(value)]:
        raise ValueError(f"it contains no state dict: {foreign[0]} is not a complete tensor")
    wrapped = all(key.startswith("module.") for key in held)
    return {key.removeprefix("module.") if wrapped else key: tensor.detach() for key, tensor in held.items()}


def _mapping(value: Any) -> dict[Any, Any]:
    """Return a mapping as a dict, and an empty dict for any other value."""
    return dict(cast(Mapping[Any, Any], value)) if isinstance(value, Mapping) else {}


def _weights(layout: Layout, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the state dict of the layout's network, filled with the file's tensors."""
    try:
        with Uninitialised(), torch.device("meta"):  # names, shapes and dtypes of the tensors, without allocating them
            network = build(layout.model, holding=size(tensors))
    except InstantiationException as error:
        raise ValueError(f"the network that its tensors indicate cannot be built: {error.__cause__}") from error
    own = network.state_dict()
    sources = {key: layout.source(key) for key in own if key not in _COLOURS}
    _check([*sources.items(), *layout.folded.items()], own, tensors)
    weights = {key: torch.tensor(getattr(network.backbone, key)).view(own[key].shape) for key in _COLOURS}
    for key, source in sources.items():
        if source in tensors:  # the tensor in the file may be a scalar or in half precision
            weights[key] = tensors[source].reshape(own[key].shape).to(own[key].dtype)
        else:
            weights[key] = torch.zeros_like(own[key], device="cpu")  # num_batches_tracked
    if layout.fold is not None:
        layout.fold(weights, tensors)
    return weights


def _check(sources: list[tuple[str, str]], own: dict[str, Tensor], tensors: Mapping[str, Tensor]) -> None:
    """Raise ValueError, listing every mismatch, unless the file has exactly the network's tensors."""
    known = {source for _, source in sources}
    wrong = {
        "missing": [key for key in known if key not in tensors and not key.endswith(_COUNTER)],
        "unused": [key for key in tensors if key not in known],
        "of another shape": [
            f"{source} {tuple(tensors[source].shape)} instead of {tuple(own[key].shape)}"
            for key, source in sources
            if source in tensors and _shape(tensors[source]) != _shape(own[key])
        ],
        "of another type": [
            f"{source} {tensors[source].dtype}"
            for key, source in sources
            if source in tensors and own[key].is_floating_point() and not tensors[source].is_floating_point()
        ],
        "with values that are not finite": [
            source for _, source in sources if source in tensors and not tensors[source].isfinite().all()
        ],
    }
    if any(wrong.values()):
        texts = [f"{len(keys)} {what} ({', '.join(sorted(keys))})" for what, keys in wrong.items() if keys]
        raise ValueError(f"its tensors do not match the network that its keys indicate: {'; '.join(texts)}")


def _shape(tensor: Tensor) -> tuple[int, ...]:
    """Return the shape of a tensor, or (1,) for a scalar: gamma may be stored as either."""
    return tuple(tensor.shape) or (1,)
