"""Parts of the Gluon kernels: the lines of a persistent program, and bulk copies (TMA) of blocks of lines.

A descriptor has the shape (lines // inner, length, inner * stride), like those of ``kernels/torch_ops/launch.py``, and
blocks of (1, rows, channels).
"""

from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import mbarrier, tma

# Gluon's names differ between Triton versions.
barrier = gl.barrier if hasattr(gl, "barrier") else gl.thread_barrier
async_load = tma.async_load if hasattr(tma, "async_load") else tma.async_copy_global_to_shared
async_store = tma.async_store if hasattr(tma, "async_store") else tma.async_copy_shared_to_global


@gluon.jit
def line_at(index, lines, REVERSED: gl.constexpr):
    """Return the ``index``-th line of this program; a program takes every ``gl.num_programs(0)``-th one."""
    line = gl.program_id(0) + index * gl.num_programs(0)
    if REVERSED:
        line = lines - 1 - line
    return line


@gluon.jit
def first_pixel(line, length, inner):
    """Return the first pixel of a line, in int64 because pixels * channels exceeds 2^31 in large batches."""
    return (line // inner).to(gl.int64) * length * inner + line % inner


@gluon.jit
def load(desc, stride, line, inner, row, channel, smem, full, pred):
    """Start copying a block of a line to shared memory; ``full`` is the mbarrier that counts its bytes."""
    async_load(desc, [line // inner, row, line % inner * stride + channel], full, smem, pred)


@gluon.jit
def store(desc, stride, line, inner, row, channel, smem):
    """Start copying a block from shared memory to a line."""
    async_store(desc, [line // inner, row, line % inner * stride + channel], smem)


@gluon.jit
def load_slab(
    step, steps, lines, inner, desc, stride, smem, full,
    SLABS: gl.constexpr, BLOCK_C: gl.constexpr, STAGES: gl.constexpr, REVERSED: gl.constexpr,
):  # fmt: skip
    """Start copying a slab of all rows of a line, for a kernel that takes SLABS steps per line."""
    pred = step < steps
    line, channel, stage = line_at(step // SLABS, lines, REVERSED), step % SLABS * BLOCK_C, step % STAGES
    mbarrier.expect(full.index(stage), desc.block_type.nbytes, pred)
    load(desc, stride, line, inner, 0, channel, smem.index(stage), full.index(stage), pred)


@gluon.jit
def barriers(COUNT: gl.constexpr):
    """Return ``COUNT`` initialised mbarriers for one arrival each."""
    made = gl.allocate_shared_memory(gl.int64, [COUNT, 1], mbarrier.MBarrierLayout())
    for k in gl.static_range(COUNT):
        mbarrier.init(made.index(k), count=1)
    return made
