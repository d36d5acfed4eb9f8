"""Render the configuration for ``--help``, with the comments from the YAML files."""

import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

_ADDED = ("experiment", "sweep")  # groups that are not in the defaults list of conf/config.yaml
_COLUMN = 30  # where the comments start
_KEY = re.compile(r"( *)([\w./]+):(?: |$)")
_COMMENT = re.compile(r"\s#\s+(.+)$")
_PACKAGE = re.compile(r"^# @package (\S+)", re.MULTILINE)


def config_groups(*, _root_: DictConfig) -> str:
    """Return the section on the configuration groups that the command accepts; empty if it accepts none.

    This is an OmegaConf resolver for Hydra's help template. Hydra's own list contains every group in ``conf/``.
    """
    chosen = {group.partition("/")[0] for group in _root_.hydra.runtime.choices}
    added = _ADDED if "model" in chosen else ()
    paths = [path.relative_to(folder) for folder in _folders(_root_) for path in folder.glob("*/**/*.yaml")]
    files: dict[str, list[str]] = {}
    for path in sorted({*paths}):
        if path.parts[0] in (*(chosen - {"hydra"}), *added):
            files.setdefault(path.parent.as_posix(), []).append(path.stem)
    if not files:
        return ""
    note = f"; {' and '.join(added)} with +" if added else ""
    listed = "\n".join(f"{group}: {', '.join(names)}" for group, names in files.items())
    how = f"Select a file with GROUP=NAME{note}; add --help to see what it sets"
    return f"== Configuration groups ==\n{how}\n\n{listed}\n\n\n"


def commented_config(*, _root_: DictConfig) -> str:
    """Return the configuration as YAML, with each option's comment from the selected config files.

    This is an OmegaConf resolver for Hydra's help template, in which dollar signs must be doubled.
    """
    chosen = {group: name for group, name in _root_.hydra.runtime.choices.items() if not group.startswith("hydra/")}
    comments: dict[str, str] = {}
    folders = _folders(_root_)
    for group, names in chosen.items():
        folder, _, package = group.partition("@")
        for name in [names] if isinstance(names, str) else names or []:
            comments |= _comments_in(folders, folder, name, package or folder.replace("/", "."))
    comments |= _comments_in(folders, "", _root_.hydra.job.config_name, "")
    shown = OmegaConf.masked_copy(_root_, [str(key) for key in _root_ if key != "hydra"])
    lines = [
        f"{line:<{_COLUMN}}  # {comments[option]}" if option in comments else line
        for option, line in _options(OmegaConf.to_yaml(shown))
    ]
    return "\n".join(lines).replace("$", "$$")


def _folders(root: DictConfig) -> list[Path]:
    """Return the folders of config files in the order of precedence: ``conf/``, and the user's own (--config-dir)."""
    return [Path(source.path) for source in root.hydra.runtime.config_sources if source.schema == "file"]


def _comments_in(folders: Sequence[Path], group: str, name: str, package: str) -> dict[str, str]:
    """Return {option: comment} for a config file, by default in `package`, and for the files in its defaults list."""
    path = next((path for folder in folders if (path := folder / group / f"{name}.yaml").is_file()), None)
    if path is None:
        return {}
    text = path.read_text(encoding="utf-8")
    if header := _PACKAGE.search(text):
        package = header[1].replace("_global_", "")
    comments: dict[str, str] = {}
    content: Any = OmegaConf.load(path)
    for included in content.get("defaults", []):
        if isinstance(included, str) and included != "_self_":
            file, _, inside = included.partition("@")
            comments |= _comments_in(folders, group, file, ".".join(filter(None, [package, inside])))
    for option, line in _options(text):
        if option and (comment := _COMMENT.search(line)):
            comments[f"{package}.{option}" if package else option] = comment[1]
    return comments


def _options(text: str) -> Iterator[tuple[str | None, str]]:
    """Yield (option, line) for each line of a YAML text; the option's dotted name is None if the line sets none."""
    parents: list[tuple[int, str]] = []
    for line in text.splitlines():
        option = None
        if match := _KEY.match(line):
            parents = [(indent, name) for indent, name in parents if indent < len(match[1])]
            parents.append((len(match[1]), match[2]))
            option = ".".join(name for _, name in parents)
        yield option, line
