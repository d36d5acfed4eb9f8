"""Segment images with a trained network.

    python predict.py checkpoint=RUN/best input=photo.jpg
    python predict.py checkpoint=RUN/best input=FOLDER output=FOLDER      images, or the frames of a video
    python predict.py checkpoint=RUN/best input=FRAMES video=out.mp4      also the overlays as a video (.mp4 or .gif)
    python predict.py checkpoint=RUN/best input=photo.jpg attention=[y,x] also where a point attends to (paper, Fig. 7)
    python predict.py checkpoint=[RUN1/best,RUN2/best] input=FOLDER       networks side by side (paper, Fig. 6)
    python predict.py checkpoint=FILE.pth input=photo.jpg                 published weights: see models/published

For each image NAME it writes NAME.png, whose pixel values are class indices shown in the data set's colours, and
NAME_overlay.png, the classes drawn over the image with a legend; with the options above also NAME_attention.png and
comparison.png. With several networks, the first one writes the masks. With ``labels=FOLDER``, a folder of label images
in the format that predict.py writes, the comparison also shows the ground truth and marks errors. A detection network
writes NAME.json, the objects in COCO's results format, and NAME_overlay.png, the likely ones drawn over the image.
"""

import json
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

import hydra
from hydra.utils import instantiate
from omegaconf import DictConfig, ListConfig
from tqdm import tqdm

from ccnet import data
from ccnet.conf import CONF
from ccnet.data.reading.file_lists import IMAGE_SUFFIXES, find_files
from ccnet.engine import checkpoints, drawing, evaluation, guards, runtime, training
from ccnet.engine.sweeps.entry_point import entry_point

if TYPE_CHECKING:
    import numpy as np

    from ccnet.engine.checkpoints import Checkpoint
    from ccnet.engine.evaluation import Predictor
    from ccnet.engine.training import Framework


@hydra.main(version_base="1.3", config_path=str(CONF), config_name="predict")
@entry_point
def main(config: DictConfig) -> None:
    """Write the predictions for every image in ``input`` to ``output``."""
    names = [str(name) for name in _as_list(config.checkpoint)]
    files = [checkpoints.find(name) for name in names]
    paths = _pictures(runtime.given_path(config.input))
    output = runtime.given_path(config.output)
    if output.resolve() == paths[0].parent.resolve():
        raise ValueError(f"output={output} is the folder of the input, whose images a mask could overwrite")
    loaded = [checkpoints.load(file, **config.published) for file in files]
    label_maps = [evaluation.task_of(saved.config).predicts_label_maps for saved in loaded]
    if all(label_maps):
        _segment(config, names, loaded, paths, output)
    elif len(loaded) == 1:
        _detect(config, loaded[0], paths, output)
    else:
        raise ValueError("detection networks cannot be compared side by side: set a single checkpoint")


def _segment(
    config: DictConfig, names: Sequence[str], loaded: Sequence["Checkpoint"], paths: Sequence[Path], output: Path
) -> None:
    """Write masks and overlays and, if requested, attention, comparison and video."""
    classes, palette = loaded[0].classes, loaded[0].palette
    if any(saved.classes != classes for saved in loaded):
        raise ValueError("the checkpoints have different classes: compare networks trained on the same data set")
    if config.video:
        drawing.check_video(runtime.given_path(config.video))
    truths = _truths(paths, config.labels, len(classes))

    from ccnet.data.reading.image_files import read_image

    value_range = _value_range(loaded[0])
    framework = training.choose_framework(config.framework, config.device)
    first, *others = [_predictor(config, saved, framework) for saved in loaded]
    if config.attention is not None:
        evaluation.check_attention(first.network)
    output.mkdir(parents=True, exist_ok=True)
    video_path = config.video and output / runtime.given_path(config.video).name
    compared = bool(others) or truths is not None
    rows = []
    with drawing.open_video(video_path, fps=config.fps) if config.video else nullcontext() as video:
        for index, path in enumerate(tqdm(paths, desc="predict", dynamic_ncols=True)):
            picture = read_image(path, value_range)
            pixels = picture.permute(1, 2, 0).numpy()
            labels = first(picture, paths[:index])
            drawing.save_mask(output / f"{path.stem}.png", labels, palette)
            drawing.save_overlay(output / f"{path.stem}_overlay.png", pixels, labels, classes, palette)
            if config.attention is not None:
                maps = evaluation.attention_of_point(first.network, first.batch(picture), config.attention)
                weights = [weight.cpu().numpy() for weight in maps]
                drawing.save_attention(output / f"{path.stem}_attention.png", pixels, weights, config.attention)
            if compared and index < config.compare_rows:
                predictions = [labels, *(other(picture, paths[:index]) for other in others)]
                rows.append((pixels, truths[index] if truths else None, predictions))
            if video:
                video.add(drawing.blend(pixels, labels, palette))
    if video_path:
        print(f"video in {video_path}")
    if compared:
        drawing.save_side_by_side(output / "comparison.png", rows, names, classes, palette)
        print(f"comparison in {output / 'comparison.png'}")
    print(f"masks and overlays in {output}, images: {len(paths)}")


