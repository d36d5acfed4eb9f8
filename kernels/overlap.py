"""Overlap consecutive launches on Hopper GPUs by programmatic dependent launch.

Every pass but the last allows the next one to start early; its programs fill the multiprocessors that the last programs
of the previous pass leave idle. The next pass computes its scores meanwhile, and waits before it reads or writes
anything that the previous pass wrote or read. Since every pass but the first waits for its predecessor before it ends,
the end of a pass implies that all earlier ones have ended.
"""

import triton
import triton.language as tl


@triton.jit
def allow_next_launch():
    """Let programs of the next launch start as soon as every program of this one has called this."""
    tl.extra.cuda.gdc_launch_dependents()


@triton.jit
def wait_for_previous_launch():
    """Wait until the previous launch has ended and its results are visible."""
    tl.extra.cuda.gdc_wait()


@triton.jit
def wait_for_previous_launch_after(total):
    """Wait for the previous launch once ``total``, sums of exponentials, is known; return ``total``.

    ptxas moves a plain wait ahead of the exponentials, which need nothing of the previous launch. Here, the wait is
    conditional on a comparison with ``total`` that always holds.
    """
    return tl.inline_asm_elementwise(
        "{ .reg .pred p; setp.ne.b32 p, $1, 0x80000001; @p griddepcontrol.wait; mov.b32 $0, $1; }",
        "=r,r", [total], dtype=tl.float32, is_pure=False, pack=1,
    )  # fmt: skip
