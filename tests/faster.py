"""Save time that many tests would spend on what none of them tests; conftest.py imports this first.

Hydra composes a command line from about twenty files, twice, and a tiny training run draws longer than it trains.
"""

import copy
import io
import os
from collections import defaultdict
from functools import cache
from pathlib import Path

import omegaconf.base
from hydra._internal import defaults_list
from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra._internal.core_plugins.importlib_resources_config_source import ImportlibResourcesConfigSource
from hydra._internal.hydra import Hydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import AnyNode, BooleanNode, DictConfig, FloatNode, IntegerNode, ListConfig, OmegaConf, StringNode
from omegaconf.base import Metadata

CONF = Path(__file__).resolve().parent.parent / "conf"


@cache
def _parsed(path, changed, load=OmegaConf.load):
    return load(path)


def _load_once(file, load=OmegaConf.load):
    """Parse each YAML file once."""
    if isinstance(file, io.TextIOWrapper):
        return copy.deepcopy(_parsed(file.name, os.stat(file.name).st_mtime_ns))
    return load(file)


def _copy_metadata(metadata, memo):
    copied = _copy_attributes(metadata)
    copied.flags = copy.copy(metadata.flags)
    cached = getattr(metadata, "resolver_cache", None)
    copied.resolver_cache = copy.deepcopy(cached, memo) if cached else defaultdict(dict)
    return copied


def _copy_node(node, memo):
    """Copy a node as OmegaConf does, but without first making an empty one, which takes longer than all of the rest."""
    copied = _copy_attributes(node)
    attributes = vars(copied)
    attributes["_metadata"], attributes["_flags_cache"] = _copy_metadata(node._metadata, memo), None
    content = attributes.get("_content")
    if isinstance(content, dict):
        attributes["_content"] = {key: _child(value, copied, memo) for key, value in content.items()}
    elif isinstance(content, list):
        attributes["_content"] = [_child(value, copied, memo) for value in content]
    return copied


def _child(node, parent, memo):
    copied = copy.deepcopy(node, memo)
    vars(copied)["_parent"] = parent
    return copied


def _copy_attributes(thing):
    copied = object.__new__(type(thing))
    vars(copied).update(vars(thing))
    return copied


@cache
def _parsed_once(text, rule, parse=OverridesParser.parse_rule):
    return parse(OverridesParser.create(), text, rule)


def _parse_rule(self, text, rule):
    """Parse each override once."""
    return copy.copy(_parsed_once(text, rule))  # of which the caller sets an attribute


def _mode(self, config_name, overrides, get_mode=Hydra.get_mode):
    """Compose the configuration to find `hydra.mode` only if an option can set it."""
    sets_mode = any(override.lstrip("+").startswith(("hydra.mode=", "sweep=")) for override in overrides)
    return get_mode(self, config_name, overrides) if sets_mode else None


_FOUND = {}


def _is_packaged(self, path, find=ImportlibResourcesConfigSource.is_config):
    """Look once for each file of a configuration in the package of Hydra."""
    if (self.path, path) not in _FOUND:
        _FOUND[self.path, path] = find(self, path)
    return _FOUND[self.path, path]


_CHOSEN, _MERGED = {}, {}


def _chosen(repo, config_name, overrides, *arguments, find=defaults_list._create_defaults_list, **named):
    """Choose the files of a configuration once for every choice of groups, whatever the other options are."""
    folders = {source.path for source in repo.get_sources() if source.scheme() == "file"}
    if folders != {str(CONF)}:  # a test may change its own files
        return find(repo, config_name, overrides, *arguments, **named)
    groups = {name: value for name, value in vars(overrides).items() if name != "config_overrides"}
    key = config_name, repr(groups), arguments, *named.items()
    if key not in _CHOSEN:
        files, tree = find(repo, config_name, overrides, *arguments, **named)
        _CHOSEN[key] = files, tree, copy.deepcopy({name: vars(overrides)[name] for name in groups})
        _MERGED[id(files)] = None
    files, tree, after = _CHOSEN[key]
    vars(overrides).update(copy.deepcopy(after))
    return files, tree


def _merged(self, defaults, repo, merge=ConfigLoaderImpl._compose_config_from_defaults_list):
    """Merge the files of each choice once."""
    if id(defaults) not in _MERGED:
        return merge(self, defaults, repo)
    if _MERGED[id(defaults)] is None:
        _MERGED[id(defaults)] = merge(self, defaults, repo)
    return copy.deepcopy(_MERGED[id(defaults)])


OmegaConf.load = _load_once
omegaconf.base.parse = cache(omegaconf.base.parse)  # of interpolations such as ${num_classes}
ImportlibResourcesConfigSource.is_config = _is_packaged
for kind in (AnyNode, StringNode, IntegerNode, FloatNode, BooleanNode, DictConfig, ListConfig):
    kind.__deepcopy__ = _copy_node
Metadata.__deepcopy__ = _copy_metadata
OverridesParser.parse_rule = _parse_rule
Hydra.get_mode = _mode
defaults_list._create_defaults_list = _chosen
ConfigLoaderImpl._compose_config_from_defaults_list = _merged


_DRAWN, _COSTS = set(), {}


def _kind(content):
    """Return what determines how an argument is drawn, whatever its size: dtypes, numbers of axes, names of columns."""
    if hasattr(content, "dtype"):
        return content.ndim, str(content.dtype)
    if isinstance(content, dict):
        return tuple(content)
    return frozenset(map(_kind, content)) if isinstance(content, (list, tuple)) else type(content)


def _each_kind_once(draw):
    """Draw the first picture of each kind, and leave the file of every other one empty."""

    def drawn(path, *content):
        kind = draw.__name__, *map(_kind, content)
        if kind in _DRAWN:
            path.touch()
        else:
            draw(path, *content)
            _DRAWN.add(kind)

    return drawn


def omit_pictures_and_costs(monkeypatch):
    """Draw each kind of picture of a run or an evaluation once, and count the cost of each kind of network once."""
    from ccnet.engine.evaluation.tasks import semantic
    from ccnet.engine.training import logger

    def once(self, model, config, count=semantic.Semantic.cost):
        learned = tuple(parameter.requires_grad for parameter in model.parameters())
        key = repr((OmegaConf.to_container(config.model), learned))  # whatever the number of classes and the crop
        if key not in _COSTS:
            _COSTS[key] = count(self, model, config)
        return dict(_COSTS[key])

    save_panel = _each_kind_once(semantic.save_panel)
    monkeypatch.setattr(logger, "save_curves", _each_kind_once(logger.save_curves))
    monkeypatch.setattr(semantic, "save_confusion", _each_kind_once(semantic.save_confusion))
    monkeypatch.setattr(semantic, "save_panel", save_panel)
    monkeypatch.setattr(semantic.Semantic, "save_panel", staticmethod(save_panel))
    monkeypatch.setattr(semantic.Semantic, "cost", once)


def omit_here(*, pictures=True):
    """Omit the costs for good, and the pictures, in a process that a test has started."""
    from ccnet.engine.evaluation.tasks.semantic import Semantic
    from ccnet.engine.training import logger

    def blank(path, *_):
        path.touch()

    Semantic.cost = lambda self, model, config: {"parameters": 1.0, "gflops": 1.0, "saved_mb": 1.0}
    if pictures:
        logger.save_curves, Semantic.save_panel = blank, staticmethod(blank)
