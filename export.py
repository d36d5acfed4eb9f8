"""Export a trained network to ONNX.

    python export.py checkpoint=RUN/best output=network.onnx                     any image size
    python export.py checkpoint=RUN/best output=network.onnx size=[769,769]      a fixed image size

The input "image" is (N, C, H, W) float32 in [0, 1], RGB if C = 3; the output "logits" is (N, K, H, W). The file uses
only standard operators: attention is exported as its reference implementation, without the Triton kernels.
"""

import hydra
from omegaconf import DictConfig

from ccnet.conf import CONF
from ccnet.engine import checkpoints, evaluation, runtime
from ccnet.engine.commands.command_line import command_line
from ccnet.engine.commands.entry_point import entry_point


@command_line
@hydra.main(version_base="1.3", config_path=str(CONF), config_name="export")
@entry_point
def main(config: DictConfig) -> None:
    """Export the network and verify that ONNX Runtime reproduces its logits."""
    output = runtime.given_path(config.output)
    if output.is_dir():
        raise ValueError(
            f"output={output} is a folder: set the file to write, such as output={output / 'network.onnx'}"
        )
    saved = checkpoints.load(checkpoints.find(config.checkpoint))
    if not evaluation.task_of(saved.config).predicts_label_maps:
        raise ValueError(f"checkpoint={config.checkpoint} detects objects: only segmentation networks can be exported")
    model = checkpoints.network(saved)
    output.parent.mkdir(parents=True, exist_ok=True)
    error = checkpoints.export_onnx(model, output, size=config.size and tuple(config.size))
    size = "x".join(map(str, config.size)) if config.size else "any size"
    print(f"{output}: images of {size}; ONNX Runtime's logits are within {error:.1e} of the network's")


if __name__ == "__main__":
    from ccnet.export import main  # so that launchers pickle `main` by reference: see entry_point

    main()
