"""Check that the folders of a data set exist, before torch is imported."""

from collections.abc import Mapping, Sequence
from typing import Any

from omegaconf import DictConfig, OmegaConf

from .sets import layouts

_LAYOUTS = {
    "ade20k.ADE20K": layouts.ADE20K,
    "camvid.CamVid": layouts.CAMVID,
    "camvid.CamVidFull": layouts.CAMVID_FULL,
    "cityscapes.Cityscapes": layouts.CITYSCAPES,
    "coco.Coco": layouts.COCO,
    "lip.LIP": layouts.LIP,
    "voc.VOC": layouts.VOC,
}


def check_root(dataset: DictConfig, splits: Sequence[str] = ("train", "val")) -> None:
    """Check that the folders that ``splits`` need exist.

    Entry points call this right after composing the configuration, so that a mistyped folder fails immediately. Data
    sets repeat the check when they are built; those outside ``data/sets`` are only checked then.

    Args:
        dataset: the ``dataset`` node of the configuration.
        splits: the names of the nodes to check.

    Raises:
        FileNotFoundError: a folder is missing. The message shows the expected layout and where to get the data set.
        ValueError: the data set has no such split, or a folder is set for the synthetic data set, which has no files.
    """
    if str(OmegaConf.select(dataset, "train._target_")).endswith("synthetic.Beacons"):
        for option in ("root", "images", "masks"):
            if dataset.get(option) is not None:
                raise ValueError(
                    f"dataset.{option}={dataset[option]}, but dataset=synthetic reads no files: choose the data set "
                    "in that folder with dataset=NAME"
                )
    for split in splits:
        node = dataset.get(split)
        if not isinstance(node, DictConfig):
            continue
        if _name(node) == "folder.Folder":
            layouts.find_folders(node.get("images"), node.get("masks"), node.split)
        elif layout := layout_of(node):
            layout.find(root_of(dataset), node.split)


def layout_of(node: Mapping[str, Any]) -> layouts.Layout | None:
    """Return the layout of the public data set in the node of a split; None for any other data set."""
    name = _name(node)
    if name == "camvid_video.CamVidVideo":
        name = "camvid.CamVidFull" if node.get("full") else "camvid.CamVid"
    return _LAYOUTS.get(name)


def _name(node: Mapping[str, Any]) -> str:
    return str(node.get("_target_")).removeprefix(f"{layouts.__package__}.")


def root_of(dataset: DictConfig) -> str | None:
    """Return ``dataset.root`` as a string (Hydra parses ``dataset.root=2026`` as a number); None if it is not set."""
    root = dataset.get("root")
    return root and str(root)
