"""Detect non-finite steps, and steps that learn nothing, without additional device synchronisation."""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

from torch import Tensor


class NonFiniteLoss(ValueError):
    """The loss or its gradient is infinite or NaN."""


class Outcome(NamedTuple):
    """The result of a training step: torch or JAX scalars, which may still be on the device.

    Attributes:
        loss: the loss of the batch.
        terms: the unweighted loss terms, by name.
        grad_norm: the gradient norm over all parameters, before clipping.
    """

    loss: Any
    terms: dict[str, Any]
    grad_norm: Any

    def numbers(self) -> dict[str, float]:
        """Wait for the device and return the scalars by the names used in the log."""
        named = {"loss": self.loss, **{f"loss/{name}": term for name, term in self.terms.items()}}
        return {name: value.item() for name, value in (named | {"grad_norm": self.grad_norm}).items()}


def step_if(finite: Tensor, optimizer: Any) -> None:
    """Step the optimiser if `finite` is true; a fused optimiser checks it on the device, as with a GradScaler."""
    # If a fused SGD skips its very first step, torch leaves the momentum uninitialised, so the host checks that one.
    if getattr(optimizer, "_step_supports_amp_scaling", False) and optimizer.state:
        optimizer.grad_scale, optimizer.found_inf = None, (~finite).float()
        try:
            optimizer.step()
        finally:
            del optimizer.grad_scale, optimizer.found_inf
    elif finite:
        optimizer.step()


class NonFiniteDetector:
    """Collects step outcomes and reads them only when the host synchronises with the device anyway.

    Non-finite steps have already been skipped, see :func:`step_if`. The first step whose loss and gradient are exactly
    zero, as they are if all pixels are ignored, is reported; later ones are only counted.

    Args:
        allowed: the maximum number of skipped steps.
        skipped: the number of steps skipped so far.
        names: returns the sample names of a (0-based) iteration.
        say: called with a message for every skipped step and for the first empty one.

    Attributes:
        empty: the number of steps whose loss and gradient were exactly zero.
    """

    def __init__(self, *, allowed: int, skipped: int, names: Callable[[int], list[str]], say: Callable[[str], None]):
        self.allowed, self.skipped = allowed, skipped
        self.empty = 0
        self._names, self._say = names, say
        self._unread: list[tuple[int, Outcome]] = []

    def add(self, iteration: int, outcome: Outcome) -> None:
        """Keep the outcome of `iteration` (0-based) for the next check."""
        self._unread.append((iteration, outcome))

    def check(self) -> None:
        """Read the outcomes since the last check.

        Raises:
            NonFiniteLoss: more than `allowed` steps were not finite; the message lists the loss terms and the samples
                of the batch.
        """
        unread, self._unread = self._unread, []
        for iteration, outcome in unread:
            numbers = outcome.numbers()
            if numbers["loss"] == numbers["grad_norm"] == 0:
                self._report_empty(iteration)
            problem = _problem(numbers)
            if problem is None:
                continue
            names = ", ".join(self._names(iteration))
            message = f"iteration {iteration + 1}: {problem}: lower recipe.lr or check the data. Batch: {names}"
            if self.skipped == self.allowed:
                raise NonFiniteLoss(message)
            self.skipped += 1
            self._say(f"skipped step {self.skipped} of at most {self.allowed}: {message}")

    def _report_empty(self, iteration: int) -> None:
        if not self.empty:
            self._say(
                f"warning: iteration {iteration + 1}: the loss and its gradient are 0, as for a batch without a "
                "labelled pixel: the network learns nothing from it. Further batches of this kind are counted. Batch: "
                + ", ".join(self._names(iteration))
            )
        self.empty += 1


def _problem(numbers: dict[str, float]) -> str | None:
    if math.isfinite(numbers["loss"]) and math.isfinite(numbers["grad_norm"]):
        return None
    listed = ", ".join(f"{name.removeprefix('loss/')} {value:.3g}" for name, value in numbers.items() if name != "loss")
    return f"the loss is {numbers['loss']:.6g} ({listed})"
