"""Freeze the first stages of a backbone, or its batch norm statistics."""

from omegaconf import DictConfig
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from ....models.stages import backbone_modules, first_stages


def held_modules(model: nn.Module, *, frozen_stages: int, norm_eval: bool) -> dict[str, nn.Module]:
    """Return the modules that stay in eval mode during training, by name.

    Args:
        model: the network.
        frozen_stages: the number of leading backbone stages to hold entirely, together with the stem; 0 for none.
        norm_eval: also hold all batch norms of the backbone.
    """
    held = first_stages(model, frozen_stages)
    if norm_eval:
        held |= {name: module for name, module in backbone_modules(model).items() if isinstance(module, _BatchNorm)}
    return held


def freeze(config: DictConfig, model: nn.Module) -> None:
    """Exclude the parameters of the first ``frozen_stages`` of the backbone from training.

    Raises:
        ValueError: the backbone has random weights.
    """
    node = config.model.backbone
    if config.frozen_stages and config.init is None and not node.pretrained and node.weights is None:
        raise ValueError(
            f"frozen_stages={config.frozen_stages} freezes random weights: start from pretrained ones with "
            "backbone.weights=FILE, backbone.pretrained=true or init=RUN, or set frozen_stages=0"
        )
    for parameter in frozen_parameters(config, model):
        parameter.requires_grad_(False)


def frozen_parameters(config: DictConfig, model: nn.Module) -> list[nn.Parameter]:
    """Return the parameters of the first ``frozen_stages`` of the backbone."""
    modules = first_stages(model, config.frozen_stages).values()
    return [parameter for module in modules for parameter in module.parameters(recurse=False)]
