"""The loss for detection networks, which compute their own loss terms."""

from functools import reduce
from operator import add
from typing import Any

from torch import Tensor, nn

from .all_reduce import mean_over_processes


class DetectionLoss(nn.Module):
    """The sum of the loss terms that a torchvision detection network returns in training.

    Each rank normalises by the number of boxes that it sampled; the losses are averaged over the ranks.
    """

    def forward(self, output: dict[str, Tensor], labels: Any) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the sum of {"loss_<name>": scalar} and the detached terms by name; ``labels`` is ignored."""
        terms = {name.removeprefix("loss_"): mean_over_processes(term) for name, term in output.items()}
        return reduce(add, terms.values()), {name: term.detach() for name, term in terms.items()}
