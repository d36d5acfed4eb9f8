"""The stages of a network's backbone, the first of which may be frozen in training."""

from typing import Any, cast

from torch import nn

STAGES = 4  # every backbone has four after the stem: timm's last four feature levels


def first_stages(network: nn.Module, number: int) -> dict[str, nn.Module]:
    """Return the modules of the stem and of the first stages of a network's backbone, keyed by their full names.

    The context module in the backbone of a :class:`~ccnet.models.mask_rcnn.MaskRCNN` is excluded.

    Args:
        network: any network of this project.
        number: the number of stages; 0 returns no modules, ``STAGES`` those of the whole backbone.
    """
    if number == 0:
        return {}
    prefix, net = _timm_network(network)
    last = net.feature_info.info[number - 1 - STAGES]["module"]
    last = last if last in dict(net.named_modules()) else last.replace(".", "_")  # see FeatureListNet
    found, inside = dict[str, nn.Module](), False
    for name, module in net.named_modules():
        within = f"{name}.".startswith(f"{last}.")
        if inside and not within and number < STAGES:
            break
        inside = inside or within
        holds_last = f"{last}.".startswith(f"{name}.") if name else True
        if (within or not holds_last or number == STAGES) and "context" not in name.split("."):
            found[f"{prefix}.{name}" if name else prefix] = module
    return found


def backbone_modules(network: nn.Module) -> dict[str, nn.Module]:
    """Return all modules of a network's backbone, keyed by their full names."""
    return first_stages(network, STAGES)


def _timm_network(network: nn.Module) -> tuple[str, Any]:
    """Return the full name and the module of the timm feature network in ``network``."""
    backbone = cast(Any, network).backbone
    return ("backbone.body", backbone.body) if hasattr(backbone, "body") else ("backbone.net", backbone.net)
