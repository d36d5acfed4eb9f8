"""Segment images with a trained network.

    python predict.py input=photo.jpg                                     with the packaged network
    python predict.py checkpoint=RUN input=photo.jpg                      with the run's best weights
    python predict.py checkpoint=RUN input=FOLDER output=FOLDER           all images, including those in subfolders
    python predict.py checkpoint=RUN "input=[A.jpg,FOLDER,frames/*.png]"  several inputs, also patterns
    python predict.py checkpoint=RUN input=FRAMES video=out.mp4           plus a video of the overlays (.mp4 or .gif)
    python predict.py checkpoint=RUN input=photo.jpg probabilities=npz    plus the probability of every class
    python predict.py checkpoint=RUN input=photo.jpg attention=[y,x]      plus the attention of a point (paper, Fig. 7)
    python predict.py checkpoint=[RUN1,RUN2] input=FOLDER labels=MASKS    networks side by side (paper, Fig. 6)
    python predict.py checkpoint=FILE.pth input=photo.jpg                 published weights: see models/published

For each image NAME, this writes NAME.png, a palette PNG whose pixel values are class indices, and NAME_overlay.png, the
class colours blended over the image with a legend; the options above add NAME_attention.png, NAME_probabilities and
comparison.png. Each frame of an animation and each page of a TIFF is a separate image, NAME_0001 and so on, unless the
network reads the pages as the channels of one image (docs/data.md). With several networks, the masks are those of the
first. With ``labels=FOLDER``, a folder of label images in the format of the training data, the comparison also shows
the ground truth and marks errors. A detection network writes NAME.json, the objects in COCO's results format but with a
class name ("category") and without an image id, and NAME_overlay.png, with the likely objects drawn over the image.

Images that cannot be read or predicted are skipped and listed at the end; the exit code is then 1. Files that an
earlier prediction left in the same folder, such as NAME_attention.png or a comparison, are kept and named. Only one
process at a time writes to a folder.
"""

from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING

from hydra.utils import instantiate
from omegaconf import DictConfig

from ccnet import data
from ccnet.engine import checkpoints, drawing, evaluation, guards, prediction, runtime, training
from ccnet.engine.commands.entry_point import entry_point

if TYPE_CHECKING:
    from ccnet.engine.checkpoints import Checkpoint
    from ccnet.engine.prediction import GroundTruth, InputImage, Predictor, SkippedImages
    from ccnet.engine.training import Framework


@entry_point("predict")
def main(config: DictConfig) -> None:
    """Write the predictions for every image in ``input`` to ``output``."""
    output = runtime.given_path(config.output)
    try:
        _predict(config, output)
    except KeyboardInterrupt:
        raise SystemExit(f"interrupted: the images predicted so far are in {output}") from None


def _predict(config: DictConfig, output: Path) -> None:
    if "training_crop" in runtime.given_options():
        raise ValueError(
            f"training_crop={config.training_crop} cannot be set here, because the checkpoint determines it: set the "
            "windows with protocol=slide protocol.crop_size=[HEIGHT,WIDTH]"
        )
    names = [str(name) for name in guards.as_list(config.checkpoint or checkpoints.DEFAULT)]
    files = [checkpoints.find(name) for name in names]
    images = prediction.find_inputs(guards.as_list(config.input), output)
    loaded = [checkpoints.load(file, **config.published) for file in files]
    checkpoints.check_published(loaded)
    images = prediction.with_frames(images, loaded[0].channels)
    if not config.checkpoint:
        print(f"checkpoint is not set: using {names[0]}, whose classes are {', '.join(loaded[0].classes)}")
    label_maps = [evaluation.task_of(saved.config).predicts_label_maps for saved in loaded]
    if all(label_maps):
        _segment(config, names, loaded, images, output)
    elif len(loaded) == 1:
        _detect(config, loaded[0], images, output)
    else:
        raise ValueError("detection networks cannot be compared side by side: set a single checkpoint")


def _segment(
    config: DictConfig,
    names: Sequence[str],
    loaded: Sequence["Checkpoint"],
    images: Sequence["InputImage"],
    output: Path,
) -> None:
    """Write masks and overlays and, if requested, scores, attention, comparison and video."""
    _check_alike(loaded)
    compare = len(loaded) > 1 or config.labels is not None
    _check_options(config)
    endings = _endings(config)
    reserved = [prediction.COMPARISON] if compare else []
    prediction.check_outputs(images, output, endings, reserved)
    truth = _ground_truth(config, loaded[0], images)
    framework = training.choose_framework(config.framework, config.device)
    predictors = [_predictor(config, saved, framework) for saved in loaded]
    if config.attention is not None:
        prediction.check_attention(predictors[0].network)
    maps = prediction.LabelMaps(
        predictors,
        loaded[0],
        images,
        output,
        probabilities=config.probabilities,
        logits=config.logits,
        attention=config.attention,
        compare_rows=config.compare_rows if compare else 0,
        truth=truth,
    )
    skipped = prediction.SkippedImages()
    video_path = config.video and output / runtime.given_path(config.video).name
    with runtime.FolderLock(output, "output"):
        with drawing.open_video(video_path, fps=config.fps) if config.video else nullcontext() as video:
            # The progress of a single image is that of its forward passes.
            shown = images if len(images) == 1 else _tracked(images)
            for index, image in enumerate(shown):
                (output / image.name).parent.mkdir(parents=True, exist_ok=True)
                predicted = skipped.attempt(image, maps.predicted, index)
                if predicted is not None:
                    maps.write(image, predicted, video)
        if video and video.fitted:
            print(f"{video.fitted} frames differ in size from the first one and were scaled to it in the video")
        if video_path:
            print(f"video in {video_path}")
        for line in maps.finish(names):
            print(line)
        if done := len(images) - len(skipped.images):
            print(f"masks and overlays in {output}, images: {done}")
        _name_earlier_files(images, output, endings, skipped, reserved)
    skipped.report(len(images))


