"""Build networks by name from the YAML files that ``train.py model=<name>`` uses."""

from __future__ import annotations

import difflib
import threading
from collections.abc import Generator, Iterable, Iterator, Mapping
from contextlib import contextmanager
from numbers import Integral
from typing import TYPE_CHECKING, Any, cast

from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra._internal.utils import create_config_search_path
from hydra.errors import ConfigCompositionException, InstantiationException
from hydra.types import RunMode
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf, open_dict

from ..conf import CONF

if TYPE_CHECKING:  # listing and checking names must not import torch
    from torch import Tensor, nn

_FRAMEWORKS = ("torch", "jax")
_MISSING = object()
_COMPOSING = threading.Lock()  # Hydra loads its plugins on first use and is not thread-safe


def list_models() -> list[str]:
    """Return the names that :func:`create_model` and ``train.py model=<name>`` accept."""
    return _choices("model")


def create_model(
    name: str,
    *,
    num_classes: int,
    backbone: str = "resnet101",
    pretrained: bool = False,
    framework: str = "torch",
    **overrides: Any,
) -> Any:
    """Build a network from the model zoo.

    Args:
        name: one of :func:`list_models`.
        num_classes: number of classes K; for Mask R-CNN, the number of object classes without the background.
        backbone: name of a file in ``conf/backbone``, or any timm model that can be built with output stride 8.
        pretrained: have timm download ImageNet weights.
        framework: "torch" for an ``nn.Module``; "jax" for the same network in Flax NNX, which maps (N, H, W, 3) to
            logits (N, H, W, K).
        **overrides: other settings in the model's YAML file, with two underscores in place of each dot, such as
            ``head__recurrence=3``; or the name of a file in ``conf/model/<setting>``, such as ``context="nonlocal"``.

    Returns:
        A network that maps images (N, 3, H, W) in [0, 1] to {"out": logits (N, K, H, W)}; see
        :class:`~ccnet.models.segmentor.Segmentor` and :class:`~ccnet.models.parser.Parser`. "mask_rcnn" follows
        torchvision's detection API; see :class:`~ccnet.models.mask_rcnn.MaskRCNN`. For JAX, see
        :class:`~ccnet.models.nnx.segmentor.Segmentor`.

    Raises:
        ValueError: there is no such model, framework, file or setting, or timm cannot build the backbone; see
            :class:`~ccnet.models.backbone.TimmBackbone`.
        OSError: the pretrained weights cannot be downloaded.

    Example:
        >>> net = create_model("ccnet", num_classes=19, backbone="resnet18", head__recurrence=2)
    """
    if framework not in _FRAMEWORKS:
        raise ValueError(f"framework is {framework!r}: choose 'torch' or 'jax'")
    if name not in list_models():
        raise ValueError(f"there is no model {name!r}: did you mean {', '.join(_nearest(name, list_models(), 3))}?")
    if isinstance(num_classes, bool) or not isinstance(num_classes, Integral) or num_classes < 1:
        raise ValueError(f"num_classes is {num_classes!r}: set it to an integer of at least 1")
    files = {key: value for key, value in overrides.items() if isinstance(value, str) and _choices(f"model/{key}")}
    settings = {key: value for key, value in overrides.items() if key not in files}
    chosen = [f"model/{group}={_file(group, value)}" for group, value in files.items()]
    zoo = [f"+model={name}", *_backbone_overrides(backbone, pretrained), f"+num_classes={num_classes}"]
    try:
        config = compose_conf([*zoo, *chosen])
    except ConfigCompositionException as error:
        if not files:
            raise
        raise _no_setting(name, next(iter(files))) from error  # the model has no such group of files
    try:
        network = build(_with_settings(config, name, settings).model)
    except InstantiationException as error:  # callers of this function need not know Hydra
        raise error.__cause__ or error from None
    if framework == "torch":
        return network
    from .nnx import twin

    return twin(network)


def build(
    config: DictConfig | Mapping[str, Any], *, num_classes: int | None = None, holding: int | None = None
) -> nn.Module:
    """Instantiate the network of a ``model`` node.

    Args:
        config: the node, as a DictConfig or a plain mapping.
        num_classes: number of classes K that overrides that of the node; None keeps the node's.
        holding: number of values in the weight file that will be loaded; None for no limit. An untrusted configuration
            may describe a much larger network, which raises ValueError before it exhausts the memory.

    Raises:
        ValueError: the network is far larger than ``holding`` allows, or one of its layers has no weights.
    """
    plain = OmegaConf.to_container(config, resolve=True) if isinstance(config, DictConfig) else dict(config)
    node = cast(dict[str, Any], plain)
    if num_classes is not None:
        node = with_classes(node, num_classes)
    with _at_most(None if holding is None else 4 * holding + 2 * 10**8):  # timm builds full backbones, then prunes them
        network = instantiate(node)
    if empty := [f"{name} {tuple(weight.shape)}" for name, weight in network.named_parameters() if not weight.numel()]:
        raise ValueError(
            f"the network has layers without weights, such as {empty[0]}: set num_classes and the numbers of channels, "
            "also those of each branch of a pyramid, to at least 1"
        )
    return network


