"""Export a segmentation network to ONNX and verify the exported file in ONNX Runtime."""

import json
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn

from ..runtime.atomic_files import replacing

TOLERANCE = 1e-4  # maximum difference, relative to the largest logit


def export_onnx(
    model: nn.Module,
    path: Path,
    *,
    classes: Sequence[str] = (),
    size: tuple[int, int] | None = None,
    frames: int = 1,
) -> float:
    """Export a segmentation network to an ONNX file.

    Args:
        model: the network, (N, C, H, W) -> {"out": (N, K, H, W)}, or with T as the third axis of both, in eval mode.
        path: the output file; it is written atomically, and only if the verification succeeds.
        classes: the K names, stored as a JSON list under "classes" in the file's metadata.
        size: fixed input size (H, W) in pixels; None for dynamic sizes.
        frames: the number of frames T of the clips that the network was trained on; 1 for images.

    Returns:
        The largest difference between the logits of ONNX Runtime and of the network, relative to the largest logit, at
        the fixed size or over three sizes.

    Raises:
        ValueError: the logits differ by more than 1e-4, the size is smaller than the output stride, or the ONNX
            packages are not installed.
    """
    try:
        import onnxruntime
        import onnxscript  # noqa: F401, torch.onnx needs it
    except ImportError as error:
        raise ValueError(f"{error.name} is not installed: pip install 'ccnet-segmentation[export]'") from error
    for noisy in ("onnx_ir", "onnxscript"):  # they log a line for every constant that they merge
        logging.getLogger(noisy).setLevel(logging.WARNING)
    batch, height, width = (2, *size) if size else (2, 65, 97)
    inner = (cast(Any, model).mean.shape[1], *([frames] if frames > 1 else []))  # the axes between N and H
    image = torch.rand(batch, *inner, height, width)
    cast(Any, model).check(image, clips=frames > 1)  # the exporter would bury the message
    dynamic = {0: "batch"} | ({} if size else {image.ndim - 2: "height", image.ndim - 1: "width"})
    program: Any = torch.onnx.export(
        _Logits(model).eval(),
        (image,),
        dynamo=True,
        dynamic_shapes=(dynamic,),
        input_names=["image"],
        output_names=["logits"],
        verbose=False,
    )
    program.model.metadata_props["classes"] = json.dumps(list(classes), ensure_ascii=False)
    with replacing(path) as unfinished:
        program.save(unfinished)
        session = onnxruntime.InferenceSession(unfinished, providers=["CPUExecutionProvider"])
        sizes = [(batch, *size)] if size else [(batch, height, width), (1, 33, 81), (1, 128, 66)]
        # Unlike max, np.max does not skip NaN.
        error = np.max([_difference(model, session, torch.rand(n, *inner, h, w)) for n, h, w in sizes]).item()
        if not error < TOLERANCE:
            raise ValueError(f"ONNX Runtime's logits differ from the network's by {error:.1e}: nothing was written")
    return error


class _Logits(nn.Module):
    """Wrapper that returns a network's logits as a tensor, since ONNX has no dicts."""

    def __init__(self, model: nn.Module):
        super().__init__()
        self.model = model

    def forward(self, image: Tensor) -> Tensor:
        return self.model(image)["out"]


@torch.inference_mode()
def _difference(model: nn.Module, session: Any, image: Tensor) -> float:
    """Return the largest difference between the logits of the file and the network, relative to the largest logit."""
    want = model(image)["out"]
    got = torch.from_numpy(session.run(None, {"image": image.numpy()})[0])
    return ((got - want).abs().max() / want.abs().max()).item()
