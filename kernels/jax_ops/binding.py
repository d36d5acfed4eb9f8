"""Launch a Triton kernel as a JAX operation.

JAX's own extension library launches kernels that Triton has compiled ("triton_kernel_call_ffi", which Pallas and
jax-triton use as well); it needs the PTX, the grid and one description per parameter. The call assigns its buffers,
operands first and then results, to the kernel's pointers in signature order. A write-only pointer that precedes a
read pointer in the signature is therefore passed as an uninitialised operand whose buffer is aliased to the result.

Call :func:`launch` only in a lowering rule for the "cuda" platform, because it compiles the kernel immediately.
"""

import zlib
from collections.abc import Mapping
from functools import cache
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import triton
from jax import lax
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from ..launches.plan import PTX_VERSIONS, TRITON_DTYPES, Launch

_ALIGNMENT = 16  # of pointers in bytes, of strides in elements; lets the compiler load 16 bytes at a time


class Updated(NamedTuple):
    """An array that the kernel reads and updates in-place: an operand whose buffer becomes a result."""

    array: jax.Array


class Written(NamedTuple):
    """A result that the kernel writes through a write-only pointer.

    Attributes:
        shape, dtype: shape and dtype of the result.
        over: name of a read-only pointer of the same shape and dtype whose buffer the result reuses.
    """

    shape: tuple[int, ...]
    dtype: Any
    over: str | None = None


def launch(
    kernel: Any, planned: Launch, arguments: Mapping[str, Any], capability: tuple[int, int]
) -> dict[str, jax.Array]:
    """Launch ``kernel`` once.

    Args:
        kernel: a ``triton.jit`` function.
        planned: grid, compile-time constants, warps and stages.
        arguments: every non-constant parameter by name: a read-only array, :class:`Updated`, :class:`Written`,
            None for a pointer that this launch does not use, an int or a float.
        capability: the GPU's compute capability.

    Returns:
        The updated and written arrays, by name.
    """
    unused = {name: None for name, value in arguments.items() if value is None}
    constants = planned.constants | unused
    parameters = {name: arguments[name] for name in kernel.arg_names if name not in constants}
    buffers = _assign_buffers(parameters)
    results = [_array(parameters[name]) for name in buffers.results]
    call = jax.ffi.ffi_call(
        "triton_kernel_call_ffi",
        [jax.ShapeDtypeStruct(array.shape, array.dtype) for array in results],
        input_output_aliases={operand: buffers.results.index(name) for operand, name in buffers.aliases.items()},
    )
    described = tuple((name, _parameter(kernel, name, value)) for name, value in parameters.items())
    options = {**planned.options, "ptx_version": PTX_VERSIONS.get(capability)}
    arch = 10 * capability[0] + capability[1]
    opaque = _call(kernel, described, tuple(sorted(constants.items())), planned.grid, tuple(options.items()), arch)
    return dict(zip(buffers.results, call(*buffers.operands, opaque=opaque), strict=True))


class _Buffers(NamedTuple):
    """The operands and results of a call.

    Attributes:
        operands: the arrays of all pointers, except results with a pointer of their own.
        results: the names of the updated and written arrays; those that share an operand's pointer come last, because
            the kernel has no pointer left for them.
        aliases: index of an operand -> name of the result that reuses its buffer.
    """

    operands: list[jax.Array]
    results: list[str]
    aliases: dict[int, str]


def _assign_buffers(parameters: Mapping[str, Any]) -> _Buffers:
    """Assign the arrays of a launch to operands and results, given its parameters in signature order."""
    reads = [isinstance(value, jax.Array | Updated) for value in parameters.values()]
    last_read = max(index for index, is_read in enumerate(reads) if is_read)
    operands: dict[str, jax.Array] = {}
    aliases: dict[int, str] = {}
    with_pointer: list[str] = []
    sharing: list[str] = []
    for index, (name, value) in enumerate(parameters.items()):
        if isinstance(value, Written) and index > last_read:
            with_pointer.append(name)
            if value.over is not None:
                aliases[list(operands).index(value.over)] = name
            continue
        if isinstance(value, Updated | Written):
            aliases[len(operands)] = name
            sharing.append(name)
            operands[name] = value.array if isinstance(value, Updated) else lax.empty(value.shape, value.dtype)
        elif isinstance(value, jax.Array):
            operands[name] = value
    return _Buffers(list(operands.values()), with_pointer + sharing, aliases)


def _array(value: Any) -> Any:
    return value.array if isinstance(value, Updated) else value


def _parameter(kernel: Any, name: str, value: Any) -> tuple[str, bool, int | float | None]:
    """Return the Triton type, whether the compiler may assume a multiple of 16, and the value if it is a scalar."""
    if isinstance(value, float):
        return "fp32", False, value
    if isinstance(value, int):
        return "i32", name not in kernel.do_not_specialize and value % _ALIGNMENT == 0, value
    return f"*{TRITON_DTYPES[jnp.dtype(_array(value).dtype).name]}", True, None  # XLA aligns buffers to 64 bytes


@cache
def _call(
    kernel: Any,
    parameters: tuple[tuple[str, tuple[str, bool, Any]], ...],
    constants: tuple[tuple[str, Any], ...],
    grid: int,
    options: tuple[tuple[str, Any], ...],
    arch: int,
) -> bytes:
    """Compile the kernel and return everything about the call except its buffers, in JAX's serialised format."""
    library = triton_library()
    described = dict(parameters)
    signature = {name: described[name][0] if name in described else "constexpr" for name in kernel.arg_names}
    attributes = {
        (index,): [["tt.divisibility", _ALIGNMENT]]
        for index, name in enumerate(kernel.arg_names)
        if name in described and described[name][1]
    }
    compiled = triton.compile(
        ASTSource(kernel, signature, dict(constants), attributes),
        target=GPUTarget("cuda", arch, 32),
        options=dict(options),
    )
    binary = library.TritonKernel(
        compiled.metadata.name, compiled.metadata.num_warps, 1, compiled.metadata.shared, compiled.asm["ptx"], "", arch
    )
    values = [
        library.create_array_parameter(0, _ALIGNMENT) if value is None else library.create_scalar_parameter(value, kind)
        for kind, _, value in described.values()
    ]
    call = library.TritonKernelCall(binary, grid, 1, 1, values)
    return zlib.compress(call.to_proto(compiled.metadata.name, b""))


def triton_library() -> Any:
    """Return the JAX library that describes Triton launches.

    Raises:
        ValueError: JAX's CUDA plugin, which provides the library, is not installed.
    """
    # jaxlib does not expose it publicly.
    from jax._src.lib import gpu_triton

    if not hasattr(gpu_triton, "TritonKernel"):
        raise ValueError(
            "JAX's CUDA plugin, which launches the Triton kernels, is missing: install jax[cuda12] or jax[cuda13]"
        )
    return gpu_triton
