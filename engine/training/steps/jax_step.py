"""A training step in JAX for a network defined in torch.

The torch network, its optimiser and its schedule hold the initial weights, the parameter groups and the current
hyperparameters. The step itself (forward, backward and update) runs in JAX over the local devices.
:meth:`JaxStep.write_back` copies weights and optimiser state back to torch, so that checkpoints have the same format.
"""

from collections.abc import Callable, Iterable, Sequence
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np
import optax
import torch
from flax import nnx
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from torch import Tensor

from ....models.nnx import state_dict, twin
from ....models.nnx.layers import hold_statistics
from ....models.nnx.torch_arrays import from_torch, to_torch
from ...evaluation.jax_network import JaxNetwork
from ...runtime.memory import process_peak_mib
from ...runtime.provenance import provenance
from .nonfinite import Outcome

# The per-parameter state of torch's optimisers, under torch's names.
_KEPT: dict[type[torch.optim.Optimizer], tuple[str, ...]] = {
    torch.optim.SGD: ("momentum_buffer",),
    torch.optim.AdamW: ("exp_avg", "exp_avg_sq"),
}
_UNSUPPORTED = ("dampening", "maximize", "amsgrad")
_Tree = dict[str, Any]


class JaxStep:
    """A training step that performs one optimiser update per call, on batches of torch tensors.

    Args:
        network: the torch network to start from.
        criterion: a loss from ``losses``: (output, labels) -> total, terms.
        optimizer: torch's SGD or AdamW over the parameters to train, with the state to continue from.
        devices: the devices that each batch is split across.
        seed: the dropout seed.
        bf16: run convolutions in bfloat16; weights, losses and updates stay in float32.
        clip_norm: the maximum gradient norm over all parameters, for clipping; None to disable.
        held: names of the torch modules that stay in eval mode; in JAX, this only affects batch norms.

    Raises:
        ValueError: the optimiser has no counterpart in JAX.
    """

    def __init__(
        self,
        network: torch.nn.Module,
        criterion: Callable,
        optimizer: torch.optim.Optimizer,
        *,
        devices: Sequence[Any],
        seed: int,
        bf16: bool = False,
        clip_norm: float | None = None,
        held: Iterable[str] = (),
    ):
        if type(optimizer) not in _KEPT or any(g.get(key) for g in optimizer.param_groups for key in _UNSUPPORTED):
            raise ValueError(
                f"framework=jax does not support {type(optimizer).__name__} with these settings: choose SGD or AdamW "
                f"without {', '.join(_UNSUPPORTED)}"
            )
        self.network, self.criterion, self.optimizer = network, criterion, optimizer
        self.seed, self.bf16, self.clip_norm = seed, bf16, clip_norm
        self._has_ramp = bool(getattr(criterion, "ramp", {}))
        self.mesh = Mesh(np.array(devices), ("batch",))
        everywhere = NamedSharding(self.mesh, PartitionSpec())
        self._split = NamedSharding(self.mesh, PartitionSpec("batch"))
        trained = {parameter for group in optimizer.param_groups for parameter in group["params"]}
        self._names = {parameter: name for name, parameter in network.named_parameters() if parameter in trained}
        flax_network = twin(network)
        hold_statistics(flax_network, held)
        graph, parameters, statistics = nnx.split(flax_network, nnx.Param, nnx.BatchStat)
        self._graph = graph
        self._state = jax.device_put((_by_name(parameters), _by_name(statistics), self._read_optimizer()), everywhere)
        self._step = jax.jit(self._update, donate_argnums=0)
        self._evaluated: JaxNetwork | None = None

    def place(self, images: Tensor, labels: Tensor) -> tuple[jax.Array, jax.Array]:
        """Shard images (N, C, H, W), converted to channels last, and labels (N, H, W) across the devices."""
        batch = images.movedim(1, -1).numpy(), labels.to(torch.int32).numpy()
        return jax.device_put(batch, self._split)

    def __call__(self, images: jax.Array, labels: jax.Array, iteration: int) -> Outcome:
        """Train on the placed batch of `iteration` (0-based); return without waiting for the devices.

        If the loss or the gradient is not finite, the update is skipped.
        """
        key = jax.random.fold_in(jax.random.key(self.seed), iteration)
        with jax.set_mesh(self.mesh):
            self._state, outcome = self._step(
                self._state, self._hyperparameters(), (images, labels), key, jnp.float32(iteration)
            )
        self.optimizer.step()  # a no-op without gradients, but torch's schedule warns if it is not called
        return outcome

    def evaluated(self) -> JaxNetwork:
        """Return the current network for validation; it is compiled once per run."""
        network = self._network(*jax.device_put(self._state[:2], self.mesh.devices[0]))
        if self._evaluated is None:
            self._evaluated = JaxNetwork(network, bf16=self.bf16)
        self._evaluated.state = nnx.state(network)
        return self._evaluated

    def write_back(self) -> None:
        """Copy the weights and the optimiser state into the torch network and its optimiser."""
        parameters, statistics, kept = jax.device_get(self._state)
        self.network.load_state_dict(state_dict(self._network(parameters, statistics)))
        count = torch.tensor(float(kept["step"]))
        for parameter, name in self._names.items():
            entry = {key: to_torch(kept[key][name]) for key in _KEPT[type(self.optimizer)]}
            self.optimizer.state[parameter] = entry | ({"step": count.clone()} if len(entry) > 1 else {})

    def peak_memory_mib(self) -> float:
        """Return the first device's peak memory in MiB, or the process's if the allocator keeps no statistics."""
        count = self.mesh.devices[0].memory_stats()
        if count:
            return count["peak_bytes_in_use"] / 2**20
        return process_peak_mib()

    def provenance(self) -> dict[str, str]:
        """Return JAX's device, the versions, the commit and the date; torch itself only uses the CPU."""
        device = self.mesh.devices[0]
        machine = {} if device.platform == "cpu" else {"machine": device.device_kind}
        return provenance(torch.device("cpu")) | machine | {"jax": jax.__version__}

    def _read_optimizer(self) -> dict[str, Any]:
        """Return the optimiser state, with zeros for parameters that have not been updated yet."""
        entries = {name: self.optimizer.state.get(parameter, {}) for parameter, name in self._names.items()}
        kept: dict[str, Any] = {
            key: {
                name: from_torch(torch.zeros_like(parameter) if entries[name].get(key) is None else entries[name][key])
                for parameter, name in self._names.items()
            }
            for key in _KEPT[type(self.optimizer)]
        }
        steps = [float(entry["step"]) for entry in entries.values() if "step" in entry]
        return kept | {"step": jnp.asarray(max(steps, default=0), jnp.int32)}

    def _hyperparameters(self) -> dict[str, Any]:
        """Return the current hyperparameters: learning rate and decay per parameter, the rest from the first group."""
        groups = self.optimizer.param_groups
        first = {key: np.float32(groups[0][key]) for key in ("momentum", "eps") if key in groups[0]}
        first |= {f"beta{i}": np.float32(beta) for i, beta in enumerate(groups[0].get("betas", ()), 1)}
        return first | {
            key: {self._names[parameter]: np.float32(group[key]) for group in groups for parameter in group["params"]}
            for key in ("lr", "weight_decay")
        }

    def _network(self, parameters: dict[str, Any], statistics: dict[str, Any]) -> nnx.Module:
        states = [_state(parameters, nnx.Param), _state(statistics, nnx.BatchStat)]
        return nnx.merge(self._graph, *states, copy=True)

    def _update(self, state: Any, hyper: _Tree, batch: Any, key: jax.Array, iteration: Any) -> tuple[Any, Outcome]:
        parameters, statistics, kept = state
        images, labels = batch
        if images.dtype == jnp.uint8:
            images = images.astype(jnp.float32) * np.float32(1 / 255)
        trained = {name: parameters[name] for name in self._names.values()}

        def objective(trained: _Tree) -> tuple[jax.Array, Any]:
            network = self._network(parameters | trained, statistics)
            output = network(images, train=True, key=key, dtype=jnp.bfloat16 if self.bf16 else jnp.float32)
            output = {name: jnp.moveaxis(x, -1, 1) for name, x in output.items()}
            loss, terms = self.criterion(output, labels, **({"iteration": iteration} if self._has_ramp else {}))
            return loss, (terms, _by_name(nnx.state(network, nnx.BatchStat)))

        (loss, (terms, now)), gradients = jax.value_and_grad(objective, has_aux=True)(trained)
        grad_norm = optax.tree.norm(gradients)
        if self.clip_norm is not None:
            factor = jnp.minimum(1, self.clip_norm / (grad_norm + 1e-6))  # as in torch
            gradients = jax.tree.map(lambda gradient: factor * gradient, gradients)
        updates, kept_now = self._optax(gradients, trained, kept, hyper)
        changed = parameters | cast(dict, optax.apply_updates(trained, updates)), now, kept_now
        finite = jnp.isfinite(loss) & jnp.isfinite(grad_norm)
        kept_or_changed = jax.tree.map(lambda new, old: jnp.where(finite, new, old), changed, state)
        return kept_or_changed, Outcome(loss, terms, grad_norm)

    def _optax(self, gradients: _Tree, parameters: _Tree, kept: _Tree, hyper: _Tree) -> tuple[_Tree, _Tree]:
        """Return the updates and the new optimiser state."""
        decay = jax.tree.map(lambda rate, parameter: rate * parameter, hyper["weight_decay"], parameters)
        if isinstance(self.optimizer, torch.optim.SGD):
            rule = optax.trace(hyper["momentum"], nesterov=self.optimizer.defaults["nesterov"])
            gradients = jax.tree.map(jnp.add, gradients, decay)
            moves, after = rule.update(gradients, optax.TraceState(kept["momentum_buffer"]))
            after = kept | {"momentum_buffer": cast(optax.TraceState, after).trace}
        else:
            rule = optax.scale_by_adam(hyper["beta1"], hyper["beta2"], hyper["eps"])
            before = optax.ScaleByAdamState(kept["step"], kept["exp_avg"], kept["exp_avg_sq"])
            moves, after = rule.update(gradients, before)
            moves = jax.tree.map(jnp.add, moves, decay)
            after = cast(optax.ScaleByAdamState, after)
            after = {"exp_avg": after.mu, "exp_avg_sq": after.nu, "step": after.count}
        return jax.tree.map(lambda rate, move: -rate * move, hyper["lr"], moves), after


def _by_name(state: nnx.State) -> dict[str, Any]:
    return {".".join(map(str, path)): variable[...] for path, variable in nnx.to_flat_state(state)}


def _state(arrays: dict[str, Any], kind: type[nnx.Variable]) -> nnx.State:
    return nnx.from_flat_state([(tuple(name.split(".")), kind(array)) for name, array in arrays.items()])
