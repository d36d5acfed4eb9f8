"""Persistent forward pass along lines of up to 256 pixels, in Gluon.

It computes what ``kernels/forward.py`` does. Programs walk over the lines. A program takes all queries of a line, whose
weights stay in registers, so that each slab of the value is read once; of a line of up to 256 pixels, in two halves of
128 queries. The copies of the next slabs, and of the next line's query and key, are under way while a line's scores are
computed, so the memory is never idle.

The earlier output and the residual move in units of one half and one slab. A unit is replaced in shared memory by the
result, which is stored from there. Weights are rounded before they are divided by their sum, products after it: with
normalised weights, the kernel spills.
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

from .copies import async_load, async_store, barrier, barriers, line_at


@gluon.jit
def _load_value(
    ahead, first_step, steps, image, place, next_image, next_place, desc, stride, smem, full,
    SLABS: gl.constexpr, BLOCK_C: gl.constexpr, STAGES: gl.constexpr,
):  # fmt: skip
    """Start copying the value slab that is ``ahead`` of this line's first one: beyond SLABS, of the next line."""
    step, following = first_step + ahead, ahead >= SLABS
    image, place = gl.where(following, next_image, image), gl.where(following, next_place, place)
    stage, pred = step % STAGES, step < steps
    mbarrier.expect(full.index(stage), desc.block_type.nbytes, pred)
    at = [image, 0, place * stride + ahead % SLABS * BLOCK_C]
    async_load(desc, at, full.index(stage), smem.index(stage), pred)


@gluon.jit
def _load_unit(
    ahead, first_step, steps, image, place, next_image, next_place, out_desc, residual_desc, residual_stride,
    out_smem, residual_smem, full,
    C: gl.constexpr, HAS_PREVIOUS: gl.constexpr, HAS_RESIDUAL: gl.constexpr, HALVES: gl.constexpr,
    BLOCK_M: gl.constexpr, BLOCK_C: gl.constexpr, UNITS: gl.constexpr,
):  # fmt: skip
    """Start copying a unit of the earlier output and of the residual; ``ahead`` counts units."""
    if HAS_PREVIOUS or HAS_RESIDUAL:
        SLABS: gl.constexpr = C // BLOCK_C
        slab, row = ahead // HALVES, ahead % HALVES * BLOCK_M
        following, pred = slab >= SLABS, first_step + slab < steps
        image, place = gl.where(following, next_image, image), gl.where(following, next_place, place)
        channel, stage = slab % SLABS * BLOCK_C, (first_step * HALVES + ahead) % UNITS
        mbarrier.expect(full.index(stage), (HAS_PREVIOUS + HAS_RESIDUAL) * out_desc.block_type.nbytes, pred)
        if HAS_PREVIOUS:
            at = [image, row, place * C + channel]
            async_load(out_desc, at, full.index(stage), out_smem.index(stage), pred)
        if HAS_RESIDUAL:
            residual_at = [image, row, place * residual_stride + channel]
            async_load(residual_desc, residual_at, full.index(stage), residual_smem.index(stage), pred)


@gluon.jit
def _load_query_and_key(
    image, place, query_desc, key_desc, stride, query_smem, key_smem, full, pred,
    HALVES: gl.constexpr, BLOCK_M: gl.constexpr,
):  # fmt: skip
    mbarrier.expect(full.index(0), query_desc.block_type.nbytes + key_desc.block_type.nbytes, pred)
    async_load(query_desc, [image, 0, place * stride], full.index(0), query_smem.index(0), pred)
    async_load(key_desc, [image, 0, place * stride], full.index(0), key_smem.index(0), pred)
    if HALVES == 2:
        mbarrier.expect(full.index(1), query_desc.block_type.nbytes, pred)
        async_load(query_desc, [image, BLOCK_M, place * stride], full.index(1), query_smem.index(1), pred)


