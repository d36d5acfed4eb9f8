"""Forward pass along one axis, in Triton.

    out[i] = sum_j softmax_j(scale * query[i] . key[j]) value[j],    for j on the line of i

One pass per axis updates the same ``out`` in turn. For every pixel, a pass merges the softmax of its own line with
the results of the earlier passes: the maximum score m', the sum l' of exp(score - m'), and the output out':

    M = max(m, m'),   L = l e^(m - M) + l' e^(m' - M)
    out <- out' l' e^(m' - M) / L  +  sum_j value[j] e^(score[j] - M) / L

and passes (M, L) on to the next one. The softmax over all axes is therefore exact, scores never leave the chip, and
between passes ``out`` is stored in its final dtype. The kernels keep (m, l) rather than m + log l: scores are
unscaled and large, and a float32 log-sum-exp near 20 has an error of about 1e-6, which would carry over to every
weight. The last pass can fuse ``gamma * out + residual`` into its store.

There are two tiling schemes, chosen by line length. If the line fits in one tile of keys, its softmax weights stay
on chip and are multiplied with one slab of channels at a time. Otherwise, each program owns one slab and loops over
the keys with a running maximum and sum.

Source: Huang et al., CCNet, TPAMI 2020, arXiv:1811.11721, equations 1 and 2; the online softmax is from Milakov and
Gimelshein, arXiv:1805.02867.

Notation: query, key (pixels, D); value, out, residual, result (pixels, C); stats (pixels, 2), m and l in float32;
gamma (1,). BLOCK_M queries, BLOCK_N keys, BLOCK_C channels per slab, BLOCK_D >= D.
"""

import triton
import triton.language as tl

from .addressing import finite, is_key, line_rows, line_start, load_block, load_rows, store_block
from .overlap import allow_next_launch, wait_for_previous_launch_after


@triton.jit
def _join(maximum, total, previous_stats_ptr, rows, rows_valid, HAS_PREVIOUS: tl.constexpr):
    """Merge this line's softmax with that of the earlier passes.

    Return the joint maximum and sum, and the factors that rescale the earlier output and this line's weights.
    """
    joint = maximum
    before = total
    if HAS_PREVIOUS:
        previous = tl.load(previous_stats_ptr + 2 * rows, mask=rows_valid, other=0.0)
        before = tl.load(previous_stats_ptr + 2 * rows + 1, mask=rows_valid, other=1.0)
        joint = tl.maximum(maximum, previous)
        before *= tl.exp(previous - finite(joint))
    factor = tl.exp(maximum - finite(joint))
    total *= factor
    if HAS_PREVIOUS:
        total += before
    divisor = tl.where(total == 0.0, 1.0, total)  # no keys: a line of one pixel that masks itself
    return joint, total, before / divisor, factor / divisor


@triton.jit
def _store_slab(
    acc, keep, gamma, out_ptr, residual_ptr, result_ptr, rows, residual_stride, offs_c, rows_valid,
    C: tl.constexpr, HAS_PREVIOUS: tl.constexpr, HAS_RESIDUAL: tl.constexpr, SAVE_OUT: tl.constexpr,
):  # fmt: skip
    """Merge one slab with the output of the earlier passes and store it."""
    mask = rows_valid[:, None] & (offs_c < C)[None, :]
    offs = rows[:, None] * C + offs_c[None, :]
    if HAS_PREVIOUS:
        # Safe in-place: no other program reads or writes these elements.
        acc += keep[:, None] * tl.load(out_ptr + offs, mask=mask, other=0.0).to(tl.float32)
    if SAVE_OUT:
        tl.store(out_ptr + offs, acc.to(out_ptr.dtype.element_ty), mask=mask)
    if HAS_RESIDUAL:
        residual = load_rows(residual_ptr, rows, residual_stride, offs_c, rows_valid, C)
        result = gamma * acc + residual.to(tl.float32)
        tl.store(result_ptr + offs, result.to(result_ptr.dtype.element_ty), mask=mask)


