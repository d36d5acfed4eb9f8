"""How XLA distributes the primitives over a device mesh: each device runs the kernels on its shard.

The batch, the spatial axes that are not attended along and the value channels may be sharded. Other axes are gathered,
since every position needs whole lines and all query channels.
"""

# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false
# JAX leaves custom partitioning untyped.

import zlib
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import jax
import numpy as np
from jax import Array
from jax._src import dispatch  # pyright: ignore[reportPrivateImportUsage]
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
        taken, made = kinds(len(arrays), **parameters)
        space = [f"s{axis}" for axis in range(arrays[0].ndim - 2)]
        attended = [space[axis] for axis in options.axes]

        gpu = current_gpu()  # XLA calls ``partition`` later, when it compiles the program

        def run(_: Array, *arrays: Array) -> list[Array]:
            """Call ``function`` on one device; the first argument only names the call."""
            with running_on(gpu), usual_promotion():
                return function(*arrays, options=options, **parameters)

        def run_without_mesh(*arrays: Array) -> list[Array]:
            """Call ``run`` outside of the mesh that is set: explicit axes would annotate what is already one shard."""
            with jax.sharding.use_abstract_mesh(_NO_MESH):
                return run(*arrays)

        def partition(mesh: Any, arguments: Sequence[Any], results: Sequence[Any]) -> Any:
            """Return the mesh, the per-device function, and the shardings of its results and of its arrays."""
            named, *found = [argument.sharding for argument in arguments]
            if not all(isinstance(sharding, NamedSharding) for sharding in (named, *found)):
                # XLA passes other shardings if it has no mesh; they already follow the rule.
                return mesh, run_without_mesh, [result.sharding for result in results], (named, *found)
            *lines, channels = _spec(found[2], arguments[3].ndim)
            others = _spec(found[0], arguments[1].ndim)[:-1]
            kept = [own if own is not None else other for own, other in zip(lines, others, strict=True)]
            lines = _distinct(None if axis - 1 in options.axes else names for axis, names in enumerate(kept))
            over = _names(channels)
            if set(over) & {name for line in lines for name in _names(line)}:
                channels, over = None, ()

            def shard(kind: str) -> NamedSharding:
                """Return the sharding of arrays of this kind."""
                last = channels if kind == "value" else None
                return NamedSharding(mesh, PartitionSpec() if kind == "gamma" else PartitionSpec(*lines, last))

            def run_shard(name: Array, *arrays: Array) -> list[Array]:
                """Call ``function`` on this device's shard, and all-reduce its sums over value channels."""
                made_here = run_without_mesh(name, *arrays)
                if not over or made[0] == "value":
                    return made_here
                sums = zip(made, made_here, strict=True)
                with jax.sharding.use_abstract_mesh(_NO_MESH):
                    return [array if kind == "value" else jax.lax.psum(array, over) for kind, array in sums]

            whole = NamedSharding(mesh, PartitionSpec())
            return mesh, run_shard, [shard(kind) for kind in made], (whole, *(shard(kind) for kind in taken))

        inputs = ["", *(_factors(kind, space) for kind in taken)]  # the name has no axes
        outputs = [_factors(kind, space) for kind in made]
        gathered = {*attended, "d", "t", "u", "g"}
        rule = custom_partitioning(run)
        rule.def_partition(
            partition,
            sharding_rule=f"{', '.join(inputs)} -> {', '.join(outputs)}",
            need_replication_factors=tuple(
                factor for factor in dict.fromkeys(" ".join([*inputs, *outputs]).split()) if factor in gathered
            ),
        )
        return rule(_name((function.__name__, options, parameters, str(gpu))), *arrays)

    return lowered


def needs_devices(primitive: Primitive) -> None:
    """Declare that the lowering of a primitive depends on the devices, as that of custom partitioning does."""
    dispatch.prim_requires_devices_during_lowering.add(primitive)  # JAX has no public function for it


def _name(what: object) -> np.uint32:
    """Return a number that distinguishes different calls in JAX's compilation cache.

    Until XLA partitions a program, the program contains only the address of a Python function in place of each call. If
    the cache key omits these addresses (``jax_remove_custom_partitioning_ptr_from_cache_key``), the cache would return
    a program compiled for another scale, GPU or version of Triton.
    """
    return np.uint32(zlib.crc32(repr((what, triton_version())).encode()))


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
