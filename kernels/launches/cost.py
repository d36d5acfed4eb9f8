"""A lower bound on the cost of a call, with which the benchmarks compare measured times."""

import math
from typing import NamedTuple

from .plan import ITEM_SIZE
from .problem import Problem


class Cost(NamedTuple):
    """A lower bound for any implementation: its FLOPs, and one memory transfer of each array."""

    flops: int
    bytes: int


def least_cost(problem: Problem, direction: str) -> Cost:
    """Return the lower bound for ``direction``, which is "forward", "backward" or "both".

    A multiply-add counts as two FLOPs. The backward pass recomputes the scores and computes the gradients of the
    scores, query, key and value. The forward pass reads query, key and value and writes the output; the backward pass
    reads all four and the gradient of the output, and writes three gradients.
    """
    if direction == "both":
        parts = [least_cost(problem, part) for part in ("forward", "backward")]
        return Cost(sum(part.flops for part in parts), sum(part.bytes for part in parts))
    pixels = problem.batch * math.prod(problem.spatial)
    d, c = problem.query_channels, problem.value_channels
    scores = pixels * sum(problem.spatial[axis] for axis in problem.axes)
    products, numbers = (d + c, 2 * d + 2 * c) if direction == "forward" else (3 * d + 2 * c, 4 * d + 4 * c)
    statistics = 8 * pixels
    return Cost(2 * products * scores, pixels * numbers * ITEM_SIZE[problem.dtype] + statistics)