@triton.jit
def _store_block(
    acc, keep, gamma, out_desc, residual_desc, result_desc, line, inner, residual_stride, first_query, channel,
    C: tl.constexpr, HAS_PREVIOUS: tl.constexpr, HAS_RESIDUAL: tl.constexpr, SAVE_OUT: tl.constexpr,
):  # fmt: skip
    """Do what ``_store_slab`` does, through tensor descriptors."""
    if HAS_PREVIOUS:
        acc += keep[:, None] * load_block(out_desc, line, inner, C, first_query, channel).to(tl.float32)
    if SAVE_OUT:
        store_block(out_desc, acc, line, inner, C, first_query, channel)
    if HAS_RESIDUAL:
        residual = load_block(residual_desc, line, inner, residual_stride, first_query, channel)
        store_block(result_desc, gamma * acc + residual.to(tl.float32), line, inner, C, first_query, channel)


@triton.jit(do_not_specialize=["length", "inner"])
def line_forward_kernel(
    query_ptr, key_ptr, value_ptr, out_ptr, stats_ptr, previous_stats_ptr,
    residual_ptr, gamma_ptr, result_ptr, value_desc, out_desc, residual_desc, result_desc,
    query_stride, key_stride, value_stride, residual_stride, length, inner, scale,
    D: tl.constexpr, C: tl.constexpr,
    MASK_SELF: tl.constexpr, HAS_PREVIOUS: tl.constexpr, HAS_RESIDUAL: tl.constexpr, SAVE_OUT: tl.constexpr,
    REVERSED: tl.constexpr, WIDE: tl.constexpr, PRECISION: tl.constexpr,
    ONE_KEY_TILE: tl.constexpr, SPLITS: tl.constexpr, WAITS: tl.constexpr, SIGNALS: tl.constexpr,
    STAGES: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_C: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """Attend from one block of queries of one line, for one group of channel slabs (see the module docstring).

    The grid is lines * query blocks * SPLITS. The groups of a line are adjacent, so that they share its query and
    key in the L2 cache. ``stats_ptr`` and ``previous_stats_ptr`` must not alias: groups that start late still read
    the previous statistics after groups that finished early have written theirs.

    Slabs are copied through pointers or, if they are not None, through tensor descriptors (TMA), which need fewer
    registers, so that more programs share a multiprocessor.
    """
    if SIGNALS:
        allow_next_launch()
    blocks = tl.cdiv(length, BLOCK_M)
    pid = tl.program_id(0)
    if REVERSED:  # start where the previous pass ended: that data is still in the L2 cache
        pid = tl.num_programs(0) - 1 - pid
    split = pid % SPLITS
    line = pid // SPLITS // blocks
    first_query = (pid // SPLITS % blocks) * BLOCK_M
    offs_m = first_query + tl.arange(0, BLOCK_M)
    offs_d = tl.arange(0, BLOCK_D)
    rows_valid = offs_m < length
    start = line_start(line, length, inner)
    query_ptr += start * query_stride
    key_ptr += start * key_stride
    value_ptr += start * value_stride
    out_ptr += start * C
    stats_ptr += 2 * start
    if HAS_PREVIOUS:
        previous_stats_ptr += 2 * start
    if HAS_RESIDUAL:
        residual_ptr += start * residual_stride
        result_ptr += start * C
    rows = line_rows(offs_m, inner, WIDE)

    query = load_rows(query_ptr, rows, query_stride, offs_d, rows_valid, D)  # [BLOCK_M, BLOCK_D]
    SLABS: tl.constexpr = ((C + BLOCK_C - 1) // BLOCK_C + SPLITS - 1) // SPLITS
    first_channel = split * SLABS * BLOCK_C
    if value_desc is not None:
        tl.static_assert(SPLITS * SLABS * BLOCK_C == C)  # beyond it, a descriptor has the next pixel's channels
    gamma = 1.0
    if HAS_RESIDUAL:
        gamma = tl.load(gamma_ptr).to(tl.float32)

    if ONE_KEY_TILE:
        offs_n = tl.arange(0, BLOCK_N)
        keys_valid = offs_n < length
        key_rows = line_rows(offs_n, inner, WIDE)
        key = load_rows(key_ptr, key_rows, key_stride, offs_d, keys_valid, D)
        energy = tl.dot(query, tl.trans(key), input_precision=PRECISION) * scale
        energy = tl.where(is_key(offs_m, offs_n, length, MASK_SELF), energy, float("-inf"))
        maximum = tl.max(energy, 1)
        attention = tl.exp(energy - finite(maximum)[:, None])
        total = tl.sum(attention, 1)
        if WAITS:
            total = wait_for_previous_launch_after(total)
        maximum, total, keep, factor = _join(maximum, total, previous_stats_ptr, rows, rows_valid, HAS_PREVIOUS)
        attention = (attention * factor[:, None]).to(value_ptr.dtype.element_ty)  # [BLOCK_M, BLOCK_N]

        # With explicit stages, the compiler also prefetches ``out`` and the residual, not only the factors of tl.dot.
        for slab in tl.range(SLABS, num_stages=STAGES):
            channel = first_channel + slab * BLOCK_C
            if value_desc is None:
                offs_c = channel + tl.arange(0, BLOCK_C)
                value = load_rows(value_ptr, key_rows, value_stride, offs_c, keys_valid, C)
                acc = tl.dot(attention, value, input_precision=PRECISION)
                _store_slab(
                    acc, keep, gamma, out_ptr, residual_ptr, result_ptr, rows, residual_stride, offs_c,
                    rows_valid, C, HAS_PREVIOUS, HAS_RESIDUAL, SAVE_OUT,
                )  # fmt: skip
            else:
                value = load_block(value_desc, line, inner, value_stride, 0, channel)
                acc = tl.dot(attention, value, input_precision=PRECISION)
                _store_block(
                    acc, keep, gamma, out_desc, residual_desc, result_desc, line, inner, residual_stride,
                    first_query, channel, C, HAS_PREVIOUS, HAS_RESIDUAL, SAVE_OUT,
                )  # fmt: skip
    else:
        tl.static_assert(SLABS == 1)
        offs_c = first_channel + tl.arange(0, BLOCK_C)
        maximum = tl.full([BLOCK_M], float("-inf"), tl.float32)
        total = tl.zeros([BLOCK_M], tl.float32)
        acc = tl.zeros([BLOCK_M, BLOCK_C], tl.float32)
        for first_key in range(0, length, BLOCK_N):
            offs_n = first_key + tl.arange(0, BLOCK_N)
            keys_valid = offs_n < length
            key_rows = line_rows(offs_n, inner, WIDE)
            key = load_rows(key_ptr, key_rows, key_stride, offs_d, keys_valid, D)
            value = load_rows(value_ptr, key_rows, value_stride, offs_c, keys_valid, C)
            energy = tl.dot(query, tl.trans(key), input_precision=PRECISION) * scale
            energy = tl.where(is_key(offs_m, offs_n, length, MASK_SELF), energy, float("-inf"))

            larger = tl.maximum(maximum, tl.max(energy, 1))
            attention = tl.exp(energy - finite(larger)[:, None])
            shrink = tl.exp(maximum - finite(larger))
            total = total * shrink + tl.sum(attention, 1)
            acc = acc * shrink[:, None]
            acc = tl.dot(attention.to(value.dtype), value, acc, input_precision=PRECISION)
            maximum = larger
        if WAITS:
            total = wait_for_previous_launch_after(total)
        maximum, total, keep, factor = _join(maximum, total, previous_stats_ptr, rows, rows_valid, HAS_PREVIOUS)
        _store_slab(
            acc * factor[:, None], keep, gamma, out_ptr, residual_ptr, result_ptr, rows, residual_stride,
            offs_c, rows_valid, C, HAS_PREVIOUS, HAS_RESIDUAL, SAVE_OUT,
        )  # fmt: skip

    if split == 0:
        tl.store(stats_ptr + 2 * rows, maximum, mask=rows_valid)
        tl.store(stats_ptr + 2 * rows + 1, total, mask=rows_valid)
