"""Estimate the peak memory of a forward pass without running it."""

import weakref
from contextlib import nullcontext

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.func import functional_call
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from ..evaluation.cost import FusedAttention, triton_path, without_data


def peak_bytes(model: nn.Module, shape: tuple[int, ...]) -> int:
    """Return the peak memory in bytes, without parameters, of a forward pass in eval mode and the argmax of its logits.

    Args:
        model: the network, on the device that it will run on; left unchanged.
        shape: (C, H, W) or (C, T, H, W).
    """
    device = next(model.parameters()).device
    was_training = model.training
    try:
        with FakeTensorMode(allow_non_fake_inputs=True), torch.no_grad():
            state = without_data(model, device)
            kernels = triton_path(model) if device.type == "cuda" else nullcontext()
            with kernels, FusedAttention(), _Peak() as live:
                image = torch.empty(1, *shape, device=device)
                functional_call(model.eval(), state, (image,))["out"].argmax(dim=1)
    finally:
        model.train(was_training)
    return live.peak


class _Peak(TorchDispatchMode):
    """Track the peak number of bytes in the storages of tensors created in this mode."""

    def __init__(self):
        super().__init__()
        self.held, self.peak = 0, 0
        self._known: set[int] = set()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            if isinstance(tensor, Tensor):
                storage = tensor.untyped_storage()
                if storage._cdata not in self._known:
                    self._known.add(storage._cdata)
                    self.held += storage.nbytes()
                    weakref.finalize(storage, self._freed, storage._cdata, storage.nbytes())
        self.peak = max(self.peak, self.held)
        return result

    def _freed(self, key: int, size: int) -> None:
        self._known.discard(key)
        self.held -= size
