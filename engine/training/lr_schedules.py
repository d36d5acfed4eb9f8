"""Learning rate schedules that torch does not provide."""

from bisect import bisect_right
from collections.abc import Sequence

from torch import Tensor
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler


class WarmupSteps(LRScheduler):
    """Linear warm-up followed by step decay by a factor of 10, as in Mask R-CNN.

    Args:
        optimizer: the optimiser whose learning rates are scheduled.
        warmup: the number of warm-up iterations.
        steps: the iterations at which the learning rate is divided by 10.
        start: the learning rate factor at iteration 0; 1/3 in maskrcnn-benchmark.

    Raises:
        ValueError: a number of iterations is negative.
    """

    def __init__(self, optimizer: Optimizer, *, warmup: int, steps: Sequence[int], start: float = 1 / 3):
        if min([warmup, *steps]) < 0:
            raise ValueError(f"warmup is {warmup} and steps {list(steps)}: set numbers of iterations of at least 0")
        self.warmup, self.steps, self.start = warmup, sorted(steps), start
        super().__init__(optimizer)

    def get_lr(self) -> list[float | Tensor]:
        """Return the learning rate of each parameter group at this iteration."""
        warm = 1.0
        if self.last_epoch < self.warmup:
            warm = self.start + (1 - self.start) * self.last_epoch / self.warmup
        factor = warm * 0.1 ** bisect_right(self.steps, self.last_epoch)
        return [rate * factor for rate in self.base_lrs]
