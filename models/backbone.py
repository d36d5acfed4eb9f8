"""Backbones from timm, dilated to a fixed output stride."""

import difflib
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import timm
from timm.models import adapt_input_conv
from torch import Tensor, nn

from . import tensor_files
from .checksums import HEADER

_COUNTER = "num_batches_tracked"  # unused batch norm buffer; frozen layers and older files lack it
# Examples from the families that timm can dilate; the error for any other model suggests them.
STRIDE_8_EXAMPLES = "resnet50, resnet101, convnext_tiny, regnety_016, efficientnet_b0, mobilenetv2_100"


class TimmBackbone(nn.Module):
    """A timm network without its classifier, dilated to a fixed output stride.

    Args:
        name: any timm model that accepts ``output_stride``.
        output_stride: ratio of the input size to the size of the last feature map.
        out_indices: indices of timm's feature levels to return; the auxiliary head reads the first of them and the main
            head the last. (-2, -1) are the third and fourth stages. Later levels are not built.
        pretrained: have timm download ImageNet weights.
        weights: local file to load instead: a state dict of the same timm model (.safetensors, or .pth with tensors
            only), or the checkpoint of a run, such as RUN/best, from which the backbone and the image statistics are
            loaded.
        in_channels: number of channels C of the images; timm adapts the pretrained weights of the first layer.
        mean, std: per-channel statistics of the images in [0, 1]. The default is the statistics that the weights were
            trained with. If their number of channels differs, they are averaged for one channel and otherwise repeated
            cyclically, as timm repeats the weights.

    Attributes:
        channels: width of each returned level.
        mean, std: per-channel statistics of the images in [0, 1].
        from_weights: whether these statistics are those of the run in ``weights``, and differ without ``weights``.

    Raises:
        ValueError: timm has no such model or cannot dilate it, the weights belong to another model, or ``mean`` or
            ``std`` does not fit ``in_channels``.
        FileNotFoundError: ``weights`` is not an existing file.
        OSError: the pretrained weights cannot be downloaded.
    """

    net: Any  # timm's feature network; timm is untyped
    channels: list[int]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    from_weights: bool

    def __init__(
        self,
        name: str,
        *,
        output_stride: int = 8,
        out_indices: Sequence[int] = (-2, -1),
        pretrained: bool = False,
        weights: str | Path | None = None,
        in_channels: int = 3,
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
    ):
        super().__init__()
        if not timm.is_model(name):
            close = difflib.get_close_matches(name, timm.list_models(), n=4)
            raise ValueError(
                f"timm has no backbone {name!r}" + (f": did you mean {', '.join(close)}?" if close else "")
            )
        self.output_stride = output_stride
        self.net = _build(name, output_stride, tuple(out_indices), in_channels, pretrained and weights is None)
        self.in_channels = in_channels
        self.channels = list(self.net.feature_info.channels())
        known: dict[str, tuple[float, ...]] = {key: tuple(self.net.pretrained_cfg[key]) for key in ("mean", "std")}
        given = {"mean": mean, "std": std}
        usual = {key: _statistics(key, given[key], known[key], in_channels) for key in known}
        if weights is not None:
            state = _read_weights(name, Path(weights).expanduser())
            _load_weights(self.net, name, weights, state)
            if known.keys() <= state.keys():  # the checkpoint of a run
                known = {key: tuple(float(value) for value in state[key].flatten()) for key in known}
        found = {key: _statistics(key, given[key], known[key], in_channels) for key in known}
        self.mean, self.std = found["mean"], found["std"]
        pairs = [pair for key in known for pair in zip(found[key], usual[key], strict=True)]
        self.from_weights = not all(math.isclose(*pair, rel_tol=1e-5) for pair in pairs)  # a run stores float32

    def forward(self, image: Tensor) -> list[Tensor]:
        """Return the selected feature maps (N, channels[i], h_i, w_i) of normalised images (N, C, H, W)."""
        return self.net(image)


def _statistics(name: str, given: Sequence[float] | None, known: tuple[float, ...], channels: int) -> tuple[float, ...]:
    """Return the per-channel mean or standard deviation: as given, or else adapted from that of the weights."""
    if given is None:
        if len(known) == channels:
            return known
        return (sum(known) / len(known),) if channels == 1 else tuple(known[i % len(known)] for i in range(channels))
    if len(given) != channels or (name == "std" and min(given) <= 0):
        raise ValueError(
            f"backbone.{name}={list(given)}: set one number per channel, of which there are in_channels={channels}"
            + (", all above 0" if name == "std" else "")
        )
    return tuple(given)


