"""Persistent backward pass along lines of 129 to 256 pixels, in Gluon.

It computes what ``kernels/backward.py`` does, for gradients of an attention with gamma. A line is two units, one per
half of its keys. A unit has all queries, so that dvalue and dkey of its keys are complete, and nothing but dquery is
added up in memory. The kernel in use reads the upstream gradient and the value twice per line, and dvalue three times.

    P  = exp(scores - log of the sum of all exponentials)       256 queries x 128 keys, in shared memory
    for every slab of channels, downwards in the second unit, whose first slabs of G are then still in the L2 cache:
        dvalue = gamma P^T G, plus the earlier dvalue           stored once
        dP    += G value^T                                      in registers
        delta += sum of out G over the slab                     in the first unit of the first pass
    dS = P (dP - delta)                                         in place of P
    dkey = dS^T query,   dquery += dS key

As in ``backward.py``, copies run ahead across units and lines, and nothing masks keys and queries beyond the line.

Shared memory, besides the map (64 KB), the query (32 KB) and half the key (16 KB): STAGES slabs of the upstream
gradient and the value, and THIRD_STAGES slabs of the earlier dvalue, which become the sum; in the first pass,
THIRD_STAGES slabs of the output and one slab of dvalue.
"""

from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import (
    fence_async_shared,
    mbarrier,
    tma,
    warpgroup_mma,
    warpgroup_mma_wait,
)
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

from .copies import barrier, barriers, first_pixel, line_at, load, load_slab, store


