"""Losses that are no numbers: found without making the device wait."""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor


class NonFiniteLoss(ValueError):
    """The loss or its gradient is infinite or no number."""


class Outcome(NamedTuple):
    """What a training step gives: scalars that may still be on the device, torch's or JAX's.

    Attributes:
        loss: of the batch.
        terms: of the loss, by name, unweighted.
        grad_norm: length of the gradient of all parameters, before it was shortened.
    """

    loss: Any
    terms: dict[str, Any]
    grad_norm: Any

    def numbers(self) -> dict[str, float]:
        """As the log has them; waits for the device."""
        named = {"loss": self.loss, **{f"loss/{name}": term for name, term in self.terms.items()}}
        return {name: value.item() for name, value in (named | {"grad_norm": self.grad_norm}).items()}


def step_if(finite: Tensor, optimizer: torch.optim.Optimizer) -> None:
    """A step of ``optimizer`` if the flag is true; a fused one decides on the device, as under a GradScaler."""
    # torch leaves SGD's momentum as it was allocated when the very first step is left out: the host asks before it.
    if getattr(optimizer, "_step_supports_amp_scaling", False) and optimizer.state:
        optimizer.grad_scale, optimizer.found_inf = None, (~finite).float()
        try:
            optimizer.step()
        finally:
            del optimizer.grad_scale, optimizer.found_inf
    elif finite:
        optimizer.step()


class Watch:
    """Collects the outcomes of steps, which were left out on the device where they are not finite, and reads them late.

    Args:
        allowed: steps that may be left out.
        skipped: how many have been, before.
        names: iteration, counted from 0 -> names of its samples.
        say: is told of every step that was left out.
    """

    def __init__(self, *, allowed: int, skipped: int, names: Callable[[int], list[str]], say: Callable[[str], None]):
        self.allowed, self.skipped = allowed, skipped
        self._names, self._say = names, say
        self._unread: list[tuple[int, Outcome]] = []

    def add(self, iteration: int, outcome: Outcome) -> None:
        """Remember what iteration number ``iteration``, counted from 0, gave."""
        self._unread.append((iteration, outcome))

    def read(self) -> None:
        """Look at what has come since the last look.

        Raises:
            NonFiniteLoss: more steps than allowed were left out; with the names of the batch and the terms.
        """
        unread, self._unread = self._unread, []
        for iteration, outcome in unread:
            problem = _problem(outcome)
            if problem is None:
                continue
            names = ", ".join(self._names(iteration))
            message = f"iteration {iteration + 1}: {problem}: lower recipe.lr, or look at the data. The batch: {names}"
            if self.skipped == self.allowed:
                raise NonFiniteLoss(message)
            self.skipped += 1
            self._say(f"step {self.skipped} of at most {self.allowed} left out: {message}")


def _problem(outcome: Outcome) -> str | None:
    numbers = outcome.numbers()
    if math.isfinite(numbers["loss"]) and math.isfinite(numbers["grad_norm"]):
        return None
    listed = ", ".join(f"{name.removeprefix('loss/')} {value:.3g}" for name, value in numbers.items() if name != "loss")
    return f"the loss is {numbers['loss']:.6g} ({listed})"