def _check_alike(loaded: Sequence["Checkpoint"]) -> None:
    """Raise ValueError unless the networks have the same classes and read images in the same way."""
    if any(saved.classes != loaded[0].classes for saved in loaded):
        raise ValueError("the checkpoints have different classes: compare networks trained on the same data set")
    formats = [(saved.channels, saved.value_range) for saved in loaded]
    if formats.count(formats[0]) < len(formats):
        raise ValueError(
            "the checkpoints read images differently, with backbone.in_channels and dataset.value_range of "
            f"{', '.join(f'{channels} and {limits}' for channels, limits in formats)}: predict them one at a time"
        )


def _check_options(config: DictConfig) -> None:
    """Raise ValueError unless all requested files can be written."""
    if config.probabilities not in (None, *prediction.FORMATS):
        raise ValueError(f"probabilities={config.probabilities}: choose one of {', '.join(prediction.FORMATS)}")
    point = config.attention
    if point is not None and [type(part) for part in guards.as_list(point)] != [int, int]:
        raise ValueError(
            f"attention={point} is not a point: set its row and column in pixels, as in attention=[200,310]"
        )
    if config.video:
        drawing.check_video(runtime.given_path(config.video), config.fps)


def _endings(config: DictConfig) -> list[str]:
    """Return the endings of the files that are written for an image: the masks and overlays, and what is requested."""
    wanted = {
        "_attention.png": config.attention is not None,
        "_probabilities.npz": config.probabilities == "npz",
        "_probabilities": config.probabilities in ("png", "png16"),  # a folder
        "_logits.npz": config.logits,
    }
    return [".png", "_overlay.png", *(ending for ending, is_wanted in wanted.items() if is_wanted)]


def _ground_truth(config: DictConfig, saved: "Checkpoint", images: Sequence["InputImage"]) -> "GroundTruth | None":
    """Return the label images to compare with, which have the format of the network's training data."""
    if config.labels is None:
        return None
    stored = data.label_format(saved.dataset, saved.classes)
    folder, channels = runtime.given_path(config.labels), saved.channels
    return prediction.GroundTruth(images, folder, stored, channels)


def _detect(config: DictConfig, saved: "Checkpoint", images: Sequence["InputImage"], output: Path) -> None:
    """Write each image's objects to NAME.json, and the image with the likely ones drawn over it to NAME_overlay.png."""
    unused = ["logits"] * config.logits
    unused += [name for name in ("probabilities", "attention", "labels", "video") if config[name] is not None]
    unused += [name for name in runtime.given_options() if name.startswith("protocol")]
    if unused:
        raise ValueError(f"this network detects objects: remove {', '.join(unused)}, which only label maps have")
    endings = [".json", "_overlay.png"]
    prediction.check_outputs(images, output, endings, [])
    framework = training.choose_framework(config.framework, config.device)
    network = framework.evaluated(checkpoints.network(saved), bf16=config.bf16)
    files = prediction.ObjectFiles(network, saved, output, device=framework.device, bf16=config.bf16)
    skipped = prediction.SkippedImages()
    with runtime.FolderLock(output, "output"):
        for image in _tracked(images):
            (output / image.name).parent.mkdir(parents=True, exist_ok=True)
            detected = skipped.attempt(image, files.predicted, image)
            if detected is not None:
                files.write(image, detected)
        if done := len(images) - len(skipped.images):
            least = evaluation.DRAWN_SCORE
            print(f"objects of {done} images in {output}, those with a score of at least {least} drawn")
        _name_earlier_files(images, output, endings, skipped)
    skipped.report(len(images))


def _name_earlier_files(
    images: Sequence["InputImage"],
    output: Path,
    endings: Sequence[str],
    skipped: "SkippedImages",
    reserved: Sequence[str] = (),
) -> None:
    """Print what an earlier prediction of these images left in ``output``."""
    if earlier := prediction.earlier_files(images, output, endings, skipped.images, reserved):
        more = f" and {len(earlier) - 1} more" if len(earlier) > 1 else ""
        print(f"left by an earlier prediction: {earlier[0]}{more}")


def _predictor(config: DictConfig, saved: "Checkpoint", framework: "Framework") -> "Predictor":
    """Return the checkpoint's network with the protocol set on the command line, otherwise the run's own.

    Unless the command line sets one, images too large for the available memory are split into windows.
    """
    crop = saved.setting("recipe.train_transform.crop_size")
    config = guards.replaced(config, dataset=saved.config.get("dataset"), training_crop=crop)
    given = any(option.startswith("protocol") for option in runtime.given_options())
    guards.check_settings({"protocol": guards.plain(config.protocol)})
    predictor = prediction.Predictor.of(
        saved,
        framework.evaluated(checkpoints.network(saved), bf16=config.bf16),
        device=framework.device,
        protocol=instantiate(config.protocol) if given else None,
        bf16=config.bf16,
    )
    if config.logits and evaluation.averages_probabilities(predictor.protocol):
        raise ValueError("logits=true, but this protocol averages probabilities: set protocol.average=logits")
    return predictor


def _tracked(images: Sequence["InputImage"]) -> Iterator["InputImage"]:
    return runtime.tracked(images, "predict", "predicted image")


if __name__ == "__main__":
    import ccnet.predict  # so that launchers pickle `main` by reference: see entry_point

    ccnet.predict.main()
