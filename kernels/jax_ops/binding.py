"""The launch of one Triton kernel as an operation of JAX.

JAX's own extension library launches a kernel that Triton has compiled ("triton_kernel_call_ffi", which
Pallas and jax-triton use as well); it needs the PTX, the grid and one description per parameter. That call
hands its buffers, operands first and results after them, to the kernel's pointers in the order of the
signature. So a pointer that is only written but stands before one that is read becomes an operand of
unspecified content which the result takes over.

Call :func:`launch` in a lowering rule for the platform "cuda": it compiles when it is called.
"""

# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportMissingTypeStubs=false
# Triton, and JAX's library for it, come without types.

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

from ..plan import PTX_VERSIONS, Launch

_TYPES = {"float16": "fp16", "bfloat16": "bf16", "float32": "fp32"}
_ALIGNMENT = 16  # bytes of a pointer, or elements of a stride, that let the compiler load 16 bytes at a time


class Updated(NamedTuple):
    """A pointer that the kernel reads and writes: it starts as ``array``, and becomes a result."""

    array: jax.Array


class Written(NamedTuple):
    """A pointer that the kernel only writes, and the result there.

    Attributes:
        shape, dtype: shape and dtype of the result.
        over: name of a pointer that is read, not updated, and whose memory the result takes; both have the
            same shape and dtype.
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
        arguments: by name, every parameter that is not a constant: an array that is read, :class:`Updated`,
            :class:`Written`, None for a pointer that this launch does not use, an int or a float.
        capability: the GPU's compute capability.

    Returns:
        the arrays that are updated or written, by name.
    """
    unused = {name: None for name, value in arguments.items() if value is None}
    constants = planned.constants | unused
    names = [name for name in kernel.arg_names if name not in constants]
    last_read = max(i for i, name in enumerate(names) if isinstance(arguments[name], jax.Array | Updated))
    operands: list[jax.Array] = []
    aliases: dict[int, str] = {}  # operand -> name of the result that takes its memory
    results: list[str] = []  # results that have a pointer of their own
    trailing: list[str] = []  # results that take the pointer of an operand
    positions: dict[str, int] = {}
    for index, name in enumerate(names):
        value = arguments[name]
        if isinstance(value, Written) and index > last_read:
            results.append(name)
            if value.over is not None:
                aliases[positions[value.over]] = name
        elif isinstance(value, jax.Array | Updated | Written):
            positions[name] = len(operands)
            if isinstance(value, Updated | Written):
                aliases[len(operands)] = name
                trailing.append(name)
            if isinstance(value, Written):
                value = Updated(lax.empty(value.shape, value.dtype))
            operands.append(value.array if isinstance(value, Updated) else value)

    made = results + trailing
    types = {name: _array(arguments[name]) for name in made}
    call = jax.ffi.ffi_call(
        "triton_kernel_call_ffi",
        [jax.ShapeDtypeStruct(array.shape, array.dtype) for array in types.values()],
        input_output_aliases={operand: made.index(name) for operand, name in aliases.items()},
    )
    parameters = tuple((name, _parameter(kernel, name, arguments[name])) for name in names)
    arch = 10 * capability[0] + capability[1]
    sorted_constants = tuple(sorted(constants.items()))
    options = {**planned.options, "ptx_version": PTX_VERSIONS.get(capability[0])}
    opaque = _call(kernel, parameters, sorted_constants, planned.grid, tuple(options.items()), arch)
    return dict(zip(made, call(*operands, opaque=opaque), strict=True))


def _array(value: Any) -> Any:
    return value.array if isinstance(value, Updated) else value


def _parameter(kernel: Any, name: str, value: Any) -> tuple[str, bool, int | float | None]:
    """Return Triton's type, whether the compiler may rely on a multiple of 16, and the value of a scalar."""
    if isinstance(value, float):
        return "fp32", False, value
    if isinstance(value, int):
        return "i32", name not in kernel.do_not_specialize and value % _ALIGNMENT == 0, value
    return f"*{_TYPES[jnp.dtype(_array(value).dtype).name]}", True, None  # XLA's buffers start at multiples of 64 bytes


@cache
def _call(
    kernel: Any,
    parameters: tuple[tuple[str, tuple[str, bool, Any]], ...],
    constants: tuple[tuple[str, Any], ...],
    grid: int,
    options: tuple[tuple[str, Any], ...],
    arch: int,
) -> bytes:
    """Compile the kernel and return the call's description, all but its buffers, as JAX serialises it."""
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
    made = library.TritonKernel(
        compiled.metadata.name, compiled.metadata.num_warps, 1, compiled.metadata.shared, compiled.asm["ptx"], "", arch
    )
    values = [
        library.create_array_parameter(0, _ALIGNMENT) if value is None else library.create_scalar_parameter(value, kind)
        for kind, _, value in described.values()
    ]
    call = library.TritonKernelCall(made, grid, 1, 1, values)
    return zlib.compress(call.to_proto(compiled.metadata.name, b""))


def triton_library() -> Any:
    """Return JAX's library that describes Triton launches.

    Raises:
        ValueError: JAX's CUDA plugin, which brings the library, is not installed.
    """
    # jaxlib has no public name for it.
    from jax._src.lib import gpu_triton  # pyright: ignore[reportPrivateImportUsage]

    if not hasattr(gpu_triton, "TritonKernel"):
        raise ValueError(
            "this JAX has no CUDA plugin, which launches the Triton kernels: install jax[cuda12] or jax[cuda13], "
            "or call with backend='reference'"
        )
    return gpu_triton