@gluon.jit
def _channel(step, SLABS: gl.constexpr, BLOCK_C: gl.constexpr):
    """Return the first channel of a slab: upwards in the first unit of a line, downwards in the second."""
    slab = step % SLABS
    return (slab + step // SLABS % 2 * (SLABS - 1 - 2 * slab)) * BLOCK_C


@gluon.jit
def _load_slab(
    step, steps, lines, inner, grad_desc, value_desc, grad_stride, value_stride, grad_smem, value_smem, full,
    SLABS: gl.constexpr, BLOCK_N: gl.constexpr, BLOCK_C: gl.constexpr, STAGES: gl.constexpr, REVERSED: gl.constexpr,
):  # fmt: skip
    pred = step < steps
    unit, stage, channel = step // SLABS, step % STAGES, _channel(step, SLABS, BLOCK_C)
    line, first_key = line_at(unit // 2, lines, REVERSED), unit % 2 * BLOCK_N
    mbarrier.expect(full.index(stage), grad_desc.block_type.nbytes + value_desc.block_type.nbytes, pred)
    load(grad_desc, grad_stride, line, inner, 0, channel, grad_smem.index(stage), full.index(stage), pred)
    load(value_desc, value_stride, line, inner, first_key, channel, value_smem.index(stage), full.index(stage), pred)


@gluon.jit
def _load_dvalue(
    step, steps, lines, inner, desc, stride, smem, full,
    SLABS: gl.constexpr, BLOCK_N: gl.constexpr, BLOCK_C: gl.constexpr, STAGES: gl.constexpr, REVERSED: gl.constexpr,
):  # fmt: skip
    pred = step < steps
    unit, stage, channel = step // SLABS, step % STAGES, _channel(step, SLABS, BLOCK_C)
    line, first_key = line_at(unit // 2, lines, REVERSED), unit % 2 * BLOCK_N
    mbarrier.expect(full.index(stage), desc.block_type.nbytes, pred)
    load(desc, stride, line, inner, first_key, channel, smem.index(stage), full.index(stage), pred)


@gluon.jit
def _load_query_and_key(
    unit, units, lines, inner, query_desc, key_desc, stride, query_smem, key_smem, query_full, key_full,
    BLOCK_N: gl.constexpr, REVERSED: gl.constexpr,
):  # fmt: skip
    """Start copying the unit's half of the keys and, in the first unit of a line, the queries."""
    pred = unit < units
    line = line_at(unit // 2, lines, REVERSED)
    mbarrier.expect(key_full.index(0), key_desc.block_type.nbytes, pred)
    load(key_desc, stride, line, inner, unit % 2 * BLOCK_N, 0, key_smem.index(0), key_full.index(0), pred)
    pred = pred & (unit % 2 == 0)
    mbarrier.expect(query_full.index(0), query_desc.block_type.nbytes, pred)
    load(query_desc, stride, line, inner, 0, 0, query_smem.index(0), query_full.index(0), pred)


@gluon.jit
def _log2_sums(stats_ptr, start, inner, offs, valid):
    """Return the binary logarithms of the sums of all exponentials, accurate enough for weights in bfloat16."""
    maximum = gl.load(stats_ptr + 2 * start + 2 * offs * inner, mask=valid, other=0.0)
    total = gl.load(stats_ptr + 2 * start + (2 * offs * inner + 1), mask=valid, other=1.0)
    return maximum * 1.4426950408889634 + gl.log2(total)


@gluon.jit(do_not_specialize=["length", "inner", "lines"])
def persistent_long_backward_kernel(
    query_desc, key_desc, value_desc, grad_desc, out_desc, dvalue_desc,
    stats_ptr, gamma_ptr, delta_ptr, partial_dquery_ptr, partial_dkey_ptr, dquery_ptr, dkey_ptr,
    query_stride, value_stride, grad_stride, length, inner, lines, scale,
    D: gl.constexpr, C: gl.constexpr,
    MASK_SELF: gl.constexpr, FIRST: gl.constexpr, LAST: gl.constexpr, REVERSED: gl.constexpr,
    WAITS: gl.constexpr, SIGNALS: gl.constexpr,
    STAGES: gl.constexpr, THIRD_STAGES: gl.constexpr,
    BLOCK_M: gl.constexpr, BLOCK_N: gl.constexpr, BLOCK_C: gl.constexpr,
    num_warps: gl.constexpr,
):  # fmt: skip
    """Compute all gradients of the program's lines; the arguments are those of ``persistent_backward_kernel``.

    The blocks of the descriptors have BLOCK_M rows of query, grad and out, and BLOCK_N rows of key, value and dvalue.
    """
    if SIGNALS:
        gdc_launch_dependents()
    SLABS: gl.constexpr = C // BLOCK_C
    STRIDE: gl.constexpr = 2 * D + C
    # A slab of dvalue is loaded one step after another one's store has started, or in that step if there is one buffer.
    LAG: gl.constexpr = 1 if THIRD_STAGES > 1 else 0
    wide: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [num_warps, 1], [16, BLOCK_N, 16])
    slab: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [num_warps, 1], [16, BLOCK_C, 16])
    thin: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [num_warps, 1], [16, D, 16])
    map_layout: gl.constexpr = gl.NVMMASharedLayout.get_default_for([BLOCK_M, BLOCK_N], gl.bfloat16)

    grad_smem = gl.allocate_shared_memory(gl.bfloat16, [STAGES, 1, BLOCK_M, BLOCK_C], grad_desc.layout)
    value_smem = gl.allocate_shared_memory(gl.bfloat16, [STAGES, 1, BLOCK_N, BLOCK_C], value_desc.layout)
    if FIRST:
        out_smem = gl.allocate_shared_memory(gl.bfloat16, [THIRD_STAGES, 1, BLOCK_M, BLOCK_C], out_desc.layout)
        dvalue_smem = gl.allocate_shared_memory(gl.bfloat16, [1, 1, BLOCK_N, BLOCK_C], dvalue_desc.layout)
    else:
        dvalue_smem = gl.allocate_shared_memory(gl.bfloat16, [THIRD_STAGES, 1, BLOCK_N, BLOCK_C], dvalue_desc.layout)
    query_smem = gl.allocate_shared_memory(gl.bfloat16, [1, 1, BLOCK_M, D], query_desc.layout)
    key_smem = gl.allocate_shared_memory(gl.bfloat16, [1, 1, BLOCK_N, D], key_desc.layout)
    map_smem = gl.allocate_shared_memory(gl.bfloat16, [1, BLOCK_M, BLOCK_N], map_layout)
    full, third_full, query_full, key_full = barriers(STAGES), barriers(THIRD_STAGES), barriers(1), barriers(1)
    fence_async_shared()

    count = gl.cdiv(lines - gl.program_id(0), gl.num_programs(0))
    units = 2 * count
    steps = units * SLABS
    _load_query_and_key(
        0, units, lines, inner, query_desc, key_desc, query_stride, query_smem, key_smem, query_full, key_full,
        BLOCK_N, REVERSED,
    )  # fmt: skip
    for k in gl.static_range(STAGES):
        _load_slab(
            k, steps, lines, inner, grad_desc, value_desc, grad_stride, value_stride, grad_smem, value_smem, full,
            SLABS, BLOCK_N, BLOCK_C, STAGES, REVERSED,
        )  # fmt: skip
    if WAITS:  # what follows reads or overwrites results of the previous launch
        gdc_wait()
    if FIRST:  # only the first unit of a line needs the output
        for k in gl.static_range(THIRD_STAGES):
            load_slab(
                k, count * SLABS, lines, inner, out_desc, C, out_smem, third_full,
                SLABS, BLOCK_C, THIRD_STAGES, REVERSED,
            )  # fmt: skip
    else:
        for k in gl.static_range(THIRD_STAGES - LAG):
            _load_dvalue(
                k, steps, lines, inner, dvalue_desc, STRIDE, dvalue_smem, third_full,
                SLABS, BLOCK_N, BLOCK_C, THIRD_STAGES, REVERSED,
            )  # fmt: skip

    gamma = gl.load(gamma_ptr).to(gl.float32)
    offs_m = gl.arange(0, BLOCK_M, layout=gl.SliceLayout(1, wide))
    offs_n = gl.arange(0, BLOCK_N, layout=gl.SliceLayout(0, wide))
    offs_thin_m = gl.arange(0, BLOCK_M, layout=gl.SliceLayout(1, thin))
    offs_thin_n = gl.arange(0, BLOCK_N, layout=gl.SliceLayout(1, thin))
    offs_d = gl.arange(0, D, layout=gl.SliceLayout(0, thin))

    start = first_pixel(line_at(0, lines, REVERSED), length, inner)
    log2_sums = _log2_sums(stats_ptr, start, inner, offs_m, offs_m < length)
    delta_slab = gl.zeros([BLOCK_M], gl.float32, gl.SliceLayout(1, slab))
    for unit in range(units):
        half = unit % 2
        line = line_at(unit // 2, lines, REVERSED)
        start = first_pixel(line, length, inner)
        # Zero, as the compiler does not know: else it keeps what depends on it in registers, such as the matrix
        # descriptors of these buffers, which then spill.
        zero = gl.minimum(line, 0)
        query = query_smem.index(zero).reshape([BLOCK_M, D])
        key = key_smem.index(zero).reshape([BLOCK_N, D])
        square = map_smem.index(zero)
        rows = offs_m + zero
        rows_valid = rows < length
        mbarrier.wait(key_full.index(0), unit & 1)
        if half == 0:
            mbarrier.wait(query_full.index(0), unit // 2 & 1)
        no_energy = gl.zeros([BLOCK_M, BLOCK_N], gl.float32, wide)
        energy = warpgroup_mma(query, key.permute((1, 0)), no_energy, use_acc=False)
        exponent = gl.minimum(energy * (scale * 1.4426950408889634) - log2_sums[:, None], 0.0)
        if MASK_SELF:
            itself = offs_n + (half * BLOCK_N + zero)
            exponent = gl.where(offs_m[:, None] != itself[None, :], exponent, float("-inf"))
        square.store(gl.exp2(exponent).to(gl.bfloat16))
        fence_async_shared()

        if FIRST:
            if half == 0:
                delta_slab = gl.zeros([BLOCK_M], gl.float32, gl.SliceLayout(1, slab))
        else:
            delta = gl.load(delta_ptr + start + rows * inner, mask=rows_valid, other=0.0)

        dattention = gl.zeros([BLOCK_M, BLOCK_N], gl.float32, wide)
        for number in range(SLABS):
            step = unit * SLABS + number
            stage, channel = step % STAGES, _channel(step, SLABS, BLOCK_C)
            mbarrier.wait(full.index(stage), step // STAGES & 1)
            grad = grad_smem.index(stage).reshape([BLOCK_M, BLOCK_C])
            value = value_smem.index(stage).reshape([BLOCK_N, BLOCK_C])
            no_dvalue = gl.zeros([BLOCK_N, BLOCK_C], gl.float32, slab)
            weights = map_smem.index(gl.minimum(line + number * inner, 0))
            dvalue = warpgroup_mma(weights.permute((1, 0)), grad, no_dvalue, use_acc=False, is_async=True)
            dattention = warpgroup_mma(grad, value.permute((1, 0)), dattention, is_async=True)
            if FIRST:
                out_step = unit // 2 * SLABS + number
                out_stage = out_step % THIRD_STAGES
                if half == 0:
                    mbarrier.wait(third_full.index(out_stage), out_step // THIRD_STAGES & 1)
                    out = out_smem.index(out_stage).reshape([BLOCK_M, BLOCK_C])
                    delta_slab += gl.sum(out.load(slab).to(gl.float32) * grad.load(slab).to(gl.float32), 1)
                dvalue = warpgroup_mma_wait(num_outstanding=1, deps=[dvalue])
                dvalue_smem.index(0).reshape([BLOCK_N, BLOCK_C]).store((dvalue * gamma).to(gl.bfloat16))
                fence_async_shared()
                store(dvalue_desc, STRIDE, line, inner, half * BLOCK_N, channel, dvalue_smem.index(0))
            else:
                third_stage = step % THIRD_STAGES
                mbarrier.wait(third_full.index(third_stage), step // THIRD_STAGES & 1)
                earlier = dvalue_smem.index(third_stage).reshape([BLOCK_N, BLOCK_C])
                dvalue = warpgroup_mma_wait(num_outstanding=1, deps=[dvalue])
                earlier.store(gl.fma(dvalue, gamma, earlier.load(slab).to(gl.float32)).to(gl.bfloat16))
                fence_async_shared()
                store(dvalue_desc, STRIDE, line, inner, half * BLOCK_N, channel, dvalue_smem.index(third_stage))
                tma.store_wait(LAG)
                _load_dvalue(
                    step + THIRD_STAGES - LAG, steps, lines, inner, dvalue_desc, STRIDE, dvalue_smem, third_full,
                    SLABS, BLOCK_N, BLOCK_C, THIRD_STAGES, REVERSED,
                )  # fmt: skip
            dattention = warpgroup_mma_wait(num_outstanding=0, deps=[dattention])
            if FIRST:
                tma.store_wait(0)  # the next step writes to the buffer of dvalue
            barrier()  # all warps have read the slabs
            _load_slab(
                step + STAGES, steps, lines, inner, grad_desc, value_desc, grad_stride, value_stride, grad_smem,
                value_smem, full, SLABS, BLOCK_N, BLOCK_C, STAGES, REVERSED,
            )  # fmt: skip
            if FIRST:  # noqa: SIM102 - known to the compiler, unlike the next condition
                if half == 0:
                    load_slab(
                        out_step + THIRD_STAGES, count * SLABS, lines, inner, out_desc, C, out_smem, third_full,
                        SLABS, BLOCK_C, THIRD_STAGES, REVERSED,
                    )  # fmt: skip

        if FIRST:
            delta = gl.convert_layout(delta_slab, gl.SliceLayout(1, wide))
            if half == 0:
                gl.store(delta_ptr + start + rows * inner, delta, mask=rows_valid)
        square.store((square.load(wide).to(gl.float32) * (dattention - delta[:, None])).to(gl.bfloat16))
        fence_async_shared()
        # The statistics of the next unit and the partial sums arrive during the products. The partial sum of dquery
        # also connects the two units; a thread reads only what it wrote itself.
        following = first_pixel(line_at(gl.minimum(unit + 1, units - 1) // 2, lines, REVERSED), length, inner)
        log2_sums = _log2_sums(stats_ptr, following, inner, rows, rows_valid)
        keys = offs_thin_n + zero + half * BLOCK_N
        keys_valid = (keys < length)[:, None]
        key_offs = (keys * inner * D)[:, None] + offs_d[None, :]
        queries = offs_thin_m + zero
        queries_valid = (queries < length)[:, None]
        query_offs = (queries * inner * D)[:, None] + offs_d[None, :]
        has_earlier = queries_valid
        if FIRST:
            has_earlier = has_earlier & (half == 1)
        earlier_dquery = gl.load(partial_dquery_ptr + start * D + query_offs, mask=has_earlier, other=0.0)
        no_dkey = gl.zeros([BLOCK_N, D], gl.float32, thin)
        dkey = warpgroup_mma(square.permute((1, 0)), query, no_dkey, use_acc=False, is_async=True)
        no_dquery = gl.zeros([BLOCK_M, D], gl.float32, thin)
        dquery = warpgroup_mma(square, key, no_dquery, use_acc=False, is_async=True)
        if not FIRST:
            earlier_dkey = gl.load(partial_dkey_ptr + start * D + key_offs, mask=keys_valid, other=0.0)
        dkey, dquery = warpgroup_mma_wait(num_outstanding=0, deps=[dkey, dquery])
        barrier()  # all warps have read query and key
        _load_query_and_key(
            unit + 1, units, lines, inner, query_desc, key_desc, query_stride, query_smem, key_smem, query_full,
            key_full, BLOCK_N, REVERSED,
        )  # fmt: skip
        if FIRST:
            dkey *= gamma * scale
        else:
            dkey = gl.fma(dkey, gamma * scale, earlier_dkey)
        dquery = gl.fma(dquery, gamma * scale, earlier_dquery)
        if LAST:
            dkey_offs = (keys * inner * STRIDE)[:, None] + offs_d[None, :]
            gl.store(dkey_ptr + start * STRIDE + dkey_offs, dkey.to(gl.bfloat16), mask=keys_valid)
        else:
            gl.store(partial_dkey_ptr + start * D + key_offs, dkey, mask=keys_valid)
        if LAST:
            if half == 1:
                dquery_offs = (queries * inner * STRIDE)[:, None] + offs_d[None, :]
                gl.store(dquery_ptr + start * STRIDE + dquery_offs, dquery.to(gl.bfloat16), mask=queries_valid)
            else:
                gl.store(partial_dquery_ptr + start * D + query_offs, dquery, mask=queries_valid)
        else:
            gl.store(partial_dquery_ptr + start * D + query_offs, dquery, mask=queries_valid)
    tma.store_wait(0)
