"""Backward pass along one axis, in Triton.

With P the attention weights of the full softmax, recomputed from the saved maximum and sum, G the upstream gradient,
and gamma = 1 unless ``gamma * out + residual`` was fused:

    delta[i]  = sum_c out[i, c] G[i, c]                            the same for every axis
    dS[i, j]  = P[i, j] (G[i] . value[j] - delta[i])
    dvalue[j] = gamma sum_i P[i, j] G[i]
    dquery[i] = gamma scale sum_j dS[i, j] key[j]
    dkey[j]   = gamma scale sum_i dS[i, j] query[i]

gamma multiplies the products rather than their factors: it starts at 0, and a half-precision dS times a small gamma
would underflow. The gradient of gamma itself is the sum of delta.

One program owns one line, so there are no atomics and results are bitwise reproducible. It loops over tiles of keys,
then tiles of queries, then slabs of channels; a line that fits in one tile takes one iteration of the outer two.
Tiles and passes accumulate into partial sums in global memory that only this program accesses. The first pass
computes delta in the loop that reads ``out`` and G anyway, and stores it for the later passes.

Source: the derivative of equations 1 and 2 of Huang et al., CCNet, TPAMI 2020, arXiv:1811.11721; delta and the
recomputation of P follow FlashAttention-2, Dao, arXiv:2307.08691.

Notation: query, key, dquery, dkey (pixels, D); value, out, G, dvalue (pixels, C); stats (pixels, 2), maximum and sum
in float32; delta (pixels,); gamma (1,). BLOCK_M queries, BLOCK_N keys, BLOCK_C channels per slab, BLOCK_D >= D.
"""

import triton
import triton.language as tl

from .addressing import is_key, line_rows, line_start, load_rows
from .overlap import allow_next_launch, wait_for_previous_launch


@triton.jit
def _accumulate(
    x, partial_ptr, result_ptr, rows, offs_c, rows_valid, visit, visits,
    CHANNELS: tl.constexpr, STRIDE: tl.constexpr, FIRST: tl.constexpr, LAST: tl.constexpr, ONCE: tl.constexpr,
):  # fmt: skip
    """Add ``x`` to the partial sum; on the last visit of the last pass, store the total in the result instead.

    A partial sum of the result's dtype is in the result itself, whose pixels are STRIDE apart. Others are dense.
    """
    mask = rows_valid[:, None]
    # Where it would always hold, this condition is left out of the later passes, which spill a register otherwise. The
    # first pass spills one without it (Triton 3.6, 128x128x64 tiles, gradients in one array).
    if FIRST or tl.constexpr(CHANNELS) % offs_c.shape[0] != 0:
        mask = mask & (offs_c < CHANNELS)[None, :]
    IN_RESULT: tl.constexpr = partial_ptr.dtype.element_ty == result_ptr.dtype.element_ty
    offs = rows[:, None] * (STRIDE if IN_RESULT else CHANNELS) + offs_c[None, :]
    if LAST and IN_RESULT:
        partial_ptr = result_ptr
    first = FIRST and ONCE
    last = LAST and ONCE and not IN_RESULT
    if FIRST and not ONCE:
        first = visit == 0
    if LAST and not ONCE and not IN_RESULT:
        last = visit == visits - 1
    if not first:
        # Not `x +=`, which folds into the product as its accumulator: that does not compile in the pipelined loop.
        x = tl.fma(x, 1.0, tl.load(partial_ptr + offs, mask=mask, other=0.0).to(tl.float32))
    if last:
        offs = rows[:, None] * STRIDE + offs_c[None, :]
        tl.store(result_ptr + offs, x.to(result_ptr.dtype.element_ty), mask=mask)
    else:
        tl.store(partial_ptr + offs, x.to(partial_ptr.dtype.element_ty), mask=mask)


