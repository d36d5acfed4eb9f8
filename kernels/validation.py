"""Validation of a call's arguments before any work starts.

Messages are formatted only on failure, because the checks run on every call, including under torch.compile.
"""

import sys
from collections.abc import Mapping, Sequence
from operator import index
from typing import Any

from .call import ArrayLike, Options, dtype_name
from .precision import float32_precision

BACKENDS = ("auto", "triton", "reference")
DTYPES = ("float16", "bfloat16", "float32", "float64")
MAX_SPATIAL_AXES = 3


def checked_options(
    arrays: Mapping[str, ArrayLike],
    axes: Sequence[int] | None,
    scale: float | ArrayLike,
    channel_axis: int,
    backend: str,
) -> Options:
    """Return a call's options; raise ValueError unless its arrays and axes are consistent.

    Args:
        arrays: "query", "key" and, if the call has one, "value".
        axes, scale, channel_axis, backend: as passed to the public functions.
    """
    check_backend(backend)
    number = _checked_scale(scale)
    spatial = _check_arrays(arrays, channel_axis)
    return Options(_checked_axes(axes, spatial), number, float32_precision(), channel_axis, backend)


def check_residual(value: ArrayLike, residual: ArrayLike, gamma: ArrayLike) -> None:
    """Raise ValueError unless ``residual`` has the shape of ``value``, and ``gamma`` a single element.

    Their dtypes must be floating-point; in torch, all three must be on one device.
    """
    if residual.shape != value.shape:
        raise ValueError(f"residual must have the shape of value, got {tuple(residual.shape)} and {tuple(value.shape)}")
    if any(size != 1 for size in gamma.shape):
        raise ValueError(f"gamma must have exactly one element, got shape {tuple(gamma.shape)}")
    for name, array in (("residual", residual), ("gamma", gamma)):
        dtype = dtype_name(array)
        if dtype not in DTYPES:
            raise ValueError(f"expected {name} in {', '.join(DTYPES)}, got {dtype}: cast it first")
    if is_torch(value) and not value.device == residual.device == gamma.device:
        raise ValueError(
            f"value, residual and gamma must be on the same device, got {value.device}, {residual.device} and "
            f"{gamma.device}: move them first"
        )


def checked_position(position: Sequence[int], query: ArrayLike, channel_axis: int) -> tuple[int, ...]:
    """Return ``position``; raise ValueError unless it consists of one index per spatial axis, each inside the image."""
    position = integers("position", position)
    spatial = _without_channels(tuple(query.shape), channel_axis)[1:]
    if len(position) != len(spatial) or not all(0 <= p < s for p, s in zip(position, spatial, strict=True)):
        raise ValueError(f"position {position} is outside the image: pass one index per axis of {spatial}")
    return position


def check_backend(backend: str) -> None:
    """Raise ValueError unless ``backend`` is one of ``BACKENDS``."""
    if backend not in BACKENDS:
        raise ValueError(f"backend {backend!r} is unknown: choose one of {', '.join(BACKENDS)}")


def is_torch(array: Any) -> bool:
    """Return whether the array is a torch tensor, without importing torch."""
    torch = sys.modules.get("torch")
    return torch is not None and isinstance(array, torch.Tensor)


def is_jax(array: Any) -> bool:
    """Return whether the array is a JAX array or, once JAX has been imported, a NumPy array."""
    jax = sys.modules.get("jax")
    return jax is not None and (isinstance(array, jax.Array) or type(array).__module__ == "numpy")


