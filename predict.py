"""Segment pictures with a trained network.

    python predict.py checkpoint=RUN/best input=photo.jpg
    python predict.py checkpoint=RUN/best input=FOLDER output=FOLDER      pictures, or the frames of a video

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
from engine import checkpoint
from engine.entry import choose_device, entry_point


@hydra.main(version_base="1.3", config_path="conf", config_name="predict")
@entry_point
def main(config: DictConfig) -> None:
    """Write what the network finds in every picture of ``input`` into ``output``."""
    saved = checkpoint.load(checkpoint.find(config.checkpoint))
    paths = _pictures(Path(config.input).expanduser())
    output = Path(config.output).expanduser()
    if output.resolve() == paths[0].parent.resolve():
        raise ValueError(f"output={output} is the folder of the input, whose pictures a mask could overwrite")
    task = instantiate(saved.config["task"])
    protocol = task.protocol(config, saved)
    device = choose_device(config.device)
    model = checkpoint.network(saved).to(device)
    output.mkdir(parents=True, exist_ok=True)
    for path in tqdm(paths, desc="predict", dynamic_ncols=True):
        task.predict(model, read_image(path), protocol, output / path.stem, saved, bf16=config.bf16)
    print(f"{len(paths)} pictures, drawn over and as numbers, in {output}")


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
