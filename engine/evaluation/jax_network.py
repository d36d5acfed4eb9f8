"""Run a JAX network where evaluation code expects a torch network."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import torch
from flax import nnx
from torch import Tensor

from ...models.nnx import twin


class JaxNetwork:
    """A Flax network that takes and returns torch tensors; for evaluation, where the cost of the copies is small.

    Args:
        network: a network from ``ccnet.models.nnx``.
        bf16: run convolutions in bfloat16.

    Attributes:
        mean: the mean of each input channel, as in the torch network: (1, 3, 1, 1) for RGB images.
        training: always False; :meth:`eval` and :meth:`train` are no-ops, for callers that expect a torch network.
    """

    training = False

    def __init__(self, network: Any, *, bf16: bool = False):
        self.graph, self.state = nnx.split(network)
        self.mean = torch.from_numpy(np.array(network.mean[...]))
        dtype = jnp.bfloat16 if bf16 else jnp.float32

        @jax.jit  # compiles once per image size
        def forward(state: nnx.State, images: jax.Array) -> jax.Array:
            return nnx.merge(self.graph, state)(images, train=False, dtype=dtype)["out"]

        self._forward = forward

    @classmethod
    def of(cls, network: torch.nn.Module, *, bf16: bool = False, device: str = "auto") -> "JaxNetwork":
        """Return the Flax twin of a torch network on the first device of type `device`."""
        with jax.default_device(local_devices(device)[0]):
            return cls(twin(network), bf16=bf16)

    def __call__(self, images: Tensor) -> dict[str, Tensor]:
        """Return {"out": logits (N, K, H, W)} on the CPU for images (N, C, H, W); for clips, both have a T before H."""
        logits = self._forward(self.state, jnp.asarray(images.movedim(1, -1).cpu().numpy()))
        return {"out": torch.from_numpy(np.array(logits)).movedim(-1, 1)}

    def eval(self) -> "JaxNetwork":
        """Return the network, which is always in eval mode."""
        return self

    def train(self, mode: bool = True) -> "JaxNetwork":
        """Return the network, which stays in eval mode."""
        return self


def local_devices(name: str, batch_size: int = 1) -> Sequence[Any]:
    """Return as many local devices of type `name` as can split the batch evenly; "auto" means JAX's default type.

    Raises:
        ValueError: there is no such device.
    """
    kind = None if name == "auto" else name.partition(":")[0]
    try:
        devices = jax.local_devices(backend=kind)
    except RuntimeError as error:
        raise ValueError(f"device={name}, but JAX finds no such device: {str(error).splitlines()[0]}") from error
    share = next(count for count in range(len(devices), 0, -1) if batch_size % count == 0)
    return devices[:share]
