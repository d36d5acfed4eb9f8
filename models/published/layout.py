"""The mapping from a published file's tensors to those of a network of this project."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

# Pairs (module in this project's network, module in the file); the first whose network module holds a tensor applies.
Names = list[tuple[str, str]]
Node = dict[str, Any]  # configuration node


@dataclass
class Layout:
    """A network's configuration, and the names of its tensors in the file.

    Attributes:
        model: the ``model`` node that builds the network.
        names: pairs that map the network's modules to the file's.
        folded: maps network tensors to additional tensors of the file, of equal shape, that ``fold`` merges into them.
        fold: called with the network's tensors, which it modifies in-place, and the file's tensors.
    """

    model: Node
    names: Names
    folded: dict[str, str] = field(default_factory=dict[str, str])
    fold: Callable[[dict[str, Tensor], Mapping[str, Tensor]], None] | None = None

    def source(self, key: str) -> str:
        """Return the file's name for the network's tensor ``key``."""
        for ours, theirs in self.names:
            if key == ours or key.startswith(f"{ours}."):
                return theirs + key[len(ours) :]
        raise KeyError(key)


def network(backbone: Node, head: Node, aux_head: Node, *, num_classes: int, align_corners: bool) -> Node:
    """Return the ``model`` node of a network; its heads are partial because the network passes the input widths."""
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


def context_head(channels: int, context: Node | None, *, recurrence: int = 1) -> Node:
    """Return the node of a :class:`~ccnet.models.heads.context.ContextHead`."""
    return {
        "_target_": "ccnet.models.heads.context.ContextHead",
        "channels": channels,
        "recurrence": recurrence if context else 0,
        "context": {"_partial_": True} | context if context else None,
    }


def direct_head(channels: int, context: Node) -> Node:
    """Return the node of a :class:`~ccnet.models.heads.pyramid.PyramidHead` with ``channels`` per pyramid branch."""
    return {
        "_target_": "ccnet.models.heads.pyramid.PyramidHead",
        "channels": channels,
        "context": {"_partial_": True, "width": channels, "out_channels": channels} | context,
    }


def width(tensors: Mapping[str, Tensor], key: str, published: int) -> int:
    """Return the number of output channels of the file's tensor ``key``, or the ``published`` number if it is missing.

    Missing tensors are reported later, all at once.
    """
    return tensors[key].shape[0] if key in tensors and tensors[key].ndim else published


def depth(tensors: Mapping[str, Tensor], prefix: str) -> int:
    """Infer the depth of the ResNet at ``prefix``, 50 or 101, from the number of blocks in its third stage.

    Raises:
        ValueError: the ResNet has basic blocks or another depth.
    """
    stage = [key.removeprefix(prefix).split(".") for key in tensors if key.startswith(f"{prefix}layer3.")]
    blocks, bottleneck = len({parts[1] for parts in stage}), any("conv3" in parts for parts in stage)
    depths = {6: 50, 23: 101}
    if not bottleneck or blocks not in depths:
        kind = "bottleneck" if bottleneck else "basic"
        raise ValueError(
            f"its backbone is neither a ResNet-50 nor a ResNet-101 ({prefix}layer3 has {blocks} {kind} blocks, "
            "not 6 or 23 bottleneck blocks): only these two can be imported"
        )
    return depths[blocks]
