"""The public operator: checks its input, then hands it to the backend that fits.

Nothing here imports a framework, so that ``import kernels`` stays cheap; an array's own framework is
necessarily loaded already, and ``sys.modules`` tells which one it is.
"""

import sys
from collections.abc import Sequence
from typing import Any, TypeVar

Array = TypeVar("Array")  # torch.Tensor or jax.Array

BACKENDS = ("auto", "triton", "reference")
MAX_SPATIAL_AXES = 3


def criss_cross_attention(
    query: Array,
    key: Array,
    value: Array,
    *,
    axes: Sequence[int] | None = None,
    scale: float = 1.0,
    channel_axis: int = 1,
    backend: str = "auto",
) -> Array:
    """Attend from every position to the positions that share all but one of its coordinates.

        out[u] = sum_j softmax_j(scale * query[u] . key[j]) value[j],
        j in {u} and every position that differs from u along exactly one of ``axes``

    One softmax runs over all these keys together, and u itself is one key, not one per axis: H + W - 1 keys
    in 2D, T + H + W - 2 in 3D. Scores are not divided by sqrt(D), as in the paper. One call reaches a row and
    a column; two calls in a row (R = 2) connect every pair of positions.

    Args:
        query: (N, D, *S), with one to three spatial axes S. float32, float64, float16 or bfloat16.
        key: like ``query``.
        value: (N, C, *S), same dtype and device.
        axes: indices into S of the lines to attend along; all of them by default. ``axes=(1,)`` on (H, W) is
            attention within rows, ``axes=(0,)`` within columns.
        scale: factor on the scores.
        channel_axis: 1 for (N, C, *S), -1 for (N, *S, C); the same for all three.
        backend: "triton" is the fused kernels (NVIDIA GPU of compute capability 8.0 or newer; float32,
            float16, bfloat16; D up to 128), "reference" the formula in plain tensor code. "auto" takes the
            kernels on a GPU that can run them, else the reference, and says so once.

    Returns:
        like ``value``. Softmax and sums run in float32 (float64 for float64 input).

    Raises:
        ValueError: shapes, dtypes or devices that do not fit together, an unknown axis or backend, backend
            "triton" where it cannot run.

    Cost: 2 (D + C) flops per position and key. For the backward pass the kernels keep the output and two
    float32 numbers per position; the reference keeps the (N, *S, number of keys) attention. Neither builds an
    N x N map. The kernels read channels-last memory (also slices of a projection buffer), copy anything else
    into it once, and return it; they can be differentiated once. JAX arrays are dense: there (N, *S, C),
    ``channel_axis=-1``, is read where it is, and other arrays are copied. What becomes of a JAX call is decided
    where it is lowered, so one jitted function runs on CPU and GPU.

    Source: Huang et al., CCNet, TPAMI 2020, arXiv:1811.11721, equations 1 and 2 (without the residual), and
    section 3.5 for three axes.

    Example:
        >>> query, key = torch.randn(2, 1, 8, 12, 9).unbind(0)
        >>> criss_cross_attention(query, key, torch.randn(1, 64, 12, 9)).shape
        torch.Size([1, 64, 12, 9])
    """
    dispatch = _dispatch(backend, query, key, value)
    spatial = _check_inputs({"query": query, "key": key, "value": value}, channel_axis)
    axes = _check_axes(axes, spatial)
    return dispatch.criss_cross_attention(query, key, value, axes, scale, channel_axis, backend)


def criss_cross_residual(
    query: Array,
    key: Array,
    value: Array,
    residual: Array,
    gamma: Array,
    *,
    axes: Sequence[int] | None = None,
    scale: float = 1.0,
    channel_axis: int = 1,
    backend: str = "auto",
) -> Array:
    """Attend, scale and add: what a criss-cross module does after its projections.

        result = gamma * criss_cross_attention(query, key, value) + residual

    On the kernels this costs one read of ``residual`` more than the attention, where separate operations
    would read and write everything again.

    Args:
        query, key, value, axes, scale, channel_axis, backend: as for :func:`criss_cross_attention`.
        residual: shaped like ``value``, on the same device; its dtype may be another one.
        gamma: one number, in an array of any shape and floating-point dtype, on the same device.

    Returns:
        like ``residual``.

    Raises:
        ValueError: as :func:`criss_cross_attention`, or ``residual`` or ``gamma`` of another shape or device.

    Source: Huang et al., CCNet, TPAMI 2020, arXiv:1811.11721, equation 2; gamma starts at 0 in the authors'
    code.
    """
    dispatch = _dispatch(backend, query, key, value, residual, gamma)
    spatial = _check_inputs({"query": query, "key": key, "value": value}, channel_axis)
    if residual.shape != value.shape:
        raise ValueError(f"residual must be shaped like value, got {tuple(residual.shape)} and {tuple(value.shape)}")
    if any(size != 1 for size in gamma.shape):
        raise ValueError(f"gamma must hold one number, got shape {tuple(gamma.shape)}")
    if _is_torch(value) and not str(value.device) == str(residual.device) == str(gamma.device):
        raise ValueError(
            f"value, residual and gamma must be on one device, got {value.device}, {residual.device} and "
            f"{gamma.device}: move them first"
        )
    axes = _check_axes(axes, spatial)
    return dispatch.criss_cross_residual(query, key, value, residual, gamma, axes, scale, channel_axis, backend)