def _check_arrays(arrays: Mapping[str, ArrayLike], channel_axis: int) -> tuple[int, ...]:
    """Return the spatial sizes S; raise ValueError unless the arrays agree in shape, dtype and device."""
    if channel_axis not in (1, -1):
        raise ValueError(f"channel_axis is {channel_axis}: use 1 for (N, C, *S) or -1 for (N, *S, C)")
    layout = "(N, C, *S)" if channel_axis == 1 else "(N, *S, C)"

    query = arrays["query"]
    shape = tuple(query.shape)
    if not 1 <= len(shape) - 2 <= MAX_SPATIAL_AXES:
        raise ValueError(f"expected {layout} with one to three spatial axes S, got {_shapes(arrays)}")
    if tuple(arrays["key"].shape) != shape:
        raise ValueError(f"query and key must have the same shape, got {_shapes(arrays)}")
    batch_and_space = _without_channels(shape, channel_axis)
    for array in arrays.values():
        own_shape = tuple(array.shape)
        if len(own_shape) != len(shape) or _without_channels(own_shape, channel_axis) != batch_and_space:
            raise ValueError(
                f"query, key and value must agree in N and S of {layout}, got {_shapes(arrays)}"
                + _hint(arrays, channel_axis)
            )
    channels = [array.shape[channel_axis] for array in arrays.values()]
    if any(size == 0 for size in (*channels, *batch_and_space[1:])):
        raise ValueError(f"channels and spatial sizes must be at least 1, got {_shapes(arrays)}")

    on_torch = is_torch(query)
    for array in arrays.values():
        if array.dtype != query.dtype:
            raise ValueError(
                f"query, key and value must have the same dtype, got {_listed(arrays, 'dtype')}: cast them first"
            )
        # JAX checks devices itself, and traced arrays have none.
        if on_torch and array.device != query.device:
            raise ValueError(
                f"query, key and value must be on the same device, got {_listed(arrays, 'device', ' on')}: "
                "move them first"
            )
    dtype = dtype_name(query)
    if dtype not in DTYPES:
        raise ValueError(f"expected {', '.join(DTYPES)}, got {dtype}: cast query, key and value first")
    return batch_and_space[1:]


def _checked_scale(scale: Any) -> Any:
    """Return ``scale``, as a number if it is NumPy's; raise ValueError unless it is a number or has one element."""
    if isinstance(scale, float | int):
        return scale
    if not hasattr(scale, "__float__") or any(size != 1 for size in getattr(scale, "shape", ())):
        shape = f" of shape {tuple(scale.shape)}" if hasattr(scale, "shape") else ""
        raise ValueError(f"scale must be a number or an array with one element, got {type(scale).__name__}{shape}")
    return scale.item() if type(scale).__module__ == "numpy" else scale


def _checked_axes(axes: Sequence[int] | None, spatial: tuple[int, ...]) -> tuple[int, ...]:
    """Return ``axes`` sorted, or all axes for None; raise ValueError unless they are distinct spatial axes."""
    known = range(len(spatial))
    if axes is None:
        return tuple(known)
    axes = integers("axes", axes)
    if not axes or any(axis not in known for axis in axes) or len(set(axes)) < len(axes):
        raise ValueError(
            f"axes {axes} are invalid for {len(spatial)} spatial axes of sizes {spatial}: "
            f"choose distinct ones from {tuple(known)}; batch and channels do not count"
        )
    return tuple(sorted(axes))


def integers(name: str, values: Sequence[int]) -> tuple[int, ...]:
    """Return a sequence of integers as a tuple; raise ValueError if it is anything else, such as traced values."""
    try:
        return tuple(index(value) for value in values)
    except TypeError as error:
        raise ValueError(f"{name} must be a sequence of integers, such as (0, 1), got {values!r}") from error


def _hint(arrays: Mapping[str, ArrayLike], channel_axis: int) -> str:
    """Return a hint to change ``channel_axis`` if the arrays agree in the other layout, else an empty string."""
    others = {_without_channels(tuple(array.shape), -channel_axis) for array in arrays.values()}
    return f": pass channel_axis={-channel_axis} if channels are in that position" if len(others) == 1 else ""


def _without_channels(shape: tuple[int, ...], channel_axis: int) -> tuple[int, ...]:
    return shape[:1] + shape[2:] if channel_axis == 1 else shape[:-1]


def _shapes(arrays: Mapping[str, ArrayLike]) -> str:
    return ", ".join(f"{name} {tuple(array.shape)}" for name, array in arrays.items())


def _listed(arrays: Mapping[str, ArrayLike], attribute: str, link: str = "") -> str:
    values = {name: str(getattr(array, attribute)).removeprefix("torch.") for name, array in arrays.items()}
    return ", ".join(f"{name}{link} {value}" for name, value in values.items())
