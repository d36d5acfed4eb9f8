"""Criss-cross attention modules for use in any network.

Huang et al., CCNet, TPAMI 2020, arXiv:1811.11721, sections 3.2 (criss-cross attention) and 3.3 (recurrence).
Shapes: N images, C channels, D query channels, S one to three spatial dimensions.
"""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import Proxy
from torch.nn.functional import conv2d

from ..kernels import criss_cross_residual, recomputed_projection, split_channels
from ..kernels.torch_ops import transforms
from ..kernels.torch_ops.cpu.products import prefers_onednn
from ..kernels.validation import integers
from .layers import check_recurrence, residual_weight

_LEAST_ROWS = 16  # with one thread, torch convolves smaller batches without oneDNN, up to half as fast as a product


class CrissCrossAttention(nn.Module):
    """Attention from each position to its row and column, and in clips also to the same position in other frames.

        y = gamma * attention(query(x), key(x), value(x)) + x        (equation 2)

    The same weights can be used for signals, images and clips: only the attention depends on the number of axes.

    Args:
        channels: number of input and output channels C.
        query_channels: number of query channels D; C // 8 by default, as in the paper.
        axes: spatial axes to attend along, as in :func:`~ccnet.kernels.criss_cross_attention`; all of them by default.
        gamma: "learned" as in the authors' code, or "fixed" at 1; see :func:`~ccnet.models.layers.residual_weight`.
        recompute: recompute query, key and value in the backward pass instead of storing them, which saves 45 percent
            of the memory at the cost of one more convolution. On a CPU, those of the last loop are kept, which does not
            raise the peak. With backend "reference" and under torch.func transforms, they are always stored. Under
            torch.compile, the compiler decides what to store, and inside torch.utils.checkpoint, the checkpoint does.
        backend: see :func:`~ccnet.kernels.criss_cross_attention`.
    """

    def __init__(
        self,
        channels: int,
        *,
        query_channels: int | None = None,
        axes: Sequence[int] | None = None,
        gamma: str = "learned",
        recompute: bool = True,
        backend: str = "auto",
    ):
        super().__init__()
        query_channels = max(channels // 8, 1) if query_channels is None else query_channels
        self.query_conv = nn.Conv2d(channels, query_channels, kernel_size=1)
        self.key_conv = nn.Conv2d(channels, query_channels, kernel_size=1)
        self.value_conv = nn.Conv2d(channels, channels, kernel_size=1)
        self.gamma = residual_weight(gamma)
        self.axes = None if axes is None else integers("axes", axes)
        self.recompute = recompute
        self.backend = backend

    def forward(self, x: Tensor) -> Tensor:
        """Apply the attention; the shape (N, C, *S), with one to three spatial dimensions S, is unchanged.

        Raises:
            ValueError: `x` has another shape.
        """
        if isinstance(x, Proxy):
            return _record(self, x)
        convolutions = (self.query_conv, self.key_conv, self.value_conv)
        gamma = x.new_ones(1, dtype=torch.float32) if self.gamma is None else self.gamma
        if not all(map(_is_plain, convolutions)):
            query, key, value = (_apply_as_image(conv, x) for conv in convolutions)
            return criss_cross_residual(query, key, value, x, gamma, axes=self.axes, backend=self.backend)
        if not 3 <= x.ndim <= 5 or x.shape[1] != self.value_conv.in_channels:
            raise ValueError(
                f"expected (N, {self.value_conv.in_channels}, *S) with one to three spatial dimensions S, "
                f"got {tuple(x.shape)}"
            )
        sizes = [conv.out_channels for conv in convolutions]
        weights = [conv.weight for conv in convolutions]
        biases = [conv.bias for conv in convolutions if conv.bias is not None]  # all three have a bias
        # The reference keeps copies of the projections, so recomputing them would save no memory.
        project = recomputed_projection if self.recompute and self.backend != "reference" else _projection
        with project(_project, x, *weights, *biases) as projected:
            query, key, value = split_channels(projected, sizes)
            return criss_cross_residual(query, key, value, x, gamma, axes=self.axes, backend=self.backend)


def _record(module: nn.Module, x: Any) -> Any:
    """Record a module as one operation of ``torch.fx.symbolic_trace``, which cannot follow its control flow."""
    if x.tracer.root is module:
        raise TypeError(
            f"torch.fx records {type(module).__name__} as one operation and cannot trace it alone: trace a network "
            "that contains it"
        )
    return x.tracer.create_proxy("call_module", x.tracer.path_of_module(module), (x,), {})


def _is_plain(conv: nn.Module) -> bool:
    """Return False for a projection that must be called as a module: it has hooks, or computes something else.

    Pruning, the older weight and spectral norms, FSDP and profilers work through hooks; libraries that offload weights
    replace the ``forward`` of single modules.
    """
    kinds = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
    return (
        isinstance(conv, nn.Conv2d)
        and type(conv).forward is nn.Conv2d.forward
        and "forward" not in vars(conv)
        and type(conv)._conv_forward is nn.Conv2d._conv_forward
        and conv.kernel_size == conv.stride == (1, 1)
        and conv.padding == (0, 0)
        and conv.groups == 1
        and conv.bias is not None
        and not any(getattr(conv, kind) for kind in kinds)
    )


def _apply_as_image(function: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """Apply a function of images that preserves their size to (N, C, *S), whose spatial axes are viewed as two.

    The view needs no copy in either memory format.
    """
    if x.ndim == 4:
        return function(x)
    image = x.flatten(2, -2) if x.ndim > 4 else x.unsqueeze(2)
    return function(image).view(x.shape[0], -1, *x.shape[2:])


def _projection(project: Callable[..., Tensor], *inputs: Tensor) -> AbstractContextManager[Tensor]:
    return nullcontext(project(*inputs))


def _project(x: Tensor, *parameters: Tensor) -> Tensor:
    """Apply the three 1x1 convolutions as one: (N, C, *S) -> (N, 2 D + C, *S).

    The attention operator reads views of the result, without copies.

    Args:
        x: (N, C, *S).
        *parameters: the weights of query, key and value, then their biases.
    """
    weight, bias = torch.cat(parameters[:3]), torch.cat(parameters[3:])
    if x.device.type == "cpu" and not transforms.is_exporting():
        if _is_faster_by_row(x):
            return _convolve_rows(x, weight, bias)
        # Unlike conv2d, a matrix product returns channels-last memory for any input and is fast for both formats.
        # On a CPU, Inductor also fails to compile the backward pass of some convolutions of dynamic size, such as those
        # of a batch of one image (pytorch/pytorch#185510).
        projected = torch.baddbmm(bias, x.flatten(2).mT, weight.flatten(1).t().expand(len(x), -1, -1))
        return projected.mT.view(len(x), len(bias), *x.shape[2:])
    return _apply_as_image(lambda image: conv2d(image, weight, bias), x)


def _is_faster_by_row(x: Tensor) -> bool:
    """Return whether :func:`_convolve_rows` is supported and faster than a matrix product, for which torch uses MKL."""
    if torch.compiler.is_compiling() or transforms.are_intercepted(x) or x.dtype != torch.float32 or not x.numel():
        return False
    uses_onednn = torch.get_num_threads() > 1 or x[:, 0, ..., 0].numel() >= _LEAST_ROWS
    return uses_onednn and prefers_onednn()


def _convolve_rows(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """Apply a 1x1 convolution to (N, C, *S), with every row of pixels as an image of its own.

    The result has channels-last memory. With one thread, torch uses oneDNN from :data:`_LEAST_ROWS` rows on.
    """
    pixels = x.movedim(1, -1).contiguous()
    rows = pixels.view(-1, 1, *pixels.shape[-2:]).permute(0, 3, 1, 2)  # (N * H, C, 1, W) for an image
    return conv2d(rows, weight, bias).permute(0, 2, 3, 1).reshape(*pixels.shape[:-1], -1).movedim(-1, 1)


class RecurrentCrissCrossAttention(nn.Module):
    """One :class:`CrissCrossAttention` applied R times with shared weights (section 3.3).

    R = 2 connects every pair of pixels.

    Args:
        channels: number of input and output channels C.
        recurrence: number of loops R; 0 makes the module an identity without parameters.
        **attention: keyword arguments of :class:`CrissCrossAttention`.
    """

    def __init__(self, channels: int, *, recurrence: int = 2, **attention: Any):
        super().__init__()
        check_recurrence(recurrence)
        self.recurrence = recurrence
        self.attention = CrissCrossAttention(channels, **attention) if recurrence else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        """Apply the attention; the shape (N, C, *S), with one to three spatial dimensions S, is unchanged."""
        for _ in range(self.recurrence):
            x = self.attention(x)
        return x
