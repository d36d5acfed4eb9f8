"""Export a trained network to ONNX.

    python export.py checkpoint=RUN/best output=network.onnx                     any image size
    python export.py checkpoint=RUN/best output=network.onnx size=[769,769]      a fixed image size

The input "image" is (N, C, H, W) float32 in [0, 1], RGB if C = 3; the output "logits" is (N, K, H, W). Networks that
were trained on clips have the frames T as the third axis of both. The entry "classes" of the metadata lists the K names
in JSON. The file uses only standard operators: attention is exported as its reference implementation, without the
Triton kernels.
"""

from typing import Any

from omegaconf import DictConfig

from ccnet.engine import checkpoints, evaluation, guards, runtime
from ccnet.engine.commands.entry_point import entry_point


@entry_point("export")
def main(config: DictConfig) -> None:
    """Export the network and verify that ONNX Runtime reproduces its logits."""
    output = runtime.given_path(config.output)
    if output.is_dir():
        raise ValueError(
            f"output={output} is a folder: set the file to write, such as output={output / 'network.onnx'}"
        )
    size = _size(config.size)
    saved = checkpoints.load(checkpoints.find(config.checkpoint), **config.published)
    checkpoints.check_published([saved])
    if not evaluation.task_of(saved.config).predicts_label_maps:
        raise ValueError(f"checkpoint={config.checkpoint} detects objects: only segmentation networks can be exported")
    model = checkpoints.network(saved)
    frames = saved.dataset.get("frames", 1)
    with runtime.FolderLock(output.parent, "output", output.name):
        error = checkpoints.export_onnx(model, output, classes=saved.classes, size=size, frames=frames)
    shown = f"clips of {frames} frames" if frames > 1 else "images"
    shown += f" of {size[0]}x{size[1]}" if size else " of any size"
    print(f"{output}: {shown}; ONNX Runtime's logits are within {error:.1e} of the network's")


def _size(given: Any) -> tuple[int, int] | None:
    """Return the option ``size`` as (H, W); None if it is not set."""
    if given is None:
        return None
    sides = guards.as_list(given)
    if len(sides) != 2 or not all(type(side) is int and side > 0 for side in sides):
        raise ValueError(f"size={given} is not an image size: set size=[HEIGHT,WIDTH], in pixels")
    return sides[0], sides[1]


if __name__ == "__main__":
    import ccnet.export  # so that launchers pickle `main` by reference: see entry_point

    ccnet.export.main()
