"""The public operator: it checks its input and hands it to the arrays' own framework.

Nothing here imports a framework, so that ``import ccnet.kernels`` stays cheap.
"""

from collections.abc import Sequence
from typing import Any

from .call import Array, Call
from .validation import check_position, check_residual, checked_options, is_jax, is_torch


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
            kernels on a GPU that can run them, and falls back to the reference elsewhere; on a GPU it warns once.
            Under torch.func transforms (grad, vmap, jvp, ...) and in forward mode each of them is the reference; on
            meta tensors each gives shapes.

    Returns:
        like ``value``. Softmax and sums run in float32 (float64 for float64 input).

    Raises:
        ValueError: shapes, dtypes or devices do not fit together, an axis or the backend is unknown, or backend
            "triton" cannot run here.

    Cost: 2 (D + C) flops per position and key. For the backward pass the kernels keep the output and two
    float32 numbers per position; the reference keeps the (N, *S, number of keys) attention. Neither builds an
    N x N map. The kernels read channels-last memory (also slices of a projection buffer), copy anything else
    into it once, and return it; they can be differentiated once. JAX arrays are dense: (N, *S, C) with
    ``channel_axis=-1`` is read in place, other arrays are copied. JAX chooses the backend when it lowers the call,
    so one jitted function runs on CPU and GPU.

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
    scale: float = 1.0,
    channel_axis: int = 1,
    backend: str = "auto",
) -> Array:
    """Attend, scale by gamma and add a residual, as a criss-cross module does after its projections.

        result = gamma * criss_cross_attention(query, key, value) + residual

    With the kernels this costs one more read, of ``residual``, than the attention; separate operations would read
    and write everything again.

    Args:
        query, key, value, axes, scale, channel_axis, backend: as for :func:`criss_cross_attention`.
        residual: shaped like ``value``, on the same device; its dtype may differ.
        gamma: one number, in an array of any shape and floating-point dtype, on the same device.

    Returns:
        like ``residual``.

    Raises:
        ValueError: as :func:`criss_cross_attention`, or ``residual`` or ``gamma`` has another shape or device.

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
    scale: float = 1.0,
    channel_axis: int = 1,
    backend: str = "auto",
) -> Array:
    """Return how much each position of the image contributes to ``position`` after R loops.

        weights = row ``position`` of A^R,   A the (positions x positions) attention of one loop

    A itself is never built: the row is carried through the lines, R times. R = 1 gives a cross, R = 2 covers the
    image (Fig. 7 of the paper).

    Args:
        query: (N, D, *S), as for :func:`criss_cross_attention`.
        key: like ``query``.
        position: one index per spatial axis.
        recurrence: R, at least 1; every loop uses the same query and key.
        axes, scale, channel_axis, backend: as for :func:`criss_cross_attention`.

    Returns:
        (N, *S) weights, non-negative, summing to 1 per image; float32 (float64 for float64 input).

    Raises:
        ValueError: as :func:`criss_cross_attention`, or the position is outside the image, or R < 1.
    """
    operator = _operator(query, key)
    options = checked_options({"query": query, "key": key}, axes, scale, channel_axis, backend)
    position = tuple(position)
    check_position(position, query, channel_axis)
    if recurrence < 1:
        raise ValueError(f"recurrence is {recurrence}: give the number of loops, 1 or more")
    return operator.attention_weights(query, key, position, recurrence, options)


def _operator(*arrays: Any) -> Any:
    """Return the module that implements the operator for the arrays' framework; raise ValueError if they differ."""
    if all(map(is_torch, arrays)):
        from .torch_ops import dispatch

        return dispatch
    if all(map(is_jax, arrays)):
        from .jax_ops import dispatch

        return dispatch
    types = dict.fromkeys(f"{type(array).__module__}.{type(array).__name__}" for array in arrays)
    raise ValueError(f"got {' and '.join(types)}: give torch tensors, or jax arrays")
