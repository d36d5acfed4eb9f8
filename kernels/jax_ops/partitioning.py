"""How XLA distributes the primitives over a device mesh: each device runs the kernels on its shard.

The batch, the spatial axes that are not attended along and the value channels may be sharded. Other axes are gathered,
since every position needs whole lines and all query channels.
"""

import zlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import jax
import numpy as np
from jax import Array
from jax._src import dispatch
from jax.experimental.custom_partitioning import custom_partitioning
from jax.extend.core import Primitive
from jax.sharding import NamedSharding, PartitionSpec

from ..call import Options
from ..launches.tile_tables import triton_version
from .promotion import usual_promotion
from .targets import current_gpu, running_on

_NO_MESH = jax.sharding.AbstractMesh((), ())
# The sharding factor of the last axis, by kind of array; only "c" may be sharded.
_LAST = {"query": "d", "value": "c", "stats": "t", "delta": "u"}


def partitioned(
    function: Callable[..., list[Array]], kinds: Callable[..., tuple[Sequence[str], Sequence[str]]]
) -> Callable[..., list[Array]]:
    """Return a lowering of a primitive that XLA can partition.

    Args:
        function: the lowering on one device, called with the primitive's arrays and parameters.
        kinds: called with the number of arrays and the parameters; returns the kind of each array and of each result:
            "query" (N, *S, D), "value" (N, *S, C), "stats" (N, *S, 2), "delta" (N, *S, 1) or "gamma" (1,). If the
            first result is not a "value", results without value channels, such as "delta", are sums over these
            channels and are all-reduced when the channels are sharded.
    """

    def lowered(*arrays: Array, options: Options, **parameters: Any) -> list[Array]:
        """Call ``function`` under a rule that tells XLA which axes of its arrays may be sharded."""
        array_kinds, result_kinds = kinds(len(arrays), **parameters)
        gpu = current_gpu()  # XLA partitions the call later, when it compiles the program
        call = _PartitionedCall(function, options, parameters, array_kinds, result_kinds, gpu)
        partitionable = custom_partitioning(call.run)
        sharding_rule = _rule(array_kinds, result_kinds, arrays[0].ndim - 2, options.axes)
        partitionable.def_partition(call.partition, **sharding_rule)
        return partitionable(_name((function.__name__, options, parameters, str(gpu))), *arrays)

    return lowered


@dataclass(frozen=True, eq=False)  # hashable, although the parameters are not
class _PartitionedCall:
    """A call of a lowering that each device runs on its own shard.

    The first array that the methods take only names the call; see :func:`_name`.

    Attributes:
        function, options, parameters: the lowering and its arguments besides the arrays.
        array_kinds, result_kinds: see :func:`partitioned`.
        gpu: the device to lower for.
    """

    function: Callable[..., list[Array]]
    options: Options
    parameters: dict[str, Any]
    array_kinds: Sequence[str]
    result_kinds: Sequence[str]
    gpu: Any

    def run(self, name: Array, *arrays: Array) -> list[Array]:
        """Run the call on one device."""
        with running_on(self.gpu), usual_promotion():
            return self.function(*arrays, options=self.options, **self.parameters)

    def run_without_mesh(self, name: Array, *arrays: Array) -> list[Array]:
        """Run the call outside of the mesh that is set: explicit axes would annotate what is already one shard."""
        with jax.sharding.use_abstract_mesh(_NO_MESH):
            return self.run(name, *arrays)

    def run_channel_shard(self, over: tuple[str, ...], name: Array, *arrays: Array) -> list[Array]:
        """Run the call on a shard of the value channels, and all-reduce its partial sums over the axes ``over``."""
        results = self.run_without_mesh(name, *arrays)
        with jax.sharding.use_abstract_mesh(_NO_MESH):
            return [
                array if kind == "value" else jax.lax.psum(array, over)
                for kind, array in zip(self.result_kinds, results, strict=True)
            ]

    def partition(self, mesh: Any, arguments: Sequence[Any], results: Sequence[Any]) -> Any:
        """Return the mesh, the per-device function, and the shardings of its results and of its arrays."""
        shardings = [argument.sharding for argument in arguments]
        if not all(isinstance(sharding, NamedSharding) for sharding in shardings):
            # XLA passes other shardings if it has no mesh; they already follow the rule.
            return mesh, self.run_without_mesh, [result.sharding for result in results], tuple(shardings)
        _, query, _, value, *_ = arguments
        layout = _layout(query, value, self.options.axes)
        over = _names(layout.channels)
        sums_channels = over and self.result_kinds[0] != "value"
        run_shard = partial(self.run_channel_shard, over) if sums_channels else self.run_without_mesh
        array_specs = (PartitionSpec(), *map(layout.spec, self.array_kinds))
        result_shardings = [NamedSharding(mesh, layout.spec(kind)) for kind in self.result_kinds]
        return mesh, run_shard, result_shardings, tuple(NamedSharding(mesh, spec) for spec in array_specs)