def _detect(config: DictConfig, saved: "Checkpoint", paths: Sequence[Path], output: Path) -> None:
    """Write the objects as NAME.json, and the image with the likely ones as NAME_overlay.png."""
    from ccnet.data.reading.image_files import read_image

    framework = training.choose_framework(config.framework, config.device)
    value_range = _value_range(saved)
    network = framework.evaluated(checkpoints.network(saved), bf16=config.bf16)
    output.mkdir(parents=True, exist_ok=True)
    for path in tqdm(paths, desc="predict", dynamic_ncols=True):
        picture = read_image(path, value_range)
        objects = evaluation.detect(network, picture.to(framework.device) / 255, bf16=config.bf16)
        found = [
            {"category": entry.pop("category_id")} | {key: value for key, value in entry.items() if key != "image_id"}
            for entry in evaluation.coco_results(objects, 0, saved.classes)
        ]
        runtime.write_text(output / f"{path.stem}.json", json.dumps(found, indent=1) + "\n")
        likely = evaluation.likely_objects(objects)
        drawing.save_objects(output / f"{path.stem}_overlay.png", picture, likely, saved.classes)
    least = evaluation.DRAWN_SCORE
    print(f"objects of {len(paths)} images in {output}, those with a score of at least {least} drawn")


def _predictor(config: DictConfig, saved: "Checkpoint", framework: "Framework") -> "Predictor":
    """Return the checkpoint's network with the protocol set on the command line, or else the run's own."""
    config = guards.replaced(
        config,
        dataset=saved.config.get("dataset"),
        training_crop=saved.setting("recipe.train_transform.crop_size"),
    )
    given = any(option.startswith("protocol") for option in runtime.given_overrides())
    return evaluation.Predictor(
        framework.evaluated(checkpoints.network(saved), bf16=config.bf16),
        instantiate(config.protocol if given else saved.config.get("protocol", config.protocol)),
        device=framework.device,
        frames=saved.config.get("dataset", {}).get("frames", 1),
        bf16=config.bf16,
    )


def _value_range(saved: "Checkpoint") -> Sequence[float] | None:
    """Return the values of black and white that the network was trained with in images of more than 8 bits."""
    return saved.config.get("dataset", {}).get("value_range")


def _truths(paths: Sequence[Path], folder: str | None, classes: int) -> "list[np.ndarray] | None":
    """Return the label images with the same names as the images; None if no folder is set."""
    if folder is None:
        return None
    from ccnet.data.reading.label_files import LabelReader

    read = LabelReader({index: index for index in (*range(classes), data.IGNORE_INDEX)})
    return [read(runtime.given_path(folder) / f"{path.stem}.png").numpy() for path in paths]


def _pictures(source: Path) -> list[Path]:
    """Return the image itself, or the images of a folder ordered by name."""
    if source.is_file():
        return [source]
    if not source.is_dir():
        raise FileNotFoundError(f"input={source} is neither an image nor a folder of images")
    paths = find_files(source, pattern="*")
    if not paths:
        raise FileNotFoundError(f"input={source} contains no images ({', '.join(IMAGE_SUFFIXES)})")
    stems = [path.stem for path in paths]
    twice = next((stem for stem in stems if stems.count(stem) > 1), None)
    if twice:
        raise ValueError(
            f"input={source} contains several images named {twice!r}: their masks would overwrite each other"
        )
    return paths


def _as_list(value: Any) -> list[Any]:
    return list(value) if isinstance(value, ListConfig) else [value]


if __name__ == "__main__":
    from ccnet.predict import main  # so that launchers pickle `main` by reference: see entry_point

    main()
