"""The loss of networks that compute their losses themselves."""

from typing import Any

from torch import Tensor, nn

from .all_reduce import mean_over_processes


class DetectionLoss(nn.Module):
    """Sum of the losses that the network gives in training, such as torchvision's detection networks.

    These count boxes of their own choice; over several processes, their mean counts.
    """

    def forward(self, output: dict[str, Tensor], labels: Any) -> tuple[Tensor, dict[str, Tensor]]:
        """ "loss_<name>" -> scalar; the sum, and each loss by name, detached. The labels are in them already."""
        output = {name: mean_over_processes(loss) for name, loss in output.items()}
        return sum(output.values()), {name.removeprefix("loss_"): loss.detach() for name, loss in output.items()}
