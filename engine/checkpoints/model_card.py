"""Generate the model card of a network: its training data, settings, scores and usage.

Everything in the card comes from the checkpoint and the records of its run.
"""

import json
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import PurePath
from typing import Any

from ..drawing.tables import Table
from .inherited_data import inherited_data, own_data
from .options import flat
from .record import Checkpoint

# Row of the card -> candidate options; the first one that is set in the configuration is shown.
_SETTINGS = {
    "backbone": ("model.backbone.name",),
    "output stride": ("model.backbone.output_stride",),
    "context module": (  # CE2P's is inside a module that fuses its output, Mask R-CNN's inside the backbone
        "model.head.context.context._target_",
        "model.head.context._target_",
        "model.context._target_",
        "model.head._target_",
        "model._target_",
    ),
    "recurrence R": ("model.head.recurrence", "model.head.context.recurrence", "model.context.recurrence"),
    "channels of the head": ("model.head.channels",),
    "residual weight gamma": ("model.head.context.gamma", "model.head.context.context.gamma", "model.context.gamma"),
    "weights of the loss terms": ("loss.weights",),
    "iterations of a ramp of the weights": ("loss.ramp",),
    "optimiser": ("optimizer.algorithm._target_",),
    "schedule": ("optimizer.schedule._target_",),
    "learning rate": ("recipe.lr", "optimizer.algorithm.lr"),
    "learning rate factors": ("optimizer.lr_factors",),
    "weight decay": ("recipe.weight_decay", "optimizer.algorithm.weight_decay"),
    "frames of a clip": ("dataset.frames",),
    "crop, H x W": ("recipe.train_transform.crop_size",),
    "scales": ("recipe.train_transform.scale",),
    "batch size": ("recipe.batch_size",),
    "bfloat16 autocast": ("bf16",),
    "frozen stages of the backbone": ("frozen_stages",),
    "seed": ("seed",),
}
# Row of the card -> key in the run's record.
_RECORDED = {
    "parameters, M": "parameters",
    "GFLOPs of one crop": "gflops",
    "machine": "machine",
    "hours": "hours",
    "torch": "torch",
    "JAX": "jax",
    "commit of the code": "commit",
    "date": "date",
}

_GENERIC = ("best", "last", "previous", "model")  # file names that only say something with their folder

_CARD = """---
library_name: ccnet
pipeline_tag: image-segmentation
license: other
license_name: {licence_name}
tags: [{kind}, criss-cross-attention, ccnet]
---

# {name}

A network of the [CCNet](https://arxiv.org/abs/1811.11721) reference implementation that
{purpose}: {classes}.

To use it, install the package `ccnet` from the repository of that implementation. The project called ccnet on PyPI is
a different one.

```python
import ccnet

network = ccnet.from_pretrained({quoted})  # from Hugging Face: {on_hub}
{outputs} = network.predict("{file}")
```
{images}
## Data and licence

{data}

## Training

{training}

## Scores

{scores}
"""


def model_card(
    saved: Checkpoint, name: str, *, scores: Table | None = None, scored_on: str = "", record: Mapping[str, Any]
) -> str:
    """Return the card as Markdown, with the metadata that Hugging Face reads.

    Args:
        saved: the checkpoint.
        name: the name that :func:`ccnet.from_pretrained` accepts.
        scores: the table of its scores, in percent.
        scored_on: a sentence that states on which images and how the scores were measured.
        record: what is known of the run's result; see :func:`record_of`.
    """
    number, channels = len(saved.classes), saved.channels
    image = "an RGB image" if channels == 3 else f"an image of {channels} channel{'s' * (channels > 1)}"
    detects = str((saved.config.get("task") or {}).get("_target_")).endswith(".Detection")
    return _CARD.format(
        name=name,
        quoted=json.dumps(name, ensure_ascii=False),
        on_hub=json.dumps(f"OWNER/{name}", ensure_ascii=False),
        kind="instance-segmentation" if detects else "semantic-segmentation",
        purpose=f"finds objects of {number} classes in {image}"
        if detects
        else f"assigns each pixel of {image} one of {number} classes",
        file="photo.jpg" if channels in (1, 3) else "image.npy",
        images=_images(saved),
        outputs="labels, scores, boxes, masks, overlay" if detects else "labels, probabilities, overlay",
        licence_name="data-set-terms" if own_data(saved) or inherited_data(saved) else "unknown",
        classes=_listed(saved.classes),
        data=_data(saved),
        training=_training(saved, record),
        scores=_scored(saved, scores, scored_on),
    )


def _listed(classes: Sequence[str]) -> str:
    """Return the names of the classes, in quotes if one of them contains a comma."""
    quoted = any("," in name for name in classes)
    return ", ".join(json.dumps(name, ensure_ascii=False) if quoted else name for name in classes)


