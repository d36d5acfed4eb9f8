"""Persistent backward pass along lines of up to 128 pixels, in Gluon.

It computes what ``kernels/backward.py`` does, for gradients of an attention with gamma whose lines fit in one tile. One
program per multiprocessor walks over the lines. The copies of the next slabs, and of the next line's query and key, are
under way while a line's scores and results are computed, so the memory is never idle; in the kernel in use, each line
starts and ends with idle memory.

Nothing masks the keys and queries beyond the line, which the copies fill with zeros: their products are zero or are not
stored. Exponents are at most zero for real keys, and are clamped for the others, which could overflow.

Shared memory for D = 64 and slabs of 64 channels: 3 slabs of the upstream gradient and of the value, 2 of the output or
the earlier dvalue, query and key of 2 lines, and one map of 128x128 for the weights, later for their gradient: 224 KB.
"""

from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import (
    fence_async_shared,
    mbarrier,
    tma,
    warpgroup_mma,
    warpgroup_mma_wait,
)  # fmt: skip
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

from .copies import barrier, barriers, first_pixel, line_at, load, load_slab, store


@gluon.jit
def _load_slab(
    step, steps, lines, inner, grad_desc, value_desc, grad_stride, value_stride, grad_smem, value_smem, full,
    SLABS: gl.constexpr, BLOCK_C: gl.constexpr, STAGES: gl.constexpr, REVERSED: gl.constexpr,
):  # fmt: skip
    pred = step < steps
    line, channel, stage = line_at(step // SLABS, lines, REVERSED), step % SLABS * BLOCK_C, step % STAGES
    mbarrier.expect(full.index(stage), 2 * grad_desc.block_type.nbytes, pred)
    load(grad_desc, grad_stride, line, inner, 0, channel, grad_smem.index(stage), full.index(stage), pred)
    load(value_desc, value_stride, line, inner, 0, channel, value_smem.index(stage), full.index(stage), pred)


@gluon.jit
def _load_query_and_key(
    index, count, lines, inner, query_desc, key_desc, stride, query_smem, key_smem, full, REVERSED: gl.constexpr
):
    pred = index < count
    line, stage = line_at(index, lines, REVERSED), index % 2
    mbarrier.expect(full.index(stage), 2 * query_desc.block_type.nbytes, pred)
    load(query_desc, stride, line, inner, 0, 0, query_smem.index(stage), full.index(stage), pred)
    load(key_desc, stride, line, inner, 0, 0, key_smem.index(stage), full.index(stage), pred)


@gluon.jit(do_not_specialize=["length", "inner", "lines"])
def persistent_backward_kernel(
    query_desc, key_desc, value_desc, grad_desc, out_desc, dvalue_desc,
    stats_ptr, gamma_ptr, delta_ptr, partial_dquery_ptr, partial_dkey_ptr, dquery_ptr, dkey_ptr,
    query_stride, value_stride, grad_stride, length, inner, lines, scale,
    D: gl.constexpr, C: gl.constexpr,
    MASK_SELF: gl.constexpr, FIRST: gl.constexpr, LAST: gl.constexpr, REVERSED: gl.constexpr,
    WAITS: gl.constexpr, SIGNALS: gl.constexpr,
    STAGES: gl.constexpr, THIRD_STAGES: gl.constexpr, BLOCK: gl.constexpr, BLOCK_C: gl.constexpr,
    num_warps: gl.constexpr,
):  # fmt: skip
    """Compute all gradients of the program's lines.

    ``query_stride`` is that of query and key. The three gradients are slices of one (pixels, 2 D + C) array.
    The constants have the meaning of those of ``line_backward_kernel``; BLOCK is the
    number of queries and of keys of a tile.
    """
    if SIGNALS:
        gdc_launch_dependents()
    SLABS: gl.constexpr = C // BLOCK_C
    STRIDE: gl.constexpr = 2 * D + C
    wide: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [num_warps, 1], [16, BLOCK, 16])
    slab: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [num_warps, 1], [16, BLOCK_C, 16])
    thin: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [num_warps, 1], [16, D, 16])
    square: gl.constexpr = gl.NVMMASharedLayout.get_default_for([BLOCK, BLOCK], gl.bfloat16)

    value_smem = gl.allocate_shared_memory(gl.bfloat16, [STAGES, 1, BLOCK, BLOCK_C], value_desc.layout)
    grad_smem = gl.allocate_shared_memory(gl.bfloat16, [STAGES, 1, BLOCK, BLOCK_C], grad_desc.layout)
    # The output in the first pass, the earlier dvalue in others. The sum replaces it, and is stored from there.
    third_smem = gl.allocate_shared_memory(gl.bfloat16, [THIRD_STAGES, 1, BLOCK, BLOCK_C], dvalue_desc.layout)
    query_smem = gl.allocate_shared_memory(gl.bfloat16, [2, 1, BLOCK, D], query_desc.layout)
    key_smem = gl.allocate_shared_memory(gl.bfloat16, [2, 1, BLOCK, D], key_desc.layout)
    map_smem = gl.allocate_shared_memory(gl.bfloat16, [BLOCK, BLOCK], square)
    full, third_full, query_full = barriers(STAGES), barriers(THIRD_STAGES), barriers(2)
    fence_async_shared()

    count = gl.cdiv(lines - gl.program_id(0), gl.num_programs(0))
    steps = count * SLABS
    third_desc = out_desc if FIRST else dvalue_desc
    third_stride = C if FIRST else STRIDE
    _load_query_and_key(
        0, count, lines, inner, query_desc, key_desc, query_stride, query_smem, key_smem, query_full, REVERSED
    )
    for k in gl.static_range(STAGES):
        _load_slab(
            k, steps, lines, inner, grad_desc, value_desc, grad_stride, value_stride, grad_smem, value_smem, full,
            SLABS, BLOCK_C, STAGES, REVERSED,
        )  # fmt: skip
    if WAITS:  # what follows reads or overwrites results of the previous launch
        gdc_wait()
    for k in gl.static_range(THIRD_STAGES - 1):
        load_slab(
            k, steps, lines, inner, third_desc, third_stride, third_smem, third_full,
            SLABS, BLOCK_C, THIRD_STAGES, REVERSED,
        )  # fmt: skip

    gamma = gl.load(gamma_ptr).to(gl.float32)
    offs_m = gl.arange(0, BLOCK, layout=gl.SliceLayout(1, wide))
    offs_n = gl.arange(0, BLOCK, layout=gl.SliceLayout(0, wide))
    offs_slab = gl.arange(0, BLOCK, layout=gl.SliceLayout(1, slab))
    offs_thin = gl.arange(0, BLOCK, layout=gl.SliceLayout(1, thin))
    offs_d = gl.arange(0, D, layout=gl.SliceLayout(0, thin))
    rows_valid = offs_m < length
    thin_valid = (offs_thin < length)[:, None]

    start = first_pixel(line_at(0, lines, REVERSED), length, inner)
    maximum = gl.load(stats_ptr + 2 * start + 2 * offs_m * inner, mask=rows_valid, other=0.0)
    total = gl.load(stats_ptr + 2 * start + (2 * offs_m * inner + 1), mask=rows_valid, other=1.0)
    for index in range(count):
        line = line_at(index, lines, REVERSED)
        start = first_pixel(line, length, inner)
        _load_query_and_key(
            index + 1, count, lines, inner, query_desc, key_desc, query_stride, query_smem, key_smem, query_full,
            REVERSED,
        )  # fmt: skip
        mbarrier.wait(query_full.index(index % 2), index // 2 & 1)
        query = query_smem.index(index % 2).reshape([BLOCK, D])
        key = key_smem.index(index % 2).reshape([BLOCK, D])
        no_energy = gl.zeros([BLOCK, BLOCK], gl.float32, wide)
        energy = warpgroup_mma(query, key.permute((1, 0)), no_energy, use_acc=False) * scale
        attention = gl.exp(gl.minimum(energy - maximum[:, None], 0.0))
        if MASK_SELF:
            # Plus zero, as the compiler does not know: else it keeps the comparisons of all lines in registers.
            itself = offs_n + gl.minimum(line, 0)
            attention = gl.where(offs_m[:, None] != itself[None, :], attention, 0.0)
        attention *= (1.0 / total)[:, None]
        map_smem.store(attention.to(gl.bfloat16))
        fence_async_shared()

        # The statistics of the next line arrive during the slabs of this one.
        following = first_pixel(line_at(gl.minimum(index + 1, count - 1), lines, REVERSED), length, inner)
        maximum = gl.load(stats_ptr + 2 * following + 2 * offs_m * inner, mask=rows_valid, other=0.0)
        total = gl.load(stats_ptr + 2 * following + (2 * offs_m * inner + 1), mask=rows_valid, other=1.0)
        if FIRST:
            delta_slab = gl.zeros([BLOCK], gl.float32, gl.SliceLayout(1, slab))
        else:
            delta = gl.load(delta_ptr + start + offs_m * inner, mask=rows_valid, other=0.0)

        dattention = gl.zeros([BLOCK, BLOCK], gl.float32, wide)
        for number in range(SLABS):
            step = index * SLABS + number
            stage, third_stage = step % STAGES, step % THIRD_STAGES
            mbarrier.wait(full.index(stage), step // STAGES & 1)
            grad = grad_smem.index(stage).reshape([BLOCK, BLOCK_C])
            value = value_smem.index(stage).reshape([BLOCK, BLOCK_C])
            third = third_smem.index(third_stage).reshape([BLOCK, BLOCK_C])
            no_dvalue = gl.zeros([BLOCK, BLOCK_C], gl.float32, slab)
            dvalue = warpgroup_mma(map_smem.permute((1, 0)), grad, no_dvalue, use_acc=False, is_async=True)
            dattention = warpgroup_mma(grad, value.permute((1, 0)), dattention, is_async=True)
            mbarrier.wait(third_full.index(third_stage), step // THIRD_STAGES & 1)
            if FIRST:
                delta_slab += gl.sum(third.load(slab).to(gl.float32) * grad.load(slab).to(gl.float32), 1)
                dvalue = warpgroup_mma_wait(num_outstanding=1, deps=[dvalue])
                dvalue *= gamma
            else:
                dvalue = warpgroup_mma_wait(num_outstanding=1, deps=[dvalue])
                dvalue = gl.fma(dvalue, gamma, third.load(slab).to(gl.float32))
            third.store(dvalue.to(gl.bfloat16))
            fence_async_shared()
            store(dvalue_desc, STRIDE, line, inner, 0, number * BLOCK_C, third_smem.index(third_stage))
            tma.store_wait(1)  # the previous slab has been read from its buffer, which takes another one
            load_slab(
                step + THIRD_STAGES - 1, steps, lines, inner, third_desc, third_stride, third_smem, third_full,
                SLABS, BLOCK_C, THIRD_STAGES, REVERSED,
            )  # fmt: skip
            dattention = warpgroup_mma_wait(num_outstanding=0, deps=[dattention])
            barrier()  # all warps have read the slabs
            _load_slab(
                step + STAGES, steps, lines, inner, grad_desc, value_desc, grad_stride, value_stride, grad_smem,
                value_smem, full, SLABS, BLOCK_C, STAGES, REVERSED,
            )  # fmt: skip

        if FIRST:
            gl.store(delta_ptr + start + offs_slab * inner, delta_slab, mask=offs_slab < length)
            delta = gl.convert_layout(delta_slab, gl.SliceLayout(1, wide))
        map_smem.store((attention * (dattention - delta[:, None])).to(gl.bfloat16))
        fence_async_shared()
        zeros = gl.zeros([BLOCK, D], gl.float32, thin)
        dkey = warpgroup_mma(map_smem.permute((1, 0)), query, zeros, use_acc=False, is_async=True)
        dquery = warpgroup_mma(map_smem, key, zeros, use_acc=False, is_async=True)
        dkey, dquery = warpgroup_mma_wait(num_outstanding=0, deps=[dkey, dquery])
        barrier()  # all warps have read query and key
        dkey *= gamma * scale
        dquery *= gamma * scale
        offs = (offs_thin * inner * D)[:, None] + offs_d[None, :]
        if not FIRST:
            dkey += gl.load(partial_dkey_ptr + start * D + offs, mask=thin_valid, other=0.0)
            dquery += gl.load(partial_dquery_ptr + start * D + offs, mask=thin_valid, other=0.0)
        if LAST:
            offs = (offs_thin * inner * STRIDE)[:, None] + offs_d[None, :]
            gl.store(dkey_ptr + start * STRIDE + offs, dkey.to(gl.bfloat16), mask=thin_valid)
            gl.store(dquery_ptr + start * STRIDE + offs, dquery.to(gl.bfloat16), mask=thin_valid)
        else:
            gl.store(partial_dkey_ptr + start * D + offs, dkey, mask=thin_valid)
            gl.store(partial_dquery_ptr + start * D + offs, dquery, mask=thin_valid)
    tma.store_wait(0)
