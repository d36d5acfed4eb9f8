"""Networks by name, from the same YAML files that ``train.py model=<name>`` composes."""

import difflib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.core.singleton import Singleton
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf
from torch import nn
from torch.nn.modules import module as registration

from ..conf import CONF


def list_models() -> list[str]:
    """The names that :func:`create_model` and ``train.py model=<name>`` take."""
    return _choices("model")


def create_model(
    name: str,
    *,
    num_classes: int,
    backbone: str = "resnet101",
    pretrained: bool = False,
    framework: str = "torch",
    **overrides,
) -> Any:
    """Build a network of the zoo.

    Args:
        name: one of :func:`list_models`.
        num_classes: K of the logits; for Mask R-CNN the kinds of objects, without the background.
        backbone: a file in ``conf/backbone`` or any timm model that takes output stride 8.
        pretrained: let timm download ImageNet weights.
        framework: "torch" for an ``nn.Module``, "jax" for its twin in Flax NNX, which takes (N, H, W, 3) and gives
            (N, H, W, K).
        **overrides: further settings of the model's YAML, dots written as two underscores:
            ``head__recurrence=3``; or a file of ``conf/model/<setting>``: ``context="nonlocal"``.

    Returns:
        (N, 3, H, W) in [0, 1] -> {"out": (N, K, H, W)}; see :class:`models.segmentor.Segmentor` and
        :class:`models.parser.Parser`. ``mask_rcnn`` follows torchvision's detection API; see
        :class:`models.mask_rcnn.MaskRCNN`. In JAX see
        :class:`models.nnx.segmentor.Segmentor`.

    Raises:
        ValueError: an unknown name, with the nearest ones.

    Example:
        >>> net = create_model("ccnet", num_classes=19, backbone="resnet18", head__recurrence=2)
    """
    if framework not in ("torch", "jax"):
        raise ValueError(f"framework is {framework!r}: choose 'torch' or 'jax'")
    if name not in list_models():
        close = difflib.get_close_matches(name, list_models(), n=3, cutoff=0.4) or list_models()
        raise ValueError(f"there is no model {name!r}: did you mean {', '.join(close)}?")
    named = backbone in _choices("backbone")
    groups = [
        f"model/{setting}={_choice(setting, overrides.pop(setting))}"
        for setting in list(overrides)
        if isinstance(overrides[setting], str) and _choices(f"model/{setting}")
    ]
    config = compose_conf(
        [
            f"+model={name}",
            f"+backbone={backbone if named else 'timm'}",
            *([] if named else [f"backbone.name={backbone}"]),
            f"backbone.pretrained={pretrained}",
            f"+num_classes={num_classes}",
            *groups,
        ]
    )
    for setting, value in overrides.items():
        key = "model." + setting.replace("__", ".")
        if OmegaConf.select(config, key, default=_MISSING) is _MISSING:
            raise ValueError(f"model {name!r} has no setting {setting!r}: its settings stand in conf/model/{name}.yaml")
        OmegaConf.update(config, key, value)
    network = build(config.model)
    if framework == "torch":
        return network
    from .nnx import twin

    return twin(network)


def build(
    config: DictConfig | Mapping[str, Any], *, num_classes: int | None = None, holding: int | None = None
) -> nn.Module:
    """Instantiate a ``model`` node.

    Args:
        config: the node, composed or plain.
        num_classes: K in place of the node's own, where that is only known from the data set.
        holding: how many numbers the file holds whose weights the network is for. A much larger network, as an
            untrusted configuration may ask for, raises ValueError before it fills the memory.
    """
    node = OmegaConf.to_container(config, resolve=True) if isinstance(config, DictConfig) else dict(config)
    if num_classes is not None:
        node = _with_classes(node, num_classes)
    with _at_most(None if holding is None else 4 * holding + 2 * 10**8):  # a backbone is built whole and then cut
        return instantiate(node)


def _with_classes(node: dict[str, Any], number: int) -> dict[str, Any]:
    """Return a ``model`` node whose network, head and auxiliary head have this number of classes."""
    heads = {key: part for key, part in node.items() if key in ("head", "aux_head") and isinstance(part, dict)}
    made = node | {key: part | {"num_classes": number} for key, part in heads.items()}
    return made | {"num_classes": number} if "num_classes" in node else made


@contextmanager
def _at_most(numbers: int | None) -> Iterator[None]:
    """Count what modules register; memory that is allocated and not written yet takes no space."""
    found = 0

    def count(module: nn.Module, name: str, tensor: Any) -> None:
        nonlocal found
        found += 0 if tensor is None else tensor.numel()
        if numbers is not None and found > numbers:
            raise ValueError(f"its config describes a network far larger than its weights, {found} numbers and more")

    hooks = [
        registration.register_module_parameter_registration_hook(count),
        registration.register_module_buffer_registration_hook(count),
    ]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


_MISSING = object()


def compose_conf(overrides: list[str], name: str | None = None) -> DictConfig:
    """Compose out of ``conf/``, ``name`` the file to begin with, also inside a program that Hydra has started."""
    outer = Singleton.get_state()
    GlobalHydra.instance().clear()
    try:
        with initialize_config_dir(config_dir=str(CONF), version_base="1.3"):
            return compose(name, overrides)
    finally:
        Singleton.set_state(outer)


def _choice(setting: str, value: str) -> str:
    choices = _choices(f"model/{setting}")
    if value not in choices:
        close = difflib.get_close_matches(value, choices, n=1, cutoff=0.4) or choices
        raise ValueError(f"there is no {setting} {value!r}: did you mean {', '.join(close)}? There are {choices}")
    return value


def _choices(group: str) -> list[str]:
    return sorted(path.stem for path in (CONF / group).glob("*.yaml"))