def record_of(result: Mapping[str, Any]) -> dict[str, Any]:
    """Return the content of a run's result.json in the form that :func:`model_card` expects.

    The provenance is merged into the top level, the duration is added in hours, and floats are rounded.
    """
    provenance = result.get("provenance")
    record = {**result, **(provenance if isinstance(provenance, Mapping) else {})}
    if isinstance(seconds := result.get("seconds"), (int, float)):
        record["hours"] = seconds / 3600
    return {key: round(value, 2) if isinstance(value, float) else value for key, value in record.items()}


def _images(saved: Checkpoint) -> str:
    """Return the file types and values that the network accepts; empty if it accepts ordinary photos."""
    channels, lines = saved.channels, []
    if channels not in (1, 3):
        pillow = {2: "grey images with transparency (LA), ", 4: "RGBA and CMYK images, "}.get(channels, "")
        lines.append(
            f"It accepts {pillow}NumPy arrays of shape (H, W, {channels}), and TIFFs with {channels} bands\n"
            "(`pip install 'ccnet-segmentation[bands]'`)."
        )
    if saved.value_range is not None:
        black, white = saved.value_range
        lines.append(f"In images of more than 8 bits, {black} is black and {white} is white.")
    return "".join(f"\n{line}\n" for line in lines)


def _data(saved: Checkpoint) -> str:
    own, before = own_data(saved), inherited_data(saved)
    split = _split(saved, "train")
    part = f"split {split}" if split not in (None, "train", "training") else "training split"
    lines = [f"Trained on the {part} of {name}: {source}." for name, source in own.items()]
    if not own:
        lines.append("The training data set is not one of the public data sets that ccnet supports.")
    lines += [f"The initial weights were trained on {name}: {source}." for name, source in before.items()]
    lines.append("The code is released under the MIT licence.")
    if names := " and ".join(own | before):
        lines.append(
            f"The weights are derived from {names}, whose terms apply to them: check that they permit your use."
        )
    if not own:
        lines.append("Apart from that, whoever shares the weights sets their terms.")
    else:
        lines.append("Expect good results only for images like those.")
    return textwrap.fill(" ".join(lines), 120, break_long_words=False, break_on_hyphens=False)


def _training(saved: Checkpoint, record: Mapping[str, Any]) -> str:
    options = {name: value for name, value in flat(saved.config).items() if value is not None}
    rows = []
    for row, names in _SETTINGS.items():
        value = next(filter(None, (_shown(name, options, saved) for name in names)), None)
        if value:
            rows.append((row, value))
    if "init" in saved.config:  # a folder with config.json does not record it
        rows.insert(1, ("initial weights", _initial_weights(options)))
    rows.append(("iterations", _budget(saved, record)))
    rows += [(row, str(record[key])) for row, key in _RECORDED.items() if record.get(key) is not None]
    return Table(("setting", "value"), rows).markdown()


def _shown(name: str, options: Mapping[str, Any], saved: Checkpoint) -> str | None:
    """Format an option for the card: classes without their module, mappings as lists; None if it is not set."""
    if name in options:
        value = options[name]
        if isinstance(value, list):
            return (" to " if name.endswith(".scale") else " x ").join(map(str, value))
        return str(value).rpartition(".")[2] if name.endswith("_target_") else str(value)
    inside = {key.removeprefix(f"{name}."): value for key, value in options.items() if key.startswith(f"{name}.")}
    inside = {key: value for key, value in inside.items() if "." not in key and value != 0}
    return ", ".join(f"{key} {value}" for key, value in inside.items()) or None


def _initial_weights(options: Mapping[str, Any]) -> str:
    file = options.get("init") or options.get("model.backbone.weights")
    if file:
        path = PurePath(str(file))
        return f"{path.parent.name}/{path.name}" if path.stem in _GENERIC else path.name
    return "timm's pretrained weights" if options.get("model.backbone.pretrained") else "random"


def _budget(saved: Checkpoint, record: Mapping[str, Any]) -> str:
    """Return the number of iterations as text, with the epochs if the size of the training set is known."""
    of = record.get("iterations")
    done = "unknown" if saved.iteration is None else str(saved.iteration)
    text = done if of in (None, saved.iteration) else f"{done} of {of}; the best validation selects the weights"
    images, batch = record.get("training_images"), saved.config.get("recipe", {}).get("batch_size")
    if isinstance(saved.iteration, int) and isinstance(images, int) and isinstance(batch, int) and images:
        text += f" ({saved.iteration * batch / images:.1f} epochs of {images} images)"
    return text


def _scored(saved: Checkpoint, scores: Table | None, scored_on: str) -> str:
    if scores is None:
        return "No scores are recorded."
    trained = _split(saved, "train")
    if trained is not None and trained in ("trainval", "all", _split(saved, "val")):
        scored_on += " The network was trained on these images too: expect lower scores on others."
    return f"{scored_on.strip()}\n\n{scores.markdown()}".strip()


def _split(saved: Checkpoint, name: str) -> str | None:
    """Return the split that a node of the data set's configuration reads; None if it does not say."""
    node = saved.dataset.get(name) or {}
    return node.get("split")
