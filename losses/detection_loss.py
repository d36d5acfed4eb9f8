"""The loss of detection networks, which compute their loss terms themselves."""

from functools import reduce
from operator import add
from typing import Any

from torch import Tensor, nn

from .all_reduce import mean_over_processes


class DetectionLoss(nn.Module):
    """The sum of the loss terms that a detection network of torchvision returns in training.

    Each rank normalises by the boxes that it sampled itself; over several ranks, the loss is the mean of theirs.
    """

    def forward(self, output: dict[str, Tensor], labels: Any) -> tuple[Tensor, dict[str, Tensor]]:
        """{"loss_<name>": scalar} -> the sum, and every term by name, detached. The labels are not read."""
        terms = {name.removeprefix("loss_"): mean_over_processes(term) for name, term in output.items()}
        return reduce(add, terms.values()), {name: term.detach() for name, term in terms.items()}
