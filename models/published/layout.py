"""How a published file maps onto a network of this project."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

# Module name in this project's network -> in the file, by the first that a key begins with.
Names = list[tuple[str, str]]


@dataclass
class Layout:
    """A network's configuration, and where its tensors stand in the file.

    Attributes:
        model: the ``model`` node that builds it.
        names: modules here -> modules in the file; the first entry that a key begins with counts.
        folded: tensors here -> further tensors of the file that ``fold`` works into them, of the same shape.
        fold: called with the renamed tensors, whose dict it changes, and the file's.
    """

    model: dict[str, Any]
    names: Names
    folded: dict[str, str] = field(default_factory=dict)
    fold: Callable[[dict[str, Tensor], Mapping[str, Tensor]], None] | None = None

    def source(self, key: str) -> str:
        """The file's name for the network's tensor ``key``."""
        for ours, theirs in self.names:
            if key == ours or key.startswith(f"{ours}."):
                return theirs + key[len(ours) :]
        raise KeyError(key)


def network(backbone: dict, head: dict, aux_head: dict, *, num_classes: int, align_corners: bool) -> dict[str, Any]:
    """A ``model`` node; the heads' classes are called by the network with the backbone's widths."""
    return {
        "_target_": "ccnet.models.segmentor.Segmentor",
        "backbone": {"output_stride": 8, "out_indices": [-2, -1], "pretrained": False, "weights": None} | backbone,
        "head": {"_partial_": True, "num_classes": num_classes, "dropout": 0.1} | head,
        "aux_head": {
            "_target_": "ccnet.models.heads.fcn.FCNHead",
            "_partial_": True,
            "num_classes": num_classes,
            "dropout": 0.1,
        }
        | aux_head,
        "embedding_channels": None,
        "align_corners": align_corners,
    }


def context_head(channels: int, context: dict | None, *, recurrence: int = 1) -> dict[str, Any]:
    """The node of a :class:`models.heads.context.ContextHead`."""
    return {
        "_target_": "ccnet.models.heads.context.ContextHead",
        "channels": channels,
        "recurrence": recurrence if context else 0,
        "context": {"_partial_": True} | context if context else None,
    }


def direct_head(channels: int, context: dict) -> dict[str, Any]:
    """The node of a :class:`models.heads.pyramid.PyramidHead`, over a pyramid of branches as wide as its output."""
    return {
        "_target_": "ccnet.models.heads.pyramid.PyramidHead",
        "channels": channels,
        "context": {"_partial_": True, "width": channels, "out_channels": channels} | context,
    }


def width(found: Mapping[str, Tensor], key: str, published: int) -> int:
    """Output channels of the file's tensor ``key``; if it is missing, which is reported later, as published."""
    return found[key].shape[0] if key in found and found[key].ndim else published


def depth(found: Mapping[str, Tensor], prefix: str) -> int:
    """50 or 101, from the blocks of the third stage of the ResNet at ``prefix``."""
    stage = [key.removeprefix(prefix).split(".") for key in found if key.startswith(f"{prefix}layer3.")]
    blocks, bottleneck = len({parts[1] for parts in stage}), any("conv3" in parts for parts in stage)
    depths = {6: 50, 23: 101}
    if not bottleneck or blocks not in depths:
        kind = "bottleneck" if bottleneck else "basic"
        raise ValueError(
            f"its backbone is neither a ResNet-50 nor a ResNet-101 ({prefix}layer3 has {blocks} {kind} blocks, "
            "not 6 or 23 bottleneck ones): only these two can be imported"
        )
    return depths[blocks]
