"""Count the cost of a network without running it: parameters, FLOPs, and memory in training and in prediction."""

import importlib.util
import weakref
from collections.abc import Generator
from contextlib import contextmanager, nullcontext
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.func import functional_call
from torch.nn.functional import scaled_dot_product_attention
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

from ...models.criss_cross import CrissCrossAttention
from .eval_mode import in_eval_mode


class Cost(NamedTuple):
    """The cost of a network for one input.

    Attributes:
        parameters: the number of parameters, in millions.
        gflops: FLOPs of the convolutions and the attention in a forward pass in eval mode, in 10^9; a multiply-add
            counts as two.
        saved_mb: memory that a forward pass in training mode saves for the backward pass, in 10^6 bytes, in float32
            and with the Triton attention kernels, excluding the parameters.
    """

    parameters: float
    gflops: float
    saved_mb: float


def network_cost(model: nn.Module, shape: tuple[int, ...]) -> Cost:
    """Return the cost for one input of shape (C, H, W) or (C, T, H, W); the network is left unchanged."""
    with in_eval_mode(model), FakeTensorMode(allow_non_fake_inputs=True):
        state = _without_data(model, torch.device("cpu"))  # the counts do not depend on the device
        image, pair = torch.empty(1, *shape), torch.empty(2, *shape)  # batch norm after global pooling needs two
        with FlopCounterMode(display=False) as counter, _AttentionFormula():
            functional_call(model, state, (image,))
        with _triton_path(model), Storages() as storages, _FusedAttention():
            output = functional_call(model.train(), state, (pair,))
        known = {array.untyped_storage()._cdata for array in (pair, *state.values())}
        saved = sum(size for key, size in storages.alive().items() if key not in known) / len(pair)
        del output
    parameters = sum(parameter.numel() for parameter in model.parameters())
    return Cost(parameters / 1e6, counter.get_total_flops() / 1e9, saved / 1e6)


def peak_bytes(model: nn.Module, shape: tuple[int, ...]) -> int:
    """Return the peak memory in bytes, without parameters, of a forward pass in eval mode and the argmax of its logits.

    Args:
        model: the network, on the device that it will run on; left unchanged.
        shape: (C, H, W) or (C, T, H, W).
    """
    device = next(model.parameters()).device
    with in_eval_mode(model), FakeTensorMode(allow_non_fake_inputs=True), torch.no_grad():
        state = _without_data(model, device)
        kernels = _triton_path(model) if device.type == "cuda" else nullcontext()
        with kernels, _FusedAttention(), Storages() as storages:
            image = torch.empty(1, *shape, device=device)
            functional_call(model, state, (image,))["out"].argmax(dim=1)
    return storages.peak


def _without_data(model: nn.Module, device: torch.device) -> dict[str, Tensor]:
    """Return placeholders for the parameters and buffers of a network; call this under ``FakeTensorMode``."""
    arrays = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    return {
        name: torch.empty_like(array, device=device).requires_grad_(array.requires_grad)
        for name, array in arrays.items()
    }


class Storages(TorchDispatchMode):
    """Track the storages of the tensors that operations return in this mode, until they are freed.

    Attributes:
        peak: the largest number of bytes that were in use after an operation.
    """

    def __init__(self):
        super().__init__()
        self._sizes: dict[int, int] = {}
        self._used = self.peak = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            if isinstance(tensor, Tensor):
                storage = tensor.untyped_storage()
                if storage._cdata not in self._sizes:
                    self._sizes[storage._cdata] = storage.nbytes()
                    self._used += storage.nbytes()
                    weakref.finalize(storage, self._freed, storage._cdata)
        self.peak = max(self.peak, self._used)
        return result

    def _freed(self, key: int) -> None:
        self._used -= self._sizes.pop(key)

    def alive(self) -> dict[int, int]:
        """Return the size in bytes of each storage that is still referenced."""
        return dict(self._sizes)


class _AttentionFormula(TorchFunctionMode):
    """Count full attention as one score matrix and one weighted sum.

    The networks call the library kernel once per slab of value channels and recompute the scores every time; the FLOPs
    of the algorithm do not include this recomputation.
    """

    def __torch_function__(self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None) -> Any:
        if func is scaled_dot_product_attention:
            query, key, value = args
            return (query[:, :1] @ key[:, :1].mT).softmax(dim=-1) @ value
        return func(*args, **(kwargs or {}))


class _FusedAttention(TorchFunctionMode):
    """Dispatch fake tensors to fused attention, as with real tensors, instead of materialising the attention map."""

    def __torch_function__(self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None) -> Any:
        if func is scaled_dot_product_attention:
            return torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(*args, **(kwargs or {}))[0]
        return func(*args, **(kwargs or {}))


@contextmanager
def _triton_path(model: nn.Module) -> Generator[None]:
    """Use the Triton operators on fake tensors: no kernel is launched, so no GPU is needed."""
    if importlib.util.find_spec("triton") is None:
        yield
        return
    modules = [module for module in model.modules() if isinstance(module, CrissCrossAttention)]
    backends = [module.backend for module in modules]
    for module in modules:
        module.backend = "triton"
    try:
        yield
    finally:
        for module, backend in zip(modules, backends, strict=True):
            module.backend = backend