def criss_cross_weights(
    query: Array,
    key: Array,
    position: Sequence[int],
    *,
    recurrence: int = 1,
    axes: Sequence[int] | None = None,
    scale: float = 1.0,
    channel_axis: int = 1,
    backend: str = "auto",
) -> Array:
    """Say how much every position of the image contributes to one of them, after R loops.

        weights = row ``position`` of A^R,   A the (positions x positions) attention of one loop

    A itself is never built: the row is carried through the lines, R times. R = 1 is a cross, R = 2 covers
    the image (the paper's Fig. 7).

    Args:
        query: (N, D, *S), as for :func:`criss_cross_attention`.
        key: like ``query``.
        position: one index per spatial axis.
        recurrence: R, at least 1; every loop uses the same query and key.
        axes, scale, channel_axis, backend: as for :func:`criss_cross_attention`.

    Returns:
        (N, *S) weights, non-negative, summing to 1 per image; float32 (float64 for float64 input).

    Raises:
        ValueError: as :func:`criss_cross_attention`, or a position outside the image, or R < 1.
    """
    dispatch = _dispatch(backend, query, key)
    spatial = _check_inputs({"query": query, "key": key}, channel_axis)
    axes = _check_axes(axes, spatial)
    position = tuple(position)
    if len(position) != len(spatial) or not all(0 <= p < s for p, s in zip(position, spatial, strict=True)):
        raise ValueError(f"position {position} is outside the image: give one index per axis of {spatial}")
    if recurrence < 1:
        raise ValueError(f"recurrence is {recurrence}: give the number of loops, 1 or more")
    # One row of the map is no work for a kernel.
    return dispatch.reference.criss_cross_weights(query, key, position, recurrence, axes, scale, channel_axis)


def _dispatch(name: str, *arrays: Any) -> Any:
    """The framework's own choice between backends."""
    if name not in BACKENDS:
        raise ValueError(f"backend {name!r} is unknown: choose one of {', '.join(BACKENDS)}")
    if all(map(_is_torch, arrays)):
        from . import torch_dispatch

        return torch_dispatch
    if all(map(_is_jax, arrays)):
        from . import jax_dispatch

        return jax_dispatch
    types = dict.fromkeys(f"{type(array).__module__}.{type(array).__name__}" for array in arrays)
    raise ValueError(f"got {' and '.join(types)}: give torch tensors, or jax arrays")


def _is_torch(array: Any) -> bool:
    torch = sys.modules.get("torch")
    return torch is not None and isinstance(array, torch.Tensor)


def _is_jax(array: Any) -> bool:
    jax = sys.modules.get("jax")
    return jax is not None and isinstance(array, jax.Array)


def _check_inputs(arrays: dict[str, Any], channel_axis: int) -> tuple[int, ...]:
    """Return the spatial sizes S; raise if the arrays do not fit together.

    Texts are made on failure only: this runs on every call, and under torch.compile.
    """
    if channel_axis not in (1, -1):
        raise ValueError(f"channel_axis is {channel_axis}: give 1 for (N, C, *S) or -1 for (N, *S, C)")
    layout = "(N, C, *S)" if channel_axis == 1 else "(N, *S, C)"

    query = arrays["query"]
    shape = tuple(query.shape)
    if not 1 <= len(shape) - 2 <= MAX_SPATIAL_AXES:
        raise ValueError(f"expected {layout} with one to three spatial axes S, got {_shapes(arrays)}")
    if tuple(arrays["key"].shape) != shape:
        raise ValueError(f"query and key must have the same shape, got {_shapes(arrays)}")
    batch_and_space = _without_channels(shape, channel_axis)
    for array in arrays.values():
        other = tuple(array.shape)
        if len(other) != len(shape) or _without_channels(other, channel_axis) != batch_and_space:
            raise ValueError(f"query, key and value must agree in N and S of {layout}, got {_shapes(arrays)}")
    if shape[channel_axis] == 0 or any(size == 0 for size in batch_and_space[1:]):
        raise ValueError(f"channels and spatial sizes must be at least 1, got {_shapes(arrays)}")

    for array in arrays.values():
        if array.dtype != query.dtype:
            raise ValueError(
                f"query, key and value must have one dtype, got {_listed(arrays, 'dtype')}: cast them first"
            )
        # JAX checks this itself, and a traced array has no device.
        if _is_torch(array) and array.device != query.device:
            raise ValueError(
                f"query, key and value must be on one device, got {_listed(arrays, 'device', ' on')}: move them first"
            )
    dtype = str(query.dtype).removeprefix("torch.")
    if dtype not in ("float16", "bfloat16", "float32", "float64"):
        raise ValueError(f"expected a floating-point dtype, got {dtype}")
    return batch_and_space[1:]


def _shapes(arrays: dict[str, Any]) -> str:
    return ", ".join(f"{name} {tuple(array.shape)}" for name, array in arrays.items())


def _listed(arrays: dict[str, Any], attribute: str, link: str = "") -> str:
    values = {name: str(getattr(array, attribute)).removeprefix("torch.") for name, array in arrays.items()}
    return ", ".join(f"{name}{link} {value}" for name, value in values.items())


def _without_channels(shape: tuple[int, ...], channel_axis: int) -> tuple[int, ...]:
    return shape[:1] + shape[2:] if channel_axis == 1 else shape[:-1]


def _check_axes(axes: Sequence[int] | None, spatial: tuple[int, ...]) -> tuple[int, ...]:
    if axes is None:
        return tuple(range(len(spatial)))
    known = range(len(spatial))
    axes = tuple(axes)
    if not axes or any(axis not in known for axis in axes) or len(set(axes)) < len(axes):
        raise ValueError(
            f"axes {axes} do not fit {len(spatial)} spatial axes {spatial}: "
            f"give different ones out of {tuple(known)}, which count the spatial axes alone"
        )
    return tuple(sorted(axes))
