"""Segment pictures with a trained network.

    python predict.py checkpoint=RUN/best input=photo.jpg
    python predict.py checkpoint=RUN/best input=FOLDER output=FOLDER      pictures, or the frames of a video
    python predict.py checkpoint=RUN/best input=FRAMES video=out.mp4      and the overlays as a video (.mp4 or .gif)
    python predict.py checkpoint=RUN/best input=photo.jpg attention=[y,x] and where a point attends (paper, Fig. 7)
    python predict.py checkpoint=[RUN1/best,RUN2/best] input=FOLDER       networks side by side (paper, Fig. 6)
    python predict.py checkpoint=FILE.pth input=photo.jpg                 published weights: models/published

For each picture NAME it writes NAME.png, whose pixel values are class indices shown in the data set's colours,
and NAME_overlay.png, the classes over the picture with a legend; NAME_attention.png; comparison.png. Of several
networks the first one writes the masks. With ``labels=FOLDER``, label images as predict.py writes them, the
comparison also shows the truth and marks errors. A network that finds objects writes NAME.json, the objects as in
COCO's results, and NAME_overlay.png, the likely ones drawn over the picture.
"""

from collections.abc import Iterator
from pathlib import Path

import hydra
import numpy as np
import torch
from hydra.core.hydra_config import HydraConfig
from hydra.utils import instantiate
from omegaconf import DictConfig, ListConfig
from torch import Tensor, nn
from tqdm import tqdm

from ccnet.conf import CONF
from ccnet.data import IGNORE_INDEX
from ccnet.data.file_lists import IMAGE_SUFFIXES
from ccnet.data.image_files import read_image
from ccnet.data.label_files import LabelReader
from ccnet.engine import checkpoints
from ccnet.engine.checkpoints import Checkpoint
from ccnet.engine.drawing import label_images as figures
from ccnet.engine.drawing.video import check_video, save_video
from ccnet.engine.evaluation import detection
from ccnet.engine.evaluation.attention_maps import attention_maps
from ccnet.engine.evaluation.protocols import Protocol
from ccnet.engine.evaluation.segmentation import predict
from ccnet.engine.runtime.atomic_files import given_path
from ccnet.engine.runtime.devices import choose_device
from ccnet.engine.sweeps.entry_point import entry_point


@hydra.main(version_base="1.3", config_path=str(CONF), config_name="predict")
@entry_point
def main(config: DictConfig) -> None:
    """Write masks, overlays and whatever else is asked for of every picture of ``input`` into ``output``."""
    given = config.checkpoint if isinstance(config.checkpoint, ListConfig) else [config.checkpoint]
    loaded = [checkpoints.load(checkpoints.find(path), **config.published) for path in given]
    paths = _pictures(given_path(config.input))
    output = given_path(config.output)
    if output.resolve() == paths[0].parent.resolve():
        raise ValueError(f"output={output} is the folder of the input, whose pictures a mask could overwrite")
    if any(detection.finds_objects(saved) for saved in loaded):
        if len(loaded) > 1:
            raise ValueError("networks that find objects are not drawn side by side: give one checkpoint")
        return detection.predict(config, loaded[0], paths, output)
    if any(saved.classes != loaded[0].classes for saved in loaded):
        raise ValueError("the checkpoints do not know the same classes: compare networks of one data set")
    if config.video:
        check_video(given_path(config.video))
    truths = _truths(paths, config.labels, len(loaded[0].classes))
    in_jax = config.framework == "jax"
    if in_jax and config.attention is not None:
        raise ValueError(
            "attention=... is drawn from torch networks: leave out framework=jax, which has the same weights"
        )
    device = torch.device("cpu") if in_jax else choose_device(config.device)
    networks = [Network(saved, config, device) for saved in loaded]
    first = networks[0]
    output.mkdir(parents=True, exist_ok=True)

    compared = len(networks) > 1 or truths is not None
    rows = []

    def overlays() -> Iterator[np.ndarray]:
        classes, palette = first.saved.classes, first.saved.palette
        for index, path in enumerate(tqdm(paths, desc="predict", dynamic_ncols=True)):
            before = paths[max(index - first.frames + 1, 0) : index]
            picture = read_image(path)
            labels = first(picture, before)
            pixels = picture.permute(1, 2, 0).numpy()
            figures.save_mask(output / f"{path.stem}.png", labels, palette)
            figures.save_overlay(output / f"{path.stem}_overlay.png", pixels, labels, classes, palette)
            if config.attention is not None:
                maps = attention_maps(first.model, first.tensor(picture), config.attention)
                figures.save_attention(
                    output / f"{path.stem}_attention.png", pixels, [m.cpu().numpy() for m in maps], config.attention
                )
            if compared and len(rows) < config.compare_rows:
                others = [
                    network(picture, paths[max(index - network.frames + 1, 0) : index]) for network in networks[1:]
                ]
                rows.append((pixels, None if truths is None else truths[index], [labels, *others]))
            yield figures.blend(pixels, labels, palette)

    if config.video:
        save_video(output / given_path(config.video).name, overlays(), fps=config.fps)
        print(f"video in {output / given_path(config.video).name}")
    else:
        for _ in overlays():
            pass
    if compared:
        names = [str(path) for path in given]
        figures.save_side_by_side(output / "comparison.png", rows, names, first.saved.classes, first.saved.palette)
        print(f"comparison in {output / 'comparison.png'}")
    print(f"{len(paths)} masks and overlays in {output}")