def with_classes(node: dict[str, Any], number: int) -> dict[str, Any]:
    """Return a copy of a ``model`` node in which the network and its heads have ``number`` classes."""
    heads = {
        key: node[key] | {"num_classes": number} for key in ("head", "aux_head") if isinstance(node.get(key), dict)
    }
    return node | heads | ({"num_classes": number} if "num_classes" in node else {})


@contextmanager
def _at_most(most: int | None) -> Generator[None]:
    """Raise ValueError as soon as the modules built in the ``with`` block hold more than ``most`` values.

    Tensors are counted after their allocation, which suffices: they take up no physical memory until they are written.
    """
    from torch.nn.modules import module as registration

    if most is None:
        yield
        return
    total, builder = 0, threading.get_ident()

    def count(module: nn.Module, name: str, tensor: Tensor | None) -> None:
        nonlocal total
        if tensor is None or threading.get_ident() != builder:  # hooks are global to all threads
            return
        total += tensor.numel()
        if total > most:
            raise ValueError(f"its config describes a network far larger than its weights: at least {total} values")

    hooks = [
        registration.register_module_parameter_registration_hook(count),
        registration.register_module_buffer_registration_hook(count),
    ]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def compose_conf(overrides: list[str], name: str | None = None) -> DictConfig:
    """Compose a configuration from ``conf/``, in any thread and even inside a program launched by Hydra.

    ``hydra.compose`` would use and replace Hydra's process-wide state.

    Args:
        overrides: Hydra overrides, as on the command line.
        name: file in ``conf/`` to start from; None for an empty configuration.
    """
    with _COMPOSING:
        loader = ConfigLoaderImpl(create_config_search_path(str(CONF)))
        config = loader.load_configuration(
            name, [*overrides, "hydra.job.name=ccnet"], run_mode=RunMode.RUN, from_shell=False
        )
    with open_dict(config):
        del config["hydra"]
    return config


def _backbone_overrides(name: str, pretrained: bool) -> list[str]:
    """Return the overrides that select the file ``name`` in ``conf/backbone``, or else the timm model ``name``."""
    named = name in _choices("backbone")
    chosen = [f"+backbone={name}"] if named else ["+backbone=timm", f"backbone.name={name}"]
    return [*chosen, f"backbone.pretrained={pretrained}"]


def _with_settings(config: DictConfig, name: str, settings: Mapping[str, Any]) -> DictConfig:
    """Return a copy of ``config`` with ``settings`` applied to its ``model`` node."""
    changed = config.copy()
    changed.model = OmegaConf.to_container(config.model, resolve=True)  # interpolated nodes cannot be changed
    for setting, value in settings.items():
        key = "model." + setting.replace("__", ".")
        if OmegaConf.select(changed, key, default=_MISSING) is _MISSING:
            raise _no_setting(name, setting, _settings(OmegaConf.to_container(changed.model)))
        OmegaConf.update(changed, key, value)
    return changed


def _settings(node: Any, prefix: str = "") -> Iterator[str]:
    """Yield the names of all settings in a ``model`` node, with two underscores in place of each dot."""
    for key, value in node.items() if isinstance(node, dict) else ():
        if not str(key).startswith("_"):
            yield f"{prefix}{key}"
            yield from _settings(value, f"{prefix}{key}__")


def _no_setting(name: str, setting: str, settings: Iterable[str] = ()) -> ValueError:
    """Return the error for an unknown setting, which suggests those of ``settings`` with a similar last part."""
    last = {each: each.rpartition("__")[2] for each in settings}
    similar = difflib.get_close_matches(setting.rpartition("__")[2], set(last.values()), n=1)
    meant = " or ".join(each for each, part in last.items() if part in similar)
    hint = f"did you mean {meant}? " if meant else ""
    return ValueError(f"model {name!r} has no setting {setting!r}: {hint}conf/model/{name}.yaml lists its settings")


def _file(group: str, value: str) -> str:
    choices = _choices(f"model/{group}")
    if value not in choices:
        close = _nearest(value, choices, 1)
        raise ValueError(f"there is no {group} {value!r}: did you mean {', '.join(close)}? Available: {choices}")
    return value


def _nearest(name: str, choices: list[str], count: int) -> list[str]:
    """Return the choices most similar to ``name``, or all choices if none is similar."""
    return difflib.get_close_matches(name, choices, n=count, cutoff=0.4) or choices


def _choices(group: str) -> list[str]:
    """Return the names of the files in ``conf/<group>``."""
    return sorted(path.stem for path in (CONF / group).glob("*.yaml"))
