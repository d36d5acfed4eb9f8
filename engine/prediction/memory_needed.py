"""Estimate the peak memory of a forward pass without running it."""

from contextlib import nullcontext

import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.func import functional_call

from ..evaluation.cost import FusedAttention, Storages, triton_path, without_data


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
            with kernels, FusedAttention(), Storages() as storages:
                image = torch.empty(1, *shape, device=device)
                functional_call(model.eval(), state, (image,))["out"].argmax(dim=1)
    finally:
        model.train(was_training)
    return storages.peak
