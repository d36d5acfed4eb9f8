"""Networks for ``torch.hub``: ``torch.hub.load(REPOSITORY, "ccnet_mobilenetv2_camvid")``.

Names and networks are the same as in ``ccnet.from_pretrained``.
"""

import importlib.util
import pathlib
import sys
import typing

# torch.hub lists every public callable in this file as an entry point, so only modules are imported above.
dependencies = [
    "torch", "torchvision", "timm", "einops", "safetensors", "huggingface_hub", "hydra", "lazy_loader", "numpy", "PIL",
    "matplotlib", "tqdm", "faster_coco_eval",
]  # fmt: skip


def ccnet_mobilenetv2_camvid(**options: typing.Any) -> typing.Any:
    """Return CCNet on MobileNetV2, trained on street scenes; see :func:`ccnet.from_pretrained` for the options."""
    return _ccnet().from_pretrained("ccnet_mobilenetv2_camvid", **options)


def _ccnet() -> typing.Any:
    """Import this folder as the package ``ccnet``, whatever it is called, unless ``ccnet`` is already imported."""
    if "ccnet" not in sys.modules:
        folder = pathlib.Path(__file__).resolve().parent
        spec = importlib.util.spec_from_file_location("ccnet", folder / "__init__.py")
        assert spec is not None and spec.loader is not None
        sys.modules["ccnet"] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(sys.modules["ccnet"])
    return sys.modules["ccnet"]
