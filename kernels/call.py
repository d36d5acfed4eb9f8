"""The record of one call: built once by ``validation.py``, taken by every layer below, in torch and in JAX."""

from typing import Any, Generic, NamedTuple, Protocol, TypeVar


class ArrayLike(Protocol):
    """The attributes that validation reads of a torch.Tensor or a jax.Array."""

    @property
    def shape(self) -> tuple[int, ...]: ...

    @property
    def dtype(self) -> Any: ...

    @property
    def device(self) -> Any: ...


Array = TypeVar("Array", bound=ArrayLike)


class Options(NamedTuple):
    """The part of a call that is not an array. Hashable, so that JAX can take it as a static argument.

    Attributes:
        axes: spatial axes to attend along, sorted; the last of them counts the position itself as a key.
        scale: factor on the scores.
        precision: how the kernels multiply float32, one of ``FLOAT32_PRECISIONS``.
        channel_axis: 1 for (N, C, *S), -1 for (N, *S, C).
        backend: "auto", "triton" or "reference".
    """

    axes: tuple[int, ...]
    scale: float
    precision: str
    channel_axis: int
    backend: str


class Call(NamedTuple, Generic[Array]):
    """One call of the operator; ``residual`` and ``gamma`` are None unless the call adds and scales.

    Attributes:
        query, key: (N, D, *S), or (N, *S, D) with ``options.channel_axis`` -1.
        value: (N, C, *S), likewise.
        options: everything else.
        residual: shaped like ``value``.
        gamma: one number, in an array of any shape.
    """

    query: Array
    key: Array
    value: Array
    options: Options
    residual: Array | None = None
    gamma: Array | None = None

    def arrays(self) -> tuple[Array, ...]:
        """Return the arrays of the call, three or five."""
        given = self.query, self.key, self.value, self.residual, self.gamma
        return tuple(array for array in given if array is not None)
