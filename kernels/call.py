"""The arguments of one call, bundled by the public operator and passed to every layer below, in torch and in JAX."""

from typing import Any, Generic, NamedTuple, Protocol, TypeVar


class ArrayLike(Protocol):
    """The attributes of a torch.Tensor or jax.Array that validation reads."""

    @property
    def shape(self) -> tuple[int, ...]: ...

    @property
    def dtype(self) -> Any: ...

    @property
    def device(self) -> Any: ...


Array = TypeVar("Array", bound=ArrayLike)


def dtype_name(array: ArrayLike) -> str:
    """Return the name of an array's dtype, such as "float16", in torch and in JAX."""
    return str(array.dtype).removeprefix("torch.")


class Options(NamedTuple):
    """The non-array arguments of a call. Hashable, so that JAX can treat them as a static argument.

    Attributes:
        axes: spatial axes to attend along, sorted; the position itself is a key on the last axis only.
        scale: factor applied to the scores.
        precision: how the kernels multiply float32 numbers, one of ``FLOAT32_PRECISIONS``.
        channel_axis: 1 for (N, C, *S), -1 for (N, *S, C).
        backend: "auto", "triton" or "reference".
    """

    axes: tuple[int, ...]
    scale: float
    precision: str
    channel_axis: int
    backend: str


class Call(NamedTuple, Generic[Array]):
    """One call of the operator; ``residual`` and ``gamma`` are None unless the result is ``gamma * out + residual``.

    Attributes:
        query, key: (N, D, *S), or (N, *S, D) if ``options.channel_axis`` is -1.
        value: (N, C, *S), or (N, *S, C) if ``options.channel_axis`` is -1.
        options: the non-array arguments.
        residual: same shape as ``value``.
        gamma: array of any shape with a single element.
    """

    query: Array
    key: Array
    value: Array
    options: Options
    residual: Array | None = None
    gamma: Array | None = None

    def arrays(self) -> tuple[Array, ...]:
        """Return the arrays that the call has, in the order query, key, value, residual, gamma."""
        fields = self.query, self.key, self.value, self.residual, self.gamma
        return tuple(array for array in fields if array is not None)
