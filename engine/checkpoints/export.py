"""Write a semantic network as ONNX, and hold the file against the network in ONNX Runtime."""

import logging
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.export import Dim

from ..runtime.atomic_files import replacing

TOLERANCE = 1e-4  # of the largest logit


def export_onnx(model: nn.Module, path: Path, *, size: tuple[int, int] | None = None) -> float:
    """Write a semantic network as ONNX.

    Args:
        model: (N, 3, H, W) -> {"out": (N, K, H, W)}, in eval mode.
        path: of the file; written whole or not at all.
        size: (H, W) of every input; None for any size.

    Returns:
        The largest difference of ONNX Runtime's logits from the network's, of the largest logit, over the size or
        over three sizes.

    Raises:
        ValueError: they differ by more than 1e-4, or the ONNX packages are not installed.
    """
    try:
        import onnxruntime
        import onnxscript  # noqa: F401, what torch.onnx writes with
    except ImportError as error:
        raise ValueError(f"{error.name} is not installed: pip install 'ccnet[export]'") from error
    for noisy in ("onnx_ir", "onnxscript"):  # a line for every constant that they merge
        logging.getLogger(noisy).setLevel(logging.WARNING)
    batch, height, width = (2, *size) if size else (2, 65, 97)
    dynamic = {0: Dim.DYNAMIC} | ({} if size else {2: Dim.DYNAMIC, 3: Dim.DYNAMIC})
    program = torch.onnx.export(
        _Logits(model).eval(),
        (torch.rand(batch, 3, height, width),),
        dynamo=True,
        dynamic_shapes=(dynamic,),
        input_names=["image"],
        output_names=["logits"],
        verbose=False,
    )
    with replacing(path) as unfinished:
        program.save(unfinished)
        session = onnxruntime.InferenceSession(unfinished, providers=["CPUExecutionProvider"])
        sizes = [(batch, *size)] if size else [(batch, height, width), (1, 33, 81), (1, 128, 66)]
        error = max(_difference(model, session, torch.rand(n, 3, h, w)) for n, h, w in sizes)
        if not error < TOLERANCE:
            raise ValueError(f"ONNX Runtime's logits differ from the network's by {error:.1e}: nothing was written")
    return error


class _Logits(nn.Module):
    def __init__(self, model: nn.Module):
        super().__init__()
        self.model = model

    def forward(self, image: Tensor) -> Tensor:
        return self.model(image)["out"]


@torch.inference_mode()
def _difference(model: nn.Module, session, image: Tensor) -> float:
    want = model(image)["out"]
    got = torch.from_numpy(session.run(None, {"image": image.numpy()})[0])
    return ((got - want).abs().max() / want.abs().max()).item()
