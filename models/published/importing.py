"""Published checkpoints into networks of this project."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..factory import build
from ..layers import MAX_RECURRENCE
from ..tensor_files import is_plain, read, size
from . import authors, mmseg
from .layout import Layout

_COLOURS = ("mean", "std")  # of the images, which published files leave to their code
_COUNTER = "num_batches_tracked"  # of batch norms; older files lack it, and nothing here reads it


@dataclass
class Published:
    """A published checkpoint as a network of this project.

    Attributes:
        model: the ``model`` node of a configuration that builds the network.
        weights: the network's state dict.
        num_classes: K.
        classes, palette: K names and RGB triples, if the file has them.
        crop_size: (H, W) of the training, pixels, if known.
        iteration: iterations of the training, if the file has them.
    """

    model: dict[str, Any]
    weights: dict[str, Tensor]
    num_classes: int
    classes: list[str] | None
    palette: list[list[int]] | None
    crop_size: tuple[int, int] | None
    iteration: int | None

    def network(self) -> nn.Module:
        """Build the network with its weights, in eval mode."""
        made = build(self.model)
        made.load_state_dict(self.weights)
        return made.eval()


def import_checkpoint(path: str | Path, *, recurrence: int = 2, align_corners: bool | None = None) -> nn.Module:
    """The network of a published checkpoint, with its weights, in eval mode; it can be trained further.

    Two layouts are taken: the CCNet authors' own, and mmsegmentation's of the heads ccnet, nonlocal, fcn, pspnet and
    deeplabv3 over a ResNet-50 or -101 at output stride 8. Which one it is, the depth, the widths and the number of
    classes come from the file. Channel order, scale and statistics of the images that the weights were trained on
    become part of the network.

    Args:
        path: the file, .pth or .safetensors; it is read with ``weights_only=True``.
        recurrence: R of a criss-cross head, which no tensor tells.
        align_corners: of the bilinear upsampling. If not given: True for the authors'; for mmsegmentation's as the
            configuration in the file says, or else True if the file's name says 769x769.

    Returns:
        (N, 3, H, W) RGB in [0, 1] -> {"out": (N, K, H, W)}; see :class:`models.segmentor.Segmentor`.

    Raises:
        FileNotFoundError: no such file.
        ValueError: another kind of file, or tensors that are missing, unused or of another shape, all listed.

    Example:
        >>> net = import_checkpoint("ccnet_r50-d8_769x769_40k_cityscapes_20200616_145125-76d11884.pth")
    """
    path = Path(path).expanduser()
    return convert(read(path).content, path, recurrence=recurrence, align_corners=align_corners).network()


def convert(content: Any, path: Path, *, recurrence: int = 2, align_corners: bool | None = None) -> Published:
    """What :func:`read` gave, as a network.

    See :func:`import_checkpoint` for the arguments and errors; of ``path`` it takes the name alone.
    """
    if not 1 <= recurrence <= MAX_RECURRENCE:
        raise ValueError(f"recurrence is {recurrence}: give the loops that the network was trained with, 1 or more")
    try:
        found = _tensors(content)
        meta = content.get("meta")
        meta = meta if isinstance(meta, dict) else {}
        if authors.recognises(found):
            crop = authors.CROP
            aligned = True if align_corners is None else align_corners
            layout = authors.layout(found, recurrence=recurrence, align_corners=aligned)
        elif mmseg.recognises(found):
            said, crop = mmseg.trained_as(str(meta.get("config") or meta.get("cfg") or ""), path.name)
            aligned = said if align_corners is None else align_corners
            layout = mmseg.layout(found, recurrence=recurrence, align_corners=aligned)
        else:
            raise ValueError(
                f"its tensors ({', '.join(list(found)[:3])}, ...) are named neither as the CCNet authors' (layer1, "
                "head.conva, dsn) nor as mmsegmentation's (backbone, decode_head, auxiliary_head)"
            )
        weights = _weights(layout, found)
    except ValueError as error:
        raise ValueError(f"{path} cannot be imported as a published checkpoint: {error}") from error
    num_classes = layout.model["head"]["num_classes"]
    named = meta.get("dataset_meta") or {"classes": meta.get("CLASSES"), "palette": meta.get("PALETTE")}
    classes, palette = (
        list(value) if isinstance(value, (list, tuple)) and len(value) == num_classes else None
        for value in (named.get(key) if isinstance(named, dict) else None for key in ("classes", "palette"))
    )
    return Published(layout.model, weights, num_classes, classes, palette, crop, meta.get("iter"))


def _tensors(content: Any) -> dict[str, Tensor]:
    """The state dict, without the "module." that torch's data-parallel wrappers put before every key."""
    for wrapper in ("state_dict", "model"):
        if isinstance(content, Mapping) and isinstance(content.get(wrapper), Mapping):
            content = content[wrapper]
    if not (isinstance(content, Mapping) and content and all(isinstance(key, str) for key in content)):
        raise ValueError("it holds no state dict")
    if foreign := [key for key, value in content.items() if not is_plain(value)]:
        raise ValueError(f"it holds no state dict: {foreign[0]} is no tensor with all its numbers")
    wrapped = all(key.startswith("module.") for key in content)
    return {key.removeprefix("module.") if wrapped else key: tensor for key, tensor in content.items()}


def _weights(layout: Layout, found: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the state dict of the layout's network, out of the file's tensors."""
    with torch.device("meta"):  # names, shapes and types of the network's tensors, without memory for their numbers
        network = build(layout.model, holding=size(found))
    own = network.state_dict()
    sources = {key: layout.source(key) for key in own if key not in _COLOURS}
    _check([*sources.items(), *layout.folded.items()], own, found)
    weights = {key: torch.tensor(getattr(network.backbone, key)).view(own[key].shape) for key in _COLOURS}
    for key, source in sources.items():
        if source in found:  # theirs may be a scalar or of half precision
            weights[key] = found[source].reshape(own[key].shape).to(own[key].dtype)
        else:
            weights[key] = torch.zeros_like(own[key], device="cpu")  # a counter
    if layout.fold is not None:
        layout.fold(weights, found)
    return weights


def _check(sources: list[tuple[str, str]], own: dict[str, Tensor], found: Mapping[str, Tensor]) -> None:
    """Raise ValueError, with every name, unless the file has the network's tensors and no others."""
    known = {source for _, source in sources}
    listed = {
        "missing": [key for key in known if key not in found and not key.endswith(_COUNTER)],
        "unused": [key for key in found if key not in known],
        "of another shape": [
            f"{source} {tuple(found[source].shape)} instead of {tuple(own[key].shape)}"
            for key, source in sources
            if source in found and _shape(found[source]) != _shape(own[key])
        ],
    }
    if any(listed.values()):
        texts = [f"{len(keys)} {what} ({', '.join(sorted(keys))})" for what, keys in listed.items() if keys]
        raise ValueError(f"its tensors do not make the network that it seems to hold, {'; '.join(texts)}")


def _shape(tensor: Tensor) -> tuple[int, ...]:
    """With a single number counting as a vector: gamma is either."""
    return tuple(tensor.shape) or (1,)
