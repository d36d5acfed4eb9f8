"""Segment pictures with a trained network.

    python predict.py checkpoint=RUN/best input=photo.jpg
    python predict.py checkpoint=RUN/best input=FOLDER output=FOLDER      pictures, or the frames of a video
    python predict.py checkpoint=FILE.pth input=photo.jpg                 published weights: models/published

For each picture NAME it writes NAME.png, whose pixel values are class indices shown in the data set's colours,
and NAME_overlay.png, the classes over the picture with a legend. A network that finds objects writes NAME.json, the
objects as in COCO's results, and NAME_overlay.png, the likely ones drawn over the picture.
"""

from pathlib import Path

import hydra
from hydra.utils import instantiate
from omegaconf import DictConfig
from tqdm import tqdm

from data.pairs import IMAGE_SUFFIXES, read_image
from engine import checkpoint, detection, figures
from engine.entry import choose_device, entry_point
from engine.evaluation import predict


@hydra.main(version_base="1.3", config_path="conf", config_name="predict")
@entry_point
def main(config: DictConfig) -> None:
    """Write masks and overlays of every picture of ``input`` into ``output``."""
    saved = checkpoint.load(checkpoint.find(config.checkpoint), **config.published)
    paths = _pictures(Path(config.input).expanduser())
    output = Path(config.output).expanduser()
    if output.resolve() == paths[0].parent.resolve():
        raise ValueError(f"output={output} is the folder of the input, whose pictures a mask could overwrite")
    if detection.finds_objects(saved):
        return detection.predict(config, saved, paths, output)
    config.training_crop = saved.config["recipe"]["train_transform"]["crop_size"]
    device = choose_device(config.device)
    model = checkpoint.network(saved).to(device)
    protocol = instantiate(config.protocol)
    output.mkdir(parents=True, exist_ok=True)
    for path in tqdm(paths, desc="predict", dynamic_ncols=True):
        picture = read_image(path)
        labels = predict(model, picture.unsqueeze(0).to(device) / 255, protocol, bf16=config.bf16)[0].cpu().numpy()
        figures.save_mask(output / f"{path.stem}.png", labels, saved.palette)
        pixels = picture.permute(1, 2, 0).numpy()
        figures.save_overlay(output / f"{path.stem}_overlay.png", pixels, labels, saved.classes, saved.palette)
    print(f"{len(paths)} masks and overlays in {output}")


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
