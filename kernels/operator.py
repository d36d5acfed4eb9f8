"""The public functions, which validate their arguments and dispatch to the framework of the arrays.

This module imports no framework, so that ``import ccnet.kernels`` stays cheap.
"""

from collections.abc import Sequence
from typing import Any

from .call import Array, ArrayLike, Call
from .validation import check_residual, checked_options, checked_position, is_jax, is_torch


def criss_cross_attention(
    query: Array,
    key: Array,
    value: Array,
    *,
    axes: Sequence[int] | None = None,
    scale: float | ArrayLike = 1.0,
    channel_axis: int = 1,
    backend: str = "auto",
) -> Array:
    """Attend from every position to the positions that share all but one of its coordinates.

        out[u] = sum_j softmax_j(scale * query[u] . key[j]) value[j],
        for j = u and every j that differs from u along exactly one of ``axes``

    A single softmax runs over all these keys. u itself is included once rather than once per axis, which gives
    H + W - 1 keys in 2D and T + H + W - 2 in 3D. As in the paper, scores are not divided by sqrt(D). In 2D, one call
    covers a row and a column; two successive calls (R = 2) connect every pair of positions.

    Args:
        query: (N, D, *S) with one to three spatial axes S, in float32, float64, float16 or bfloat16.
        key: same shape, dtype and device as ``query``.
        value: (N, C, *S), same dtype and device.
        axes: indices into S of the axes to attend along; all of them by default. On (H, W), ``axes=(1,)`` attends
            within rows and ``axes=(0,)`` within columns.
        scale: factor applied to the scores; an array with one element may be learned.
        channel_axis: 1 for (N, C, *S), -1 for (N, *S, C); the same for all three arrays.
        backend: "triton" selects the fused kernels (NVIDIA GPU of compute capability 8.0 or newer, with torch also
            AMD gfx942 and gfx950; float32, float16, bfloat16; D up to 128), "reference" the formula in plain tensor
            code. "auto" uses the kernels on a GPU that supports them, optimised operators for all but small torch
            tensors on a CPU, and the reference otherwise; on a GPU, it logs once why it falls back to the reference.
            Under torch.func transforms (grad, vmap, jvp, ...) and torch's forward mode, every backend uses the
            reference, as it does for derivatives in JAX other than first ones in reverse mode; on meta tensors, every
            backend only infers the output's shape.

    Returns:
        The attention output, same shape and dtype as ``value``. Softmax and sums are computed in float32 (float64
        for float64 input).

    Raises:
        ValueError: shapes, dtypes or devices do not match, an axis or the backend is unknown, or the kernels cannot
            run this call and backend is "triton".

    Cost: 2 (D + C) FLOPs per position and key. Besides the inputs, the kernels save the output and two float32 numbers
    per position for the backward pass; the other implementations save the attention weights, (N, *S, number of keys).
    No implementation materialises a map over all pairs of positions. The kernels read channels-last memory in place
    (including slices of a projection buffer), copy other layouts to channels-last once, and return channels-last
    results; they support first derivatives only. JAX arrays are always dense: (N, *S, C) with ``channel_axis=-1`` is
    read in place, and other layouts are copied. JAX chooses the backend at lowering time, so the same jitted function
    runs on CPU and GPU.

    Source: Huang et al., CCNet, TPAMI 2020, arXiv:1811.11721, equations 1 and 2 (without the residual), and
    section 3.5 for three axes.

    Example:
        >>> query, key = torch.randn(2, 1, 8, 12, 9).unbind(0)
        >>> criss_cross_attention(query, key, torch.randn(1, 64, 12, 9)).shape
        torch.Size([1, 64, 12, 9])
    """
    operator = _operator(query, key, value)
    options = checked_options({"query": query, "key": key, "value": value}, axes, scale, channel_axis, backend)
    return operator.attend(Call(query, key, value, options))


def criss_cross_residual(
    query: Array,
    key: Array,
    value: Array,
    residual: Array,
    gamma: Array,
    *,
    axes: Sequence[int] | None = None,
    scale: float | ArrayLike = 1.0,
    channel_axis: int = 1,
    backend: str = "auto",
) -> Array:
    """Attend, scale by gamma and add a residual, as a criss-cross module does after its projections.

        result = gamma * criss_cross_attention(query, key, value) + residual

    The kernels fuse this into the attention at the cost of one extra read, of ``residual``; separate operations would
    also write and re-read the intermediate results.

    Args:
        query, key, value, axes, scale, channel_axis, backend: as for :func:`criss_cross_attention`.
        residual: same shape and device as ``value``; its dtype may differ.
        gamma: array with a single element, of any shape and floating-point dtype, on the same device.

    Returns:
        The sum, same shape and dtype as ``residual``.

    Raises:
        ValueError: as for :func:`criss_cross_attention`, or ``residual`` or ``gamma`` has the wrong shape or device.

    Source: Huang et al., CCNet, TPAMI 2020, arXiv:1811.11721, equation 2; gamma starts at 0 in the authors'
    code.
    """
    operator = _operator(query, key, value, residual, gamma)
    options = checked_options({"query": query, "key": key, "value": value}, axes, scale, channel_axis, backend)
    check_residual(value, residual, gamma)
    return operator.attend(Call(query, key, value, options, residual, gamma))


def criss_cross_weights(
    query: Array,
    key: Array,
    position: Sequence[int],
    *,
    recurrence: int = 1,
    axes: Sequence[int] | None = None,
    scale: float | ArrayLike = 1.0,
    channel_axis: int = 1,
    backend: str = "auto",
) -> Array:
    """Return how much each position of the image contributes to ``position`` after R loops.

        weights = row ``position`` of A^R,   with A the (positions x positions) attention matrix of one loop

    A itself is never materialised: the row is propagated along the lines R times. R = 1 gives a cross, R = 2 covers
    the image (Fig. 7 of the paper).

    Args:
        query: (N, D, *S), as for :func:`criss_cross_attention`.
        key: like ``query``.
        position: one index per spatial axis.
        recurrence: number of loops R, at least 1; every loop uses the same query and key.
        axes, scale, channel_axis: as for :func:`criss_cross_attention`.
        backend: as for :func:`criss_cross_attention`, but without effect: a single row needs no kernel.

    Returns:
        Non-negative weights, (N, *S), that sum to 1 per image; float32 (float64 for float64 input).

    Raises:
        ValueError: as for :func:`criss_cross_attention`, except that no kernel has to run; or the position is outside
            the image, or R < 1.
    """
    operator = _operator(query, key)
    options = checked_options({"query": query, "key": key}, axes, scale, channel_axis, backend)
    position = checked_position(position, query, channel_axis)
    if not hasattr(recurrence, "__index__") or recurrence < 1:
        raise ValueError(f"recurrence is {recurrence}: set it to the number of loops, at least 1")
    return operator.attention_weights(query, key, position, recurrence, options)


def _operator(*arrays: Any) -> Any:
    """Return the module that implements the operator for the arrays; raise ValueError if they mix frameworks."""
    if all(map(is_torch, arrays)):
        from .torch_ops import dispatch

        return dispatch
    if all(map(is_jax, arrays)):
        from .jax_ops import dispatch

        return dispatch
    types = dict.fromkeys(f"{type(array).__module__}.{type(array).__name__}" for array in arrays)
    raise ValueError(f"got {' and '.join(types)}: pass only torch tensors or only jax arrays")