@triton.jit(do_not_specialize=["length", "inner"])
def line_backward_kernel(
    query_ptr, key_ptr, value_ptr, out_ptr, stats_ptr, grad_ptr, gamma_ptr, delta_ptr,
    partial_dquery_ptr, partial_dkey_ptr, partial_dvalue_ptr, dquery_ptr, dkey_ptr, dvalue_ptr,
    query_stride, key_stride, value_stride, grad_stride, length, inner, scale,
    D: tl.constexpr, C: tl.constexpr,
    MASK_SELF: tl.constexpr, HAS_GAMMA: tl.constexpr, JOINED: tl.constexpr, FIRST: tl.constexpr, LAST: tl.constexpr,
    REVERSED: tl.constexpr, WIDE: tl.constexpr, PRECISION: tl.constexpr,
    ONE_QUERY_TILE: tl.constexpr, ONE_KEY_TILE: tl.constexpr, WAITS: tl.constexpr, SIGNALS: tl.constexpr,
    STAGES: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_C: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """Compute all gradients of one line (see the module docstring). The grid has one program per line.

    If JOINED, the gradients of query, key and value are slices of one (pixels, 2 D + C) array.
    """
    if SIGNALS:
        allow_next_launch()
    line = tl.program_id(0)
    if REVERSED:  # start where the previous pass ended: that data is still in the L2 cache
        line = tl.num_programs(0) - 1 - line
    start = line_start(line, length, inner)
    query_ptr += start * query_stride
    key_ptr += start * key_stride
    value_ptr += start * value_stride
    out_ptr += start * C
    grad_ptr += start * grad_stride
    stats_ptr += 2 * start
    delta_ptr += start
    D_STRIDE: tl.constexpr = 2 * D + C if JOINED else D
    C_STRIDE: tl.constexpr = 2 * D + C if JOINED else C
    partial_dquery_ptr += start * (D_STRIDE if partial_dquery_ptr.dtype == dquery_ptr.dtype else D)
    partial_dkey_ptr += start * (D_STRIDE if partial_dkey_ptr.dtype == dkey_ptr.dtype else D)
    partial_dvalue_ptr += start * (C_STRIDE if partial_dvalue_ptr.dtype == dvalue_ptr.dtype else C)
    dquery_ptr += start * D_STRIDE
    dkey_ptr += start * D_STRIDE
    dvalue_ptr += start * C_STRIDE
    query_tiles = 1 if ONE_QUERY_TILE else tl.cdiv(length, BLOCK_M)
    key_tiles = 1 if ONE_KEY_TILE else tl.cdiv(length, BLOCK_N)
    offs_d = tl.arange(0, BLOCK_D)
    gamma = 1.0
    if HAS_GAMMA:
        gamma = tl.load(gamma_ptr).to(tl.float32)

    # One loop, because addresses of keys, kept over an inner loop of query tiles, would spill.
    for tile in tl.range(key_tiles * query_tiles, disable_licm=True):
        key_tile = tile // query_tiles
        query_tile = tile % query_tiles
        offs_n = key_tile * BLOCK_N + tl.arange(0, BLOCK_N)
        keys_valid = offs_n < length
        key_rows = line_rows(offs_n, inner, WIDE)
        key = load_rows(key_ptr, key_rows, key_stride, offs_d, keys_valid, D)  # [BLOCK_N, BLOCK_D]
        offs_m = query_tile * BLOCK_M + tl.arange(0, BLOCK_M)
        rows_valid = offs_m < length
        rows = line_rows(offs_m, inner, WIDE)
        query = load_rows(query_ptr, rows, query_stride, offs_d, rows_valid, D)  # [BLOCK_M, BLOCK_D]

        maximum = tl.load(stats_ptr + 2 * rows, mask=rows_valid, other=0.0)
        total = tl.load(stats_ptr + 2 * rows + 1, mask=rows_valid, other=1.0)
        energy = tl.dot(query, tl.trans(key), input_precision=PRECISION) * scale
        valid = is_key(offs_m, offs_n, length, MASK_SELF) & rows_valid[:, None]
        attention = tl.where(valid, tl.exp(energy - maximum[:, None]), 0.0)  # [BLOCK_M, BLOCK_N]
        attention *= (1.0 / total)[:, None]
        weights = attention.to(value_ptr.dtype.element_ty)
        if WAITS:
            wait_for_previous_launch()

        # The first pass computes delta along with its first tile of keys; later tiles and passes read it.
        known = rows_valid & (key_tile > 0) if FIRST else rows_valid
        delta = tl.load(delta_ptr + rows, mask=known, other=0.0)
        dattention = tl.zeros([BLOCK_M, BLOCK_N], tl.float32)
        for channel in tl.range(0, C, BLOCK_C, num_stages=STAGES, disable_licm=True):
            offs_c = channel + tl.arange(0, BLOCK_C)
            grad = load_rows(grad_ptr, rows, grad_stride, offs_c, rows_valid, C)
            value = load_rows(value_ptr, key_rows, value_stride, offs_c, keys_valid, C)
            dattention = tl.dot(grad, tl.trans(value), dattention, input_precision=PRECISION)
            dvalue = tl.dot(tl.trans(weights), grad, input_precision=PRECISION) * gamma
            _accumulate(
                dvalue, partial_dvalue_ptr, dvalue_ptr, key_rows, offs_c, keys_valid, query_tile,
                query_tiles, C, C_STRIDE, FIRST, LAST, ONE_QUERY_TILE,
            )  # fmt: skip
            if FIRST:
                out = load_rows(out_ptr, rows, C, offs_c, rows_valid & (key_tile == 0), C)
                delta += tl.sum(out.to(tl.float32) * grad.to(tl.float32), 1)
        if FIRST:
            tl.store(delta_ptr + rows, delta, mask=rows_valid & (key_tile == 0))

        denergy = (attention * (dattention - delta[:, None])).to(query.dtype)
        dkey = tl.dot(tl.trans(denergy), query, input_precision=PRECISION) * (gamma * scale)
        _accumulate(
            dkey, partial_dkey_ptr, dkey_ptr, key_rows, offs_d, keys_valid, query_tile, query_tiles,
            D, D_STRIDE, FIRST, LAST, ONE_QUERY_TILE,
        )  # fmt: skip
        dquery = tl.dot(denergy, key, input_precision=PRECISION) * (gamma * scale)
        _accumulate(
            dquery, partial_dquery_ptr, dquery_ptr, rows, offs_d, rows_valid, key_tile, key_tiles,
            D, D_STRIDE, FIRST, LAST, ONE_KEY_TILE,
        )  # fmt: skip
        if not (ONE_QUERY_TILE and ONE_KEY_TILE):
            tl.debug_barrier()  # in the next tile, threads read partial sums that other threads wrote
