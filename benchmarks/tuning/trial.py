"""Verify and time the passes of one call on a GPU, with the currently pinned tile."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ...kernels import criss_cross_attention, criss_cross_residual
from ...kernels.call import Call, Options
from ...kernels.launches.problem import Problem
from ...kernels.precision import float32_precision
from ...kernels.torch_ops import passes
from ...kernels.torch_ops.joined import split_like
from ...kernels.torch_ops.layouts import empty_gradients
from ..comparison.rows import largest_error
from ..timing import Stream, measure_queued


class Trial:
    """The forward or backward passes of a call, one along each axis, as a network runs them in training.

    Query, key and value are slices of one projection, and so are their gradients. The passes are launched directly,
    without autograd.

    Args:
        kernel: "forward" or "backward".
        problem: the call.
        device: the GPU; tests pass a CPU, where the kernels run in Triton's interpreter.
        copies: the number of input sets that timed calls cycle through, so that no cache can hold them.
        repeats: the number of timed calls.
        fused: whether the last forward pass adds a residual, and the backward pass has gamma.
    """

    def __init__(
        self, kernel: str, problem: Problem, device: torch.device, copies: int, repeats: int, fused: bool = True
    ):
        self.kernel, self.repeats, self.fused = kernel, repeats, fused
        self.forward, self.backward = passes.forward, passes.backward  # kernels on trial replace these
        self.options = Options(problem.axes, 1.0, float32_precision(), channel_axis=-1, backend="triton")
        self.sets = [self._inputs(problem, device) for _ in range(copies)]
        self.wanted = self._oracle(*self.sets[0])
        # The backward pass starts from the saved results of a forward pass.
        self.saved = [self._forward(call)[1:] for call, _ in self.sets] if kernel == "backward" else []

    def error(self) -> float:
        """Return the largest error on the last image against float64, relative to the largest element."""
        return largest_error((result[-1:] for result in self.run(0)), self.wanted)

    def median_us(self) -> float:
        """Return the median time of all passes on the GPU, in microseconds."""
        for i in range(3):
            self.run(i)
        return measure_queued(self.run, self.repeats, Stream()).median_us

    def is_usable(self) -> bool:
        """Return whether the GPU is still usable in this process."""
        try:
            torch.cuda.synchronize()
        except RuntimeError:
            return False
        return True

    def run(self, i: int) -> Sequence[Tensor]:
        """Launch the passes on the i-th set of inputs; return the result, or the gradients of query, key and value."""
        index = i % len(self.sets)
        call, grad = self.sets[index]
        if self.kernel == "forward":
            return self._forward(call)[:1]
        projected = call.arrays()[:3]
        gradients = split_like(empty_gradients(projected, joined=True)[0], projected, -1)
        self.backward(call, *self.saved[index], grad, gradients)
        return gradients

    def _inputs(self, problem: Problem, device: torch.device) -> tuple[Call[Tensor], Tensor]:
        """Return a call whose scores have a standard deviation of 1, and the gradient of its result."""
        dtype, widths = getattr(torch, problem.dtype), (problem.query_channels,) * 2 + (problem.value_channels,)
        size = problem.batch, *problem.spatial
        projection = torch.randn(*size, sum(widths), device=device)
        projection[..., : 2 * widths[0]] *= widths[0] ** -0.25
        query, key, value = projection.to(dtype).split(widths, dim=-1)
        residual, grad = (torch.randn(value.shape, device=device).to(dtype) for _ in range(2))
        call = Call(query, key, value, self.options)
        if self.fused:
            call = call._replace(residual=residual, gamma=torch.full((1,), 0.7, device=device))
        return call, grad

    def _forward(self, call: Call[Tensor]) -> tuple[Tensor, Tensor, Tensor]:
        """Return the result, the output that the backward pass reads, and the statistics."""
        result = None if call.residual is None else torch.empty_like(call.residual)
        out, stats = self.forward(call, result, save_out=True)
        return out if result is None else result, out, stats

    def _oracle(self, call: Call[Tensor], grad: Tensor) -> list[Tensor]:
        """Return what :meth:`run` should return for the last image, in float64."""
        query, key, value = (array[-1:].double().requires_grad_() for array in call.arrays()[:3])
        options: dict[str, Any] = {"axes": self.options.axes, "channel_axis": -1, "backend": "reference"}
        if call.residual is None or call.gamma is None:
            result = criss_cross_attention(query, key, value, **options)
        else:
            residual, gamma = call.residual[-1:].double(), call.gamma.double()
            result = criss_cross_residual(query, key, value, residual, gamma, **options)
        if self.kernel == "forward":
            return [result.detach()]
        return list(torch.autograd.grad(result, (query, key, value), grad[-1:].double()))