@gluon.jit
def _weights(
    query, key, first, length, zero, scale,
    wide: gl.constexpr, slab: gl.constexpr, BLOCK_M: gl.constexpr, BLOCK_N: gl.constexpr,
    MASK_SELF: gl.constexpr, WHOLE: gl.constexpr,
):  # fmt: skip
    """Return the weights of BLOCK_M queries before normalisation, as an operand, their maxima and their sums."""
    no_energy = gl.zeros([BLOCK_M, BLOCK_N], gl.float32, wide)
    energy = warpgroup_mma(query, key.permute((1, 0)), no_energy, use_acc=False) * scale
    # ``zero`` is unknown to the compiler, which would otherwise keep the comparisons of all lines in registers.
    offs_n = gl.arange(0, BLOCK_N, layout=gl.SliceLayout(0, wide)) + zero
    if MASK_SELF:
        offs_m = first + gl.arange(0, BLOCK_M, layout=gl.SliceLayout(1, wide))
        energy = gl.where(offs_m[:, None] != offs_n[None, :], energy, float("-inf"))
    if not WHOLE:
        energy = gl.where((offs_n < length)[None, :], energy, float("-inf"))
    maximum = gl.max(energy, 1)
    finite = gl.where(maximum == float("-inf"), 0.0, maximum)
    attention = gl.exp2((energy - finite[:, None]) * 1.4426950408889634)
    total = gl.sum(attention, 1)
    return gl.convert_layout(attention.to(gl.bfloat16), gl.DotOperandLayout(0, slab, 2)), maximum, total


@gluon.jit
def _join(
    maximum, total, stats_ptr, previous_stats_ptr, start, first, length, inner,
    wide: gl.constexpr, slab: gl.constexpr, BLOCK_M: gl.constexpr, HAS_PREVIOUS: gl.constexpr,
):  # fmt: skip
    """Merge with the earlier passes and store the statistics.

    Return the factors that normalise the weights and that rescale the earlier output.
    """
    offs_m = first + gl.arange(0, BLOCK_M, layout=gl.SliceLayout(1, wide))
    valid = offs_m < length
    joint = maximum
    if HAS_PREVIOUS:
        previous = gl.load(previous_stats_ptr + 2 * start + 2 * offs_m * inner, mask=valid, other=0.0)
        before = gl.load(previous_stats_ptr + 2 * start + (2 * offs_m * inner + 1), mask=valid, other=1.0)
        joint = gl.maximum(maximum, previous)
        before *= gl.exp(previous - gl.where(joint == float("-inf"), 0.0, joint))
    factor = gl.exp(maximum - gl.where(joint == float("-inf"), 0.0, joint))
    total *= factor
    if HAS_PREVIOUS:
        total += before
    inverse = 1.0 / gl.where(total == 0.0, 1.0, total)  # no keys: a line of one pixel that masks itself
    gl.store(stats_ptr + 2 * start + 2 * offs_m * inner, joint, mask=valid)
    gl.store(stats_ptr + 2 * start + (2 * offs_m * inner + 1), total, mask=valid)
    factor = gl.convert_layout(factor * inverse, gl.SliceLayout(1, slab))
    keep = factor
    if HAS_PREVIOUS:
        keep = gl.convert_layout(before * inverse, gl.SliceLayout(1, slab))
    return factor, keep


@gluon.jit
def _store_unit(
    acc, factor, keep, gamma, image, row, channel, out_desc, result_desc, out_smem, residual_smem,
    slab: gl.constexpr, BLOCK_M: gl.constexpr, BLOCK_C: gl.constexpr,
    HAS_PREVIOUS: gl.constexpr, HAS_RESIDUAL: gl.constexpr, SAVE_OUT: gl.constexpr,
):  # fmt: skip
    """Merge a unit with the earlier output and the residual in shared memory, replace them, and start storing."""
    acc *= factor[:, None]
    out = out_smem.reshape([BLOCK_M, BLOCK_C])
    residual = residual_smem.reshape([BLOCK_M, BLOCK_C])
    if HAS_PREVIOUS:
        factors = keep[:, None] + gl.zeros([BLOCK_M, BLOCK_C], gl.float32, slab)
        acc = gl.fma(out.load(slab).to(gl.float32), factors, acc)
    if HAS_RESIDUAL:
        result = gamma * acc + residual.load(slab).to(gl.float32)
        residual.store(result.to(gl.bfloat16))
    if SAVE_OUT:
        out.store(acc.to(gl.bfloat16))
    fence_async_shared()
    if SAVE_OUT:
        async_store(out_desc, [image, row, channel], out_smem)
    if HAS_RESIDUAL:
        async_store(result_desc, [image, row, channel], residual_smem)