def _build(name: str, output_stride: int, out_indices: tuple[int, ...], in_channels: int, pretrained: bool) -> Any:
    options: dict[str, Any] = {"features_only": True, "output_stride": output_stride, "out_indices": out_indices}
    options |= {"in_chans": in_channels} if in_channels != 3 else {}
    try:
        net: Any = timm.create_model(name, pretrained=False, **options)
    except (TypeError, AssertionError, NotImplementedError) as error:
        raise ValueError(_no_stride(name, output_stride)) from error
    if net.feature_info.reduction()[-1] != output_stride:
        raise ValueError(_no_stride(name, output_stride))
    if not pretrained:
        return net
    try:
        return timm.create_model(name, pretrained=True, **options)
    except Exception as error:  # the hub has no specific error for a missing network connection
        raise OSError(
            f"the pretrained weights of {name!r} could not be downloaded ({error}): set a local file with "
            "backbone.weights=FILE, or start from random weights with backbone.pretrained=false"
        ) from error


def _no_stride(name: str, output_stride: int) -> str:
    return (
        f"timm cannot build {name!r} with output stride {output_stride} at its last level: "
        f"choose a model that supports it, such as {STRIDE_8_EXAMPLES}"
    )


def _read_weights(name: str, path: Path) -> dict[str, Tensor]:
    """Return the tensors of a weight file, keyed by timm's names with underscores in place of dots."""
    try:
        path = path if path.is_file() else tensor_files.find(path)
    except FileNotFoundError as error:
        raise FileNotFoundError(
            f"backbone.weights={path} is neither a state dict of timm's {name} nor the checkpoint of a run: {error}"
        ) from error
    try:
        file = tensor_files.read(path)
        state = file.content
        if HEADER in file.metadata or "weights" in state:
            if not file.checksums_match:
                raise ValueError("its content does not match its checksum")
            state = state.get("weights", state)
        state = {_timm_name(key): tensor for key, tensor in state.get("state_dict", state).items()}
        if not all(tensor_files.is_plain(tensor) for tensor in state.values()):
            raise ValueError("it contains something other than plain, complete tensors")
    except Exception as error:  # each format raises its own errors for a damaged file
        raise ValueError(f"{path} is not a state dict that can be read safely: {error}") from error
    return state


def _first_layer(net: Any) -> str:
    """Return the name of the first convolution; timm's feature networks rename stem.0 to stem_0."""
    first = net.pretrained_cfg["first_conv"]
    name = first if isinstance(first, str) else first[0]
    return name if f"{name}.weight" in net.state_dict() else name.replace(".", "_", 1)


def _timm_name(key: str) -> str:
    """Return the key of a tensor in :func:`_read_weights`; timm's feature networks rename stages.0 to stages_0."""
    for prefix in ("backbone.net.", "backbone.body."):  # in a Segmentor or Parser, and in a Mask R-CNN
        key = key.removeprefix(prefix)
    return key.replace(".", "_")


def _load_weights(net: nn.Module, name: str, path: str | Path, state: dict[str, Tensor]) -> None:
    """Load all weights of ``net``; raise ValueError before changing any of them if ``state`` does not match."""
    own = net.state_dict()
    first = f"{_first_layer(net)}.weight"
    if first in own and (found := state.get(_timm_name(first))) is not None and found.ndim == 4 and found.shape[1] == 3:
        state |= {_timm_name(first): adapt_input_conv(own[first].shape[1], found)}
    stored = state.get(_timm_name(first))
    if first in own and stored is not None and stored.ndim == 4 and stored.shape[1] != own[first].shape[1]:
        raise ValueError(
            f"{path} has weights for images of {stored.shape[1]} channels, but backbone.in_channels="
            f"{own[first].shape[1]}: set backbone.in_channels={stored.shape[1]}, or choose other weights"
        )
    wrong = [
        f"{key} {tuple(tensor.shape)}"
        for key, tensor in own.items()
        if not key.endswith(_COUNTER) and ((found := state.get(_timm_name(key))) is None or found.shape != tensor.shape)
    ]
    if wrong:
        raise ValueError(
            f"{path} does not contain the weights of timm's {name}: {len(wrong)} of {len(own)} tensors are "
            f"missing or have another shape, starting with {', '.join(wrong[:3])}"
        )
    net.load_state_dict({key: state.get(_timm_name(key), tensor) for key, tensor in own.items()})
