"""The loss of networks that compute their losses themselves."""

from typing import Any

from torch import Tensor, nn


class GivenLosses(nn.Module):
    """Sum of the losses that the network gives in training, such as torchvision's detection networks."""

    def forward(self, output: dict[str, Tensor], labels: Any) -> tuple[Tensor, dict[str, Tensor]]:
        """ "loss_<name>" -> scalar; the sum, and each loss by name, detached. The labels are in them already."""
        return sum(output.values()), {name.removeprefix("loss_"): loss.detach() for name, loss in output.items()}
