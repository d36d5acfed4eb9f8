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
    modules = {name: module for name, module in net.named_modules() if "context" not in name.split(".")}
    names = list(modules)
    last = _module_name(net.feature_info.info[number - 1 - STAGES]["module"], names) if number < STAGES else None
    if last is not None:
        # The levels of an Xception end inside a block, whose shortcut then belongs to the stage.
        end = max(index for index, name in enumerate(names) if f"{name}.".startswith(f"{last}."))
        # The modules that contain the last stage, such as the whole network, contain later stages too.
        names = [name for name in names[: end + 1] if name and not last.startswith(f"{name}.")]
        modules = {name: modules[name] for name in names}
    return {f"{prefix}.{name}" if name else prefix: module for name, module in modules.items()}


def backbone_modules(network: nn.Module) -> dict[str, nn.Module]:
    """Return all modules of a network's backbone, keyed by their full names."""
    return first_stages(network, STAGES)


def _module_name(level: str, names: list[str]) -> str | None:
    """Return the one of ``names`` that a feature level has in timm's feature network, or None if it is not built.

    The network may rename "stages.0" to "stages_0", or to "model.stages.0" if it wraps timm's model.
    """
    return next((name for name in (level, level.replace(".", "_", 1), f"model.{level}") if name in names), None)


def _timm_network(network: nn.Module) -> tuple[str, Any]:
    """Return the full name and the module of the timm feature network in ``network``."""
    backbone = cast(Any, network).backbone
    return ("backbone.body", backbone.body) if hasattr(backbone, "body") else ("backbone.net", backbone.net)
