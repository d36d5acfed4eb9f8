"""Addresses and masks of one line, shared by the forward and backward kernels.

    first pixel of line i = (i // inner) * L * inner + i % inner,    for i < pixels / L

``pixels`` counts the pixels of all images, L is the length of the axis, and ``inner`` is the distance in pixels
between neighbours on a line, which is the product of the sizes after the axis. The batch and the preceding axes are
folded into the line number, so L and ``inner`` describe every axis of 1D, 2D and 3D inputs.

Every array is channels-last, (pixels, channels), with contiguous channels and a constant stride between pixels.
Both frameworks launch the same kernels, so this file imports neither torch nor jax.
"""

import triton
import triton.language as tl


@triton.jit
def line_start(line, length, inner):
    """Return the first pixel of a line, in int64 because pixels * channels exceeds 2^31 in large batches."""
    return (line // inner).to(tl.int64) * length * inner + line % inner


@triton.jit
def line_rows(offs, inner, WIDE: tl.constexpr):
    """Return the distance in pixels of the positions ``offs`` from the start of their line, in int64 if WIDE."""
    if WIDE:
        offs = offs.to(tl.int64)
    return offs * inner


@triton.jit
def load_rows(ptr, rows, stride, offs_c, rows_valid, CHANNELS: tl.constexpr):
    """Load a [rows, len(offs_c)] block, padded with zeros beyond the line and beyond the last channel."""
    mask = rows_valid[:, None] & (offs_c < CHANNELS)[None, :]
    return tl.load(ptr + rows[:, None] * stride + offs_c[None, :], mask=mask, other=0.0)


@triton.jit
def is_key(offs_m, offs_n, length, MASK_SELF: tl.constexpr):
    """Return the [BLOCK_M, BLOCK_N] mask of valid keys on the line; MASK_SELF excludes the query's own position."""
    valid = (offs_n < length)[None, :]
    if MASK_SELF:
        valid = valid & (offs_m[:, None] != offs_n[None, :])
    return valid


@triton.jit
def finite(x):
    """Replace -inf, the maximum over no keys, with 0 to avoid computing inf - inf."""
    return tl.where(x == float("-inf"), 0.0, x)


@triton.jit
def load_block(desc, line, inner, stride, first_row, channel):
    """Load a [rows, channels] block of a line through a tensor descriptor: zeros beyond the line, no masks.

    The descriptor has the shape (lines // inner, length, inner * stride), see ``torch_ops/launch.py``.
    """
    block = desc.load([line // inner, first_row, line % inner * stride + channel])
    return block.reshape(desc.block_shape[1], desc.block_shape[2])


@triton.jit
def store_block(desc, x, line, inner, stride, first_row, channel):
    """Store a [rows, channels] block of a line through a tensor descriptor, without the rows beyond the line."""
    x = x.to(desc.dtype).reshape(1, desc.block_shape[1], desc.block_shape[2])
    desc.store([line // inner, first_row, line % inner * stride + channel], x)
