"""Backbones from timm, dilated to a fixed output stride."""

import difflib
import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import timm
import torch
from timm.layers.std_conv import ScaledStdConv2d, ScaledStdConv2dSame
from torch import Tensor, nn

from .backbone_weights import load_weights, read_weights

# Examples from the families that timm can dilate; the error for any other model suggests them.
STRIDE_8_EXAMPLES = "resnet50, resnet101, convnext_tiny, regnety_016, efficientnet_b0, mobilenetv2_100"


class DilatedConv2d(nn.Conv2d):
    """A dilated convolution that is trained in float32 where a CPU would compute it in bfloat16.

    oneDNN's bfloat16 gradient of the weight contains uninitialised memory for channels-last images that are more than
    some 30 pixels wide or high, unless each group has a multiple of 16 channels (torch 2.11 to 2.15, AVX512-BF16).
    """

    _original: Any = nn.Conv2d  # the class that this one replaces

    def forward(self, input: Tensor) -> Tensor:
        """Apply the convolution; if it is computed in float32, the result has the dtype of the input."""
        in_bfloat16 = torch.is_autocast_enabled("cpu") or self.weight.dtype == torch.bfloat16
        trained = torch.is_grad_enabled() and self.weight.requires_grad
        if not (in_bfloat16 and trained and input.device.type == "cpu"):
            return super().forward(input)
        with torch.autocast("cpu", enabled=False):
            return self._original.forward(_InFloat32(self), _widened(input)).to(input.dtype)


# timm's methods call the image `x`.
class DilatedStdConv2d(DilatedConv2d, ScaledStdConv2d):  # pyrefly: ignore[inconsistent-inheritance]
    """The same for timm's ``ScaledStdConv2d``, the convolution of normaliser-free networks."""

    _original = ScaledStdConv2d


class DilatedStdConv2dSame(DilatedConv2d, ScaledStdConv2dSame):  # pyrefly: ignore[inconsistent-inheritance]
    """The same for timm's ``ScaledStdConv2dSame``."""

    _original = ScaledStdConv2dSame


class _InFloat32:
    """View of a module in which half-precision parameters are float32; gradients flow back to the module."""

    def __init__(self, module: nn.Module):
        self._module = module

    def __getattr__(self, name: str) -> Any:
        value = getattr(self._module, name)
        return _widened(value) if isinstance(value, Tensor) else value


def _widened(tensor: Tensor) -> Tensor:
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))


_DILATED: dict[Any, Any] = {
    nn.Conv2d: DilatedConv2d,
    ScaledStdConv2d: DilatedStdConv2d,
    ScaledStdConv2dSame: DilatedStdConv2dSame,
}


def replace_dilated_convolutions(network: nn.Module) -> None:
    """Replace, in-place, the dilated convolutions whose bfloat16 gradient can be wrong by :class:`DilatedConv2d`."""
    for conv in network.modules():
        if isinstance(conv, nn.Conv2d) and max(conv.dilation) > 1 and (conv.groups > 1 or conv.in_channels % 16):
            conv.__class__ = _DILATED.get(type(conv), type(conv))


class TimmBackbone(nn.Module):
    """A timm network without its classifier, dilated to a fixed output stride.

    Args:
        name: any timm model that accepts ``output_stride``.
        output_stride: ratio of the input size to the size of the last feature map.
        out_indices: indices of timm's feature levels to return, in ascending order; the auxiliary head reads the first
            of them and the main head the last. (-2, -1) are the third and fourth stages. Later levels are not built,
            except in EfficientNets and MobileNets.
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
        ValueError: timm has no such model or cannot dilate it, ``out_indices`` are not ascending levels of it, the
            weights belong to another model, or ``mean`` or ``std`` does not fit ``in_channels``.
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
            architecture = name.rpartition("/")[2].partition(".")[0]  # of names such as timm/resnet18.a1_in1k
            close = difflib.get_close_matches(architecture, timm.list_models(), n=4)
            raise ValueError(
                f"timm has no backbone {name!r}" + (f": did you mean {', '.join(close)}?" if close else "")
            )
        self.output_stride = output_stride
        self.net = _build(name, output_stride, tuple(out_indices), in_channels, pretrained and weights is None)
        replace_dilated_convolutions(self.net)
        self.in_channels = in_channels
        self.channels = list(self.net.feature_info.channels())
        settings, config = {"mean": mean, "std": std}, self.net.pretrained_cfg
        default = [_statistics(key, value, config[key], in_channels) for key, value in settings.items()]
        self.mean, self.std = default
        if weights is not None:
            state = read_weights(name, Path(os.path.expanduser(weights)))
            load_weights(self.net, name, weights, state)
            if settings.keys() <= state.keys():  # the checkpoint of a run
                stored = {key: [float(value) for value in state[key].flatten()] for key in settings}
                self.mean, self.std = (
                    _statistics(key, value, stored[key], in_channels) for key, value in settings.items()
                )
        pairs = zip((*self.mean, *self.std), (*default[0], *default[1]), strict=True)
        self.from_weights = not all(math.isclose(*pair, rel_tol=1e-5) for pair in pairs)  # a run stores float32

    def forward(self, image: Tensor) -> list[Tensor]:
        """Return the selected feature maps (N, channels[i], h_i, w_i) of normalised images (N, C, H, W)."""
        return self.net(image)


def _statistics(
    name: str, setting: Sequence[float] | None, of_weights: Sequence[float], channels: int
) -> tuple[float, ...]:
    """Return the per-channel mean or standard deviation: the setting, or else that of the weights, adapted."""
    if setting is None:
        number = len(of_weights)
        if channels == 1 != number:
            return (sum(of_weights) / number,)
        return tuple(of_weights[index % number] for index in range(channels))
    if len(setting) != channels or (name == "std" and min(setting) <= 0):
        raise ValueError(
            f"backbone.{name}={list(setting)}: set one number per channel, of which there are in_channels={channels}"
            + (", all above 0" if name == "std" else "")
        )
    return tuple(map(float, setting))  # whole numbers would make the images integers


def _build(name: str, output_stride: int, out_indices: tuple[int, ...], in_channels: int, pretrained: bool) -> Any:
    options: dict[str, Any] = {"features_only": True, "output_stride": output_stride, "out_indices": out_indices}
    options |= {"in_chans": in_channels} if in_channels != 3 else {}
    levels = f"out_indices={list(out_indices)}: set different levels of {name!r} in ascending order, such as [-2, -1]"
    if not out_indices:
        raise ValueError(levels)
    try:
        net: Any = timm.create_model(name, pretrained=False, **options)
    except IndexError as error:
        raise ValueError(levels) from error
    except (TypeError, AssertionError, NotImplementedError) as error:
        raise ValueError(_no_stride(name, output_stride)) from error
    indices = [index % len(net.feature_info.info) for index in net.feature_info.out_indices]
    if indices != sorted({*indices}):  # timm returns the levels in ascending order, each once
        raise ValueError(levels)
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
