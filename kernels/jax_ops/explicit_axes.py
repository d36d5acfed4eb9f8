"""Support for meshes with explicit axis types, on which JAX tracks the sharding of every array in its type."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
from jax import Array
from jax.sharding import NamedSharding, PartitionSpec


def with_automatic_axes(function: Callable[..., Array], arrays: Sequence[Array], spec: PartitionSpec) -> Array:
    """Call ``function`` with all explicit mesh axes of its arrays made automatic, so that XLA distributes the work.

    Without this, JAX rejects products over sharded axes and arrays with different shardings.

    Args:
        function: maps the arrays to the result.
        arrays: the arguments.
        spec: the partition spec of the result; ignored if no axis is explicit.
    """
    meshes = [jax.typeof(array).sharding.mesh for array in arrays]
    mesh = next((mesh for mesh in meshes if mesh.explicit_axes), None)
    if mesh is None:
        return function(*arrays)
    place = NamedSharding(mesh, spec)
    automatic: Any = jax.sharding.auto_axes(function, axes=mesh.explicit_axes, out_sharding=place)
    return automatic(*arrays)
