"""Switch a network to eval mode for the duration of an evaluation."""

from collections.abc import Generator
from contextlib import contextmanager
from typing import Any

from torch import nn


@contextmanager
def in_eval_mode(model: Any) -> Generator[None]:
    """Put a network into eval mode, and afterwards each of its modules back into its own mode.

    Frozen modules are in eval mode even during training, but ``model.train()`` would put them into training mode. A
    :class:`JaxNetwork` is always in eval mode.
    """
    modes = {module: module.training for module in model.modules()} if isinstance(model, nn.Module) else {}
    model.eval()
    try:
        yield
    finally:
        for module, training in modes.items():
            module.training = training