class _Layout(NamedTuple):
    """How the arrays of a call are sharded.

    Attributes:
        lines: the mesh axes of the batch and of each spatial axis, which all arrays share.
        channels: the mesh axes of the value channels.
    """

    lines: list[Any]
    channels: Any

    def spec(self, kind: str) -> PartitionSpec:
        """Return the partition spec of arrays of this kind."""
        if kind == "gamma":
            return PartitionSpec()
        return PartitionSpec(*self.lines, self.channels if kind == "value" else None)


def _layout(query: Any, value: Any, axes: Sequence[int]) -> _Layout:
    """Return the layout that is closest to the shardings of query and value, and has whole lines along ``axes``."""
    *of_value, channels = _spec(value.sharding, value.ndim)
    of_query = _spec(query.sharding, query.ndim)[:-1]
    shared = [of_query[axis] if names is None else names for axis, names in enumerate(of_value)]
    lines = _distinct(None if axis - 1 in axes else names for axis, names in enumerate(shared))
    taken = {name for line in lines for name in _names(line)}
    return _Layout(lines, None if taken & set(_names(channels)) else channels)


def _rule(
    array_kinds: Sequence[str], result_kinds: Sequence[str], dimensions: int, axes: Sequence[int]
) -> dict[str, Any]:
    """Return the arguments of ``def_partition`` that name the axes of all arrays, and those to gather."""
    space = [f"s{axis}" for axis in range(dimensions)]
    inputs = ["", *(_factors(kind, space) for kind in array_kinds)]  # the name of the call has no axes
    outputs = [_factors(kind, space) for kind in result_kinds]
    gathered = {*(space[axis] for axis in axes), "d", "t", "u", "g"}
    factors = dict.fromkeys(" ".join([*inputs, *outputs]).split())
    return {
        "sharding_rule": f"{', '.join(inputs)} -> {', '.join(outputs)}",
        "need_replication_factors": tuple(factor for factor in factors if factor in gathered),
    }


def needs_devices(primitive: Primitive) -> None:
    """Declare that the lowering of a primitive depends on the devices, as that of custom partitioning does."""
    dispatch.prim_requires_devices_during_lowering.add(primitive)  # JAX has no public function for it


def _name(call: object) -> np.uint32:
    """Return a number that distinguishes different calls in JAX's compilation cache.

    Until XLA partitions a program, the program contains only the address of a Python function in place of each call. If
    the cache key omits these addresses (``jax_remove_custom_partitioning_ptr_from_cache_key``), the cache would return
    a program compiled for another scale, GPU or version of Triton.
    """
    return np.uint32(zlib.crc32(repr((call, triton_version())).encode()))


def _factors(kind: str, space: Sequence[str]) -> str:
    return "g" if kind == "gamma" else " ".join(("n", *space, _LAST[kind]))


def _spec(sharding: NamedSharding, rank: int) -> list[Any]:
    """Return one entry per axis of a sharding's partition spec."""
    return [*sharding.spec, *[None] * (rank - len(sharding.spec))]


def _distinct(spec: Iterable[Any]) -> list[Any]:
    """Return a partition spec in which each mesh axis keeps only its first place."""
    used: set[str] = set()
    kept: list[Any] = []
    for entry in spec:
        names = tuple(name for name in _names(entry) if name not in used)
        used.update(names)
        kept.append(names or None)
    return kept


def _names(entry: Any) -> tuple[str, ...]:
    """Return the mesh axes in one entry of a partition spec."""
    return () if entry is None else (entry,) if isinstance(entry, str) else tuple(entry)