class Network:
    """A checkpoint's network and protocol; called with a picture, it gives labels.

    Attributes:
        frames: T of the clips that the network was trained on, 1 for pictures.
    """

    def __init__(self, saved: Checkpoint, config: DictConfig, device: torch.device):
        self.saved = saved
        self.device, self.bf16 = device, config.bf16
        self.model: nn.Module = checkpoints.network(saved).to(device)
        if config.framework == "jax":
            from ccnet.engine.evaluation.jax_network import JaxNetwork

            self.model = JaxNetwork.of(self.model, bf16=config.bf16, device=config.device)
        self.protocol = _protocol(config, saved)
        self.frames = saved.config.get("dataset", {}).get("frames", 1)

    def __call__(self, picture: Tensor, before: list[Path]) -> np.ndarray:
        """Class indices (H, W) of RGB uint8 (3, H, W), the last frame of a clip whose others lie ``before`` it."""
        images = self.tensor(picture)
        if self.frames > 1:
            clip = [self.tensor(read_image(path)) for path in before]
            clip = [(clip or [images])[0]] * (self.frames - 1 - len(clip)) + [*clip, images]
            images = torch.stack(clip, dim=2)
        labels = predict(self.model, images, self.protocol, bf16=self.bf16)[0]
        return (labels[-1] if self.frames > 1 else labels).cpu().numpy()

    def tensor(self, picture: Tensor) -> Tensor:
        """RGB uint8 (3, H, W) -> (1, 3, H, W) in [0, 1] on the device."""
        return picture.unsqueeze(0).to(self.device) / 255


def _protocol(config: DictConfig, saved: Checkpoint) -> Protocol:
    """The protocol named on the command line, or else the run's own."""
    config.training_crop = saved.setting("recipe.train_transform.crop_size")
    config.dataset = saved.config.get("dataset")
    given = any(part.startswith("protocol") for part in HydraConfig.get().overrides.task)
    return instantiate(config.protocol if given else saved.config.get("protocol", config.protocol))


def _truths(paths: list[Path], folder: str | None, classes: int) -> list[np.ndarray] | None:
    """The label images of the same names."""
    if folder is None:
        return None
    read = LabelReader({index: index for index in range(classes)} | {IGNORE_INDEX: IGNORE_INDEX})
    return [read(given_path(folder) / f"{path.stem}.png").numpy() for path in paths]


def _pictures(source: Path) -> list[Path]:
    """The picture itself, or the pictures of a folder in the order of their names."""
    if source.is_file():
        return [source]
    if not source.is_dir():
        raise FileNotFoundError(f"input={source} is neither a picture nor a folder of pictures")
    paths = sorted(path for path in source.iterdir() if path.suffix.lower() in IMAGE_SUFFIXES)
    if not paths:
        raise FileNotFoundError(f"input={source} holds no pictures ({', '.join(IMAGE_SUFFIXES)})")
    stems = [path.stem for path in paths]
    twice = next((stem for stem in stems if stems.count(stem) > 1), None)
    if twice:
        raise ValueError(f"input={source} holds several pictures named {twice!r}: their masks would collide")
    return paths


if __name__ == "__main__":
    main()
