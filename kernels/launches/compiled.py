"""Compile a launch without a GPU and report its registers, spills, shared memory and use of tensor cores.

Triton compiles for any target on any machine. For NVIDIA GPUs the numbers come from ``cuobjdump``, which ships in
Triton's wheel, and for AMD GPUs from the assembly. The tests check them for every shipped configuration, and tuning
uses them to reject candidates.
"""

import re
import subprocess
import tempfile
from pathlib import Path
from typing import Any, NamedTuple

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from ..backward import line_backward_kernel
from ..forward import line_forward_kernel
from .launch_cases import Case
from .plan import TRITON_DTYPES, Device

KERNELS: dict[str, Any] = {"forward": line_forward_kernel, "backward": line_backward_kernel}
# Matrix instructions of Ampere, Hopper and datacenter Blackwell in PTX, and those of AMD.
TENSOR_CORE = ("mma.sync", "wgmma.mma_async", "tcgen05.mma", "v_mfma_")

_CUOBJDUMP = Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump"


class Report(NamedTuple):
    """The resources of a compiled launch.

    Attributes:
        registers: registers per thread.
        stack: bytes of stack (on AMD GPUs, scratch) per thread; more than 0 if registers were spilled.
        shared: bytes of shared memory per block.
        tensor_core: whether the launch uses tensor cores.
        in_flight: the number of copies to shared memory that may still be in flight, at each wait in an innermost loop;
            None for AMD GPUs.
        stores_early: whether it writes to global memory before it waits for the previous launch, which may still read
            or write the same memory (``overlap.py``).
    """

    registers: int
    stack: int
    shared: int
    tensor_core: bool
    in_flight: tuple[int, ...] | None
    stores_early: bool


def compile_case(case: Case, device: Device) -> Report:
    """Compile a launch for a GPU and report its resources."""
    function = KERNELS[case.kernel]
    unused = {name: None for name, kind in (case.pointers | case.descriptors).items() if kind is None}
    constants = case.launch.constants | unused
    signature: dict[str, str] = {}
    attributes: dict[tuple[int, ...], list[list[Any]]] = {}
    # What the launcher infers from real arrays: 16-byte aligned pointers, strides that are multiples of 16. The empty
    # lists do not affect the code, but make Triton's cache key match that of a real launch.
    for index, name in enumerate(function.arg_names):
        signature[name] = "constexpr" if name in constants else _argument_type(name, case)
        if name in constants:
            if not triton.__version__.startswith("3.6.") or isinstance(constants[name], str):
                attributes[(index,)] = []
        elif name.endswith(("_ptr", "_stride")):
            attributes[(index,)] = [["tt.divisibility", 16]]
        if case.small and name in case.pointers and name not in constants:
            attributes[(index,)] = [*attributes[(index,)], ["tt.pointer_range", 32]]
    major, minor = device.capability
    compiled = triton.compile(
        ASTSource(function, signature, constants, attributes),
        target=GPUTarget("hip", device.arch, 64) if device.arch else GPUTarget("cuda", 10 * major + minor, 32),
        options={**case.launch.options, "ptx_version": case.ptx_version},
    )
    return report_on(compiled, device)


def report_on(compiled: Any, device: Device) -> Report:
    """Report the resources of a kernel that Triton has compiled for a GPU."""
    if device.arch:
        assembly = compiled.asm["amdgcn"]
        registers, stack = (_resource(assembly, name) for name in ("vgpr_count", "private_segment_fixed_size"))
        tensor_core = any(name in assembly for name in TENSOR_CORE)
        return Report(registers, stack, compiled.metadata.shared, tensor_core, in_flight=None, stores_early=False)
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(compiled.asm["cubin"])
        file.flush()
        usage = subprocess.run([_CUOBJDUMP, "-res-usage", file.name], capture_output=True, text=True, check=True).stdout
    match = re.search(r"REG:(\d+) STACK:(\d+)", usage)
    assert match is not None, usage
    registers, stack = map(int, match.groups())
    ptx = compiled.asm["ptx"]
    tensor_core = any(name in ptx for name in TENSOR_CORE)
    return Report(registers, stack, compiled.metadata.shared, tensor_core, _in_flight(ptx), _stores_early(ptx))


def _resource(assembly: str, name: str) -> int:
    match = re.search(rf"\.{name}:\s+(\d+)", assembly)
    assert match is not None, name
    return int(match[1])


def _in_flight(ptx: str) -> tuple[int, ...]:
    # A loop is a label with a later branch back to it; the lookahead also finds nested loops.
    loops = re.findall(r"(?ms)^(?=(\$L__BB\w+):(.*?)\bbra(?:\.uni)?\s+\1;)", ptx)
    bodies = [body for _, body in loops]
    innermost = [body for body in bodies if not any(inner in body for inner in bodies if inner is not body)]
    return tuple(int(copies) for body in innermost for copies in re.findall(r"cp\.async\.wait_group\s+(\d+)", body))


def _stores_early(ptx: str) -> bool:
    """Follow every path from the start of a kernel to the wait, as the code of a loop may come before its start."""
    if "griddepcontrol.wait" not in ptx:
        return False
    lines = ptx[ptx.index(".entry") :].splitlines()
    labels = {match[1]: number for number, line in enumerate(lines) if (match := re.match(r"(\$\w+):", line))}
    paths, seen = [0], set()
    while paths:
        for number in range(paths.pop(), len(lines)):
            line = lines[number]
            if number in seen or "griddepcontrol.wait" in line:
                break
            seen.add(number)
            if re.search(r"\b(?:st|red|atom)\.\S*global|\.global\.shared", line):
                return True
            leaves = re.search(r"(@\S+\s+)?\b(?:ret|bra(?:\.uni)?\s+(\$\w+));", line)
            if leaves and leaves[2]:
                paths.append(labels[leaves[2]])
            if leaves and not leaves[1]:
                break
    return False


def _argument_type(name: str, case: Case) -> str:
    if name == "scale":
        return "fp32"
    if described := case.descriptors.get(name):
        dtype, block = described
        return f"tensordesc<{TRITON_DTYPES[dtype]}{list(block)}>"
    dtype = case.pointers.get(name)
    return "i32" if dtype is None else f"*{TRITON_DTYPES[dtype]}"
