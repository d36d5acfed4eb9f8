"""Keep values of environment variables out of a run's files, which may be copied, shared and uploaded."""

import os
import re
from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, ListConfig, OmegaConf
from omegaconf.resolvers import oc

from ..runtime.overrides import in_sweep

_NAMED = re.compile(
    r"(^|_)(API_?KEY|ACCESS_?KEY|KEY|TOKEN|PAT|SECRET|PASS(WORD|WD)?|PWD|CREDENTIALS?)(_|$)", re.IGNORECASE
)
_SHORTEST = 8  # characters; shorter values, such as "1" or "true", occur in configurations by chance
_IN_ADDRESS = re.compile(r"://[^/\s@]*:[^/\s@]+@")


def refuse_environment(config: DictConfig) -> None:
    """Raise ValueError if an option takes its value from an environment variable that ``allow_env`` does not list.

    The run would write the value to its files, and the name of a variable does not reveal whether its value is secret.
    Absolute paths of existing files and folders are accepted.

    Args:
        config: the composed configuration, with its interpolations.
    """
    allowed = allowed_variables(config.get("allow_env"))
    for option, names in _from_environment(config):
        for name in sorted(names.difference(allowed)):
            if not _is_path(os.environ[name]):
                raise ValueError(
                    f"{option} takes the value of the environment variable {name}, and a run writes its configuration "
                    f"to its checkpoints and logs: if everyone may read that value, set allow_env=[{name}]; otherwise "
                    "remove the option, and let the code that needs the value read the environment"
                )


def allowed_variables(names: Any) -> list[str]:
    """Return the value of ``allow_env`` as a list; raise ValueError unless it is a list of names or null."""
    if isinstance(names, (list, tuple, ListConfig)) and all(isinstance(name, str) for name in names):
        return list(names)
    if names is None:
        return []
    raise ValueError(f"allow_env is {names!r}, but must be a list of environment variables, such as allow_env=[USER]")


def refuse_secrets(written: Mapping[str, Any], allowed: Sequence[str] = ()) -> None:
    """Raise ValueError if a run's checkpoints, tables or W&B logs would contain a secret.

    Masking the value is not an option: it would change the configuration, and the run could not be resumed.

    Args:
        written: the plain, resolved configuration and anything else that the run writes, as {name for the error
            message: value}.
        allowed: names of environment variables whose values are not secret.
    """
    secrets = {
        value: name
        for name, value in os.environ.items()
        if _NAMED.search(name) and name not in allowed and len(value) >= _SHORTEST and not os.path.isabs(value)
    }  # absolute paths, such as those in PWD and GOOGLE_APPLICATION_CREDENTIALS, are not secrets
    for place, text in _texts(written):
        name = next((name for value, name in secrets.items() if value in text), None)
        if name:
            raise ValueError(
                f"{place} contains the value of the environment variable {name}, and a run writes its configuration to "
                "its checkpoints and logs: remove it, and let the code that needs it read the environment"
            )
        if _IN_ADDRESS.search(text):
            raise ValueError(
                f"{place} contains a URL with a password, and a run writes its configuration to its checkpoints and "
                "logs: remove it"
            )


def _texts(node: Any, name: str = "") -> Iterator[tuple[str, str]]:
    """Yield (dotted name, string) for every string in a plain configuration."""
    if isinstance(node, Mapping):
        for key, value in node.items():
            yield from _texts(value, f"{name}.{key}" if name else str(key))
    elif isinstance(node, (list, tuple)):
        for value in node:
            yield from _texts(value, name)
    elif isinstance(node, str):
        yield name, node


def _is_path(value: str) -> bool:
    return os.path.isabs(value) and os.path.exists(value)


def _from_environment(config: DictConfig) -> list[tuple[str, set[str]]]:
    """Return (option, names of environment variables) for each option whose value contains environment variables."""
    with _recorded_variables() as recorded:
        found = [*_sources(config, recorded)]
        if HydraConfig.initialized():
            node = "sweep" if in_sweep() else "run"  # this node names the run's folder
            hydra: Any = HydraConfig.get()
            found += _sources(hydra[node], recorded, f"hydra.{node}")
    return found


def _sources(node: DictConfig | ListConfig, recorded: set[str], name: str = "") -> Iterator[tuple[str, set[str]]]:
    """Yield (option, names of the environment variables in its value), following interpolations to other options."""
    keys = list(node) if isinstance(node, DictConfig) else range(len(node))
    for key in keys:
        option = f"{name}.{key}" if name else str(key)
        if OmegaConf.is_missing(node, key):
            continue
        recorded.clear()
        value = node[key]
        if recorded:
            yield option, set(recorded)
        if isinstance(value, (DictConfig, ListConfig)):
            yield from _sources(value, recorded, option)


@contextmanager
def _recorded_variables() -> Generator[set[str]]:
    """Yield a set that collects the names of the environment variables read by ``${oc.env:NAME}`` in the block."""
    names: set[str] = set()

    def env(key: str, *default: Any) -> Any:
        names.update({key} & os.environ.keys())
        return oc.env(key, *default)

    OmegaConf.register_new_resolver("oc.env", env, replace=True)
    try:
        yield names
    finally:
        OmegaConf.register_new_resolver("oc.env", oc.env, replace=True)