@gluon.jit(do_not_specialize=["length", "inner", "lines"])
def persistent_forward_kernel(
    query_desc, key_desc, value_desc, out_desc, residual_desc, result_desc, stats_ptr, previous_stats_ptr, gamma_ptr,
    query_stride, value_stride, residual_stride, length, inner, lines, scale,
    D: gl.constexpr, C: gl.constexpr,
    MASK_SELF: gl.constexpr, HAS_PREVIOUS: gl.constexpr, HAS_RESIDUAL: gl.constexpr, SAVE_OUT: gl.constexpr,
    REVERSED: gl.constexpr, WHOLE: gl.constexpr, WAITS: gl.constexpr, SIGNALS: gl.constexpr,
    STAGES: gl.constexpr, UNITS: gl.constexpr, LAG: gl.constexpr, HALVES: gl.constexpr,
    BLOCK_M: gl.constexpr, BLOCK_N: gl.constexpr, BLOCK_C: gl.constexpr,
    num_warps: gl.constexpr,
):  # fmt: skip
    """Attend from all queries of the program's lines.

    ``query_stride`` is that of query and key. The descriptors' blocks have BLOCK_N rows of key and value, and BLOCK_M
    of the others. WHOLE: length == BLOCK_N. STAGES slabs of the value and UNITS units are in shared memory; a unit is
    copied UNITS - LAG units ahead, to where the unit LAG before the current one has been stored from. The other
    constants have the meaning of those of ``line_forward_kernel``.
    """
    SLABS: gl.constexpr = C // BLOCK_C
    LOADS: gl.constexpr = HAS_PREVIOUS or HAS_RESIDUAL
    STORES: gl.constexpr = SAVE_OUT + HAS_RESIDUAL
    gl.static_assert(HAS_RESIDUAL or SAVE_OUT)
    gl.static_assert(UNITS > LAG)
    gl.static_assert(STAGES <= SLABS)  # copies are at most one line ahead
    gl.static_assert(UNITS - LAG <= HALVES * SLABS)
    if SIGNALS:
        gdc_launch_dependents()
    wide: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [num_warps, 1], [16, BLOCK_N, 16])
    slab: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [num_warps, 1], [16, BLOCK_C, 16])

    value_smem = gl.allocate_shared_memory(gl.bfloat16, [STAGES, 1, BLOCK_N, BLOCK_C], value_desc.layout)
    if HAS_PREVIOUS or SAVE_OUT:
        out_smem = gl.allocate_shared_memory(gl.bfloat16, [UNITS, 1, BLOCK_M, BLOCK_C], out_desc.layout)
    if HAS_RESIDUAL:
        residual_smem = gl.allocate_shared_memory(gl.bfloat16, [UNITS, 1, BLOCK_M, BLOCK_C], out_desc.layout)
        if not (HAS_PREVIOUS or SAVE_OUT):
            out_smem = residual_smem
    else:
        residual_smem = out_smem
    query_smem = gl.allocate_shared_memory(gl.bfloat16, [HALVES, 1, BLOCK_M, D], query_desc.layout)
    key_smem = gl.allocate_shared_memory(gl.bfloat16, [1, 1, BLOCK_N, D], key_desc.layout)
    full, unit_full, query_full = barriers(STAGES), barriers(UNITS), barriers(HALVES)
    fence_async_shared()

    count = gl.cdiv(lines - gl.program_id(0), gl.num_programs(0))
    steps = count * SLABS
    line = line_at(0, lines, REVERSED)
    next_image, next_place = line // inner, line % inner
    _load_query_and_key(
        next_image, next_place, query_desc, key_desc, query_stride, query_smem, key_smem, query_full, count > 0,
        HALVES, BLOCK_M,
    )  # fmt: skip
    for k in gl.static_range(STAGES):
        _load_value(
            k, 0, steps, next_image, next_place, next_image, next_place, value_desc, value_stride, value_smem, full,
            SLABS, BLOCK_C, STAGES,
        )  # fmt: skip
    if WAITS:  # what follows reads or overwrites results of the previous launch
        gdc_wait()
    for k in gl.static_range(UNITS - LAG):
        _load_unit(
            k, 0, steps, next_image, next_place, next_image, next_place, out_desc, residual_desc, residual_stride,
            out_smem, residual_smem, unit_full, C, HAS_PREVIOUS, HAS_RESIDUAL, HALVES, BLOCK_M, BLOCK_C, UNITS,
        )  # fmt: skip
    gamma = 1.0
    if HAS_RESIDUAL:
        gamma = gl.load(gamma_ptr).to(gl.float32)

    for index in range(count):
        image, place = next_image, next_place
        line = line_at(gl.minimum(index + 1, count - 1), lines, REVERSED)
        next_image, next_place = line // inner, line % inner
        start = image.to(gl.int64) * length * inner + place
        zero = gl.minimum(image, 0)
        key = key_smem.index(zero).reshape([BLOCK_N, D])
        weights1 = gl.zeros([BLOCK_M, BLOCK_N], gl.bfloat16, gl.DotOperandLayout(0, slab, 2))
        factor1 = gl.zeros([BLOCK_M], gl.float32, gl.SliceLayout(1, slab))
        weights0, factor0, keep0, keep1 = weights1, factor1, factor1, factor1
        # The compiler does not unroll this loop: the weights of the first half become operands before the second half.
        for half in range(HALVES + zero):
            mbarrier.wait(query_full.index(half), index & 1)
            weights0, factor0, keep0 = weights1, factor1, keep1
            query = query_smem.index(half).reshape([BLOCK_M, D])
            weights1, maximum, total = _weights(
                query, key, half * BLOCK_M, length, zero, scale, wide, slab, BLOCK_M, BLOCK_N, MASK_SELF, WHOLE
            )
            factor1, keep1 = _join(
                maximum, total, stats_ptr, previous_stats_ptr, start, half * BLOCK_M, length, inner,
                wide, slab, BLOCK_M, HAS_PREVIOUS,
            )  # fmt: skip
        if HALVES == 1:
            weights0, factor0, keep0 = weights1, factor1, keep1
        barrier()  # all warps have read query and key
        _load_query_and_key(
            next_image, next_place, query_desc, key_desc, query_stride, query_smem, key_smem, query_full,
            index + 1 < count, HALVES, BLOCK_M,
        )  # fmt: skip

        for number in range(SLABS):
            step = index * SLABS + number
            stage = step % STAGES
            mbarrier.wait(full.index(stage), step // STAGES & 1)
            value = value_smem.index(stage).reshape([BLOCK_N, BLOCK_C])
            no_acc = gl.zeros([BLOCK_M, BLOCK_C], gl.float32, slab)
            acc0 = warpgroup_mma(weights0, value, no_acc, use_acc=False, is_async=True)
            if HALVES == 2:
                acc1 = warpgroup_mma(weights1, value, no_acc, use_acc=False, is_async=True)
            for h in gl.static_range(HALVES):
                unit = step * HALVES + h
                slot = unit % UNITS
                if LOADS:
                    mbarrier.wait(unit_full.index(slot), unit // UNITS & 1)
                else:
                    tma.store_wait((UNITS - 1) * STORES)
                    barrier()
                if h == 0:
                    acc = warpgroup_mma_wait(num_outstanding=HALVES - 1, deps=[acc0])
                    keep, factor = keep0, factor0
                else:
                    acc = warpgroup_mma_wait(num_outstanding=0, deps=[acc1])
                    keep, factor = keep1, factor1
                if h == HALVES - 1:
                    barrier()  # all warps have read the slab
                    _load_value(
                        number + STAGES, index * SLABS, steps, image, place, next_image, next_place, value_desc,
                        value_stride, value_smem, full, SLABS, BLOCK_C, STAGES,
                    )  # fmt: skip
                _store_unit(
                    acc, factor, keep, gamma, image, h * BLOCK_M, place * C + number * BLOCK_C, out_desc,
                    result_desc, out_smem.index(slot), residual_smem.index(slot),
                    slab, BLOCK_M, BLOCK_C, HAS_PREVIOUS, HAS_RESIDUAL, SAVE_OUT,
                )  # fmt: skip
                if LOADS:
                    tma.store_wait(LAG * STORES)  # the unit LAG before this one has been read from its buffer
                    _load_unit(
                        number * HALVES + h + UNITS - LAG, index * SLABS, steps, image, place, next_image,
                        next_place, out_desc, residual_desc, residual_stride, out_smem, residual_smem, unit_full,
                        C, HAS_PREVIOUS, HAS_RESIDUAL, HALVES, BLOCK_M, BLOCK_C, UNITS,
                    )  # fmt: skip
    tma.store_wait(0)
