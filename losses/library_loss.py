"""Dice, focal and Lovasz losses from segmentation_models.pytorch, as terms of the weighted sum."""

# segmentation_models.pytorch is untyped, and an optional dependency.

import importlib
import inspect
from typing import Any

from .all_reduce import concatenate_processes, gather_from_processes
from .label_resizing import check_label_size
from .network_outputs import output_named
from .torch_and_jax import Array, Module, is_torch

_CLASSES = {"dice": "DiceLoss", "focal": "FocalLoss", "lovasz": "LovaszLoss"}
_LIBRARY = "segmentation_models_pytorch"


class LibraryLoss(Module):
    """A loss from segmentation_models.pytorch over the valid pixels of one of the network's outputs; torch only.

    These losses are not sums over pixels, so with several ranks the logits are gathered, and every rank computes the
    loss of the global batch. Without valid pixels, the loss is zero with zero gradients.

    Args:
        kind: "dice", "focal" or "lovasz".
        output: the name of the output, such as "out" or "aux".
        ignore_index: label of the pixels to ignore.
        **options: further arguments of the library's class, such as ``gamma`` of the focal loss.

    Raises:
        ValueError: ``kind`` or an option is unknown, or the library is not installed.
    """

    torch_only = True

    def __init__(self, kind: str, *, output: str = "out", ignore_index: int = 255, **options: Any):
        super().__init__()
        if kind not in _CLASSES:
            raise ValueError(f"kind is {kind!r}: choose one of {', '.join(_CLASSES)}")
        try:
            library: Any = importlib.import_module(f"{_LIBRARY}.losses")
        except ImportError as error:
            raise ValueError(f"the {kind} loss needs {error.name}: pip install 'ccnet-segmentation[losses]'") from error
        self.output, self.ignore_index = output, ignore_index
        loss: Any = getattr(library, _CLASSES[kind])
        possible = [name for name in inspect.signature(loss).parameters if name not in ("mode", "ignore_index")]
        if unknown := [name for name in options if name not in possible]:
            raise ValueError(f"the {kind} loss has no option {', '.join(unknown)}: choose from {', '.join(possible)}")
        self.loss: Module = loss("multiclass", ignore_index=ignore_index, **options)

    def forward(self, output: dict[str, Array], labels: Array) -> Array:
        """Return the scalar loss of the network output for labels (N, H, W), or (N, T, H, W) for clips.

        Raises:
            ValueError: the labels do not have the size of the logits, or one is neither a class nor ``ignore_index``.
        """
        logits = output_named(output, self.output)
        if not is_torch(logits):
            raise ValueError("the losses of segmentation_models.pytorch support torch only: set framework=torch")
        check_label_size(labels, logits, "logits")
        logits = concatenate_processes(logits.float()).flatten(3)  # the library expects float32 and two spatial axes
        labels = gather_from_processes(labels).flatten(2)
        valid = labels[labels != self.ignore_index]
        if not len(valid):
            return logits.sum() * 0
        low, high = valid.aminmax()
        if low < 0 or high >= logits.shape[1]:  # which focal and lovasz would accept
            raise ValueError(f"labels range from {low} to {high}: expected values in [0, {logits.shape[1] - 1}]")
        return self.loss(logits, labels)
