"""Mutate files and configurations, and check that every example ends in a result or in a clean error.

``make test`` always runs the same few hundred examples. To run ten thousand random ones with limited memory, and have
hypothesis shrink the failures (see results/fuzzing.md):

    ulimit -v 24000000; python -m pytest tests -k fuzzed --hypothesis-profile=thorough --hypothesis-seed=7

A clean error is one that an entry point turns into a message (``engine/commands/entry_point.py``). Anything else fails
the test: any other exception, a missed deadline, a new process, a file opened for writing outside the temporary
folder, or a network connection. A crash of the interpreter ends pytest itself.
"""

import copy
import os
import sys
import tempfile
import warnings
from pathlib import Path

import torch
from conftest import ROOT
from hydra.errors import HydraException
from hypothesis import settings
from hypothesis import strategies as st

from ccnet.engine.commands.entry_point import _USER_ERRORS

CLEAN = (*_USER_ERRORS, HydraException)


THOROUGH = 25  # times as many examples as ``make test`` runs


def examples(number):
    """Run ``number`` examples in ``make test``, and ``THOROUGH`` times as many with the thorough profile."""
    return settings(max_examples=number * (THOROUGH if settings.get_current_profile_name() == "thorough" else 1))


_watched: list[str] | None = None


_FORBIDDEN = ("os.system", "os.exec", "os.posix_spawn", "os.spawn", "subprocess.Popen")


# A run records the commit that it was computed with.
_RECORDS_COMMIT = ["git", "-C", str(ROOT), "describe", "--always", "--dirty"]


_TEMPORARY = tempfile.gettempdir()


def _watch(event, arguments):
    if _watched is None:
        return
    away = event == "socket.connect" and not isinstance(arguments[1], str | bytes)  # data workers connect to paths
    writes = event == "open" and isinstance(arguments[0], str) and isinstance(arguments[1], str)
    if (
        away
        or (event.startswith(_FORBIDDEN) and arguments[1:2] != (_RECORDS_COMMIT,))
        or (
            writes
            and set(arguments[1]) & set("wax+")
            and not os.path.abspath(arguments[0]).startswith((_TEMPORARY, "/dev/", "/proc/"))
            and not arguments[0].endswith((".pyc", ".py"))
            and "__pycache__" not in arguments[0]
        )
    ):
        _watched.append(f"{event} {arguments}")


sys.addaudithook(_watch)


def clean(work, *arguments):
    """Return the result of ``work``, or None after a clean error; fail on anything else."""
    global _watched
    _watched = []
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return work(*arguments)
    except CLEAN as error:
        assert str(error)
        return None
    finally:
        seen, _watched = _watched, None
        assert not seen, seen


@st.composite
def damage(draw, content: bytes):
    """Return ``content`` with flipped bits, or bytes overwritten, removed, cut, inserted, doubled or swapped."""
    content = bytearray(content)
    for _ in range(draw(st.integers(1, 4))):
        length = len(content)
        anywhere = st.integers(0, max(length - 1, 0))
        edge = st.integers(0, min(400, max(length - 1, 0)))
        start = draw(st.one_of(edge, anywhere))
        start = max(length - 1 - start, 0) if draw(st.booleans()) else start
        span = draw(st.one_of(st.integers(1, 16), st.integers(1, 4096)))
        match draw(st.sampled_from(["flip", "set", "cut", "end", "put", "double", "exchange"])):
            case "flip" if length:
                content[start] ^= 1 << draw(st.integers(0, 7))
            case "set":
                content[start : start + 4] = draw(st.binary(min_size=4, max_size=4))
            case "cut":
                del content[start : start + span]
            case "end":
                del content[start:]
            case "put":
                content[start:start] = draw(st.binary(max_size=32))
            case "double":
                content[start:start] = content[start : start + span]
            case "exchange":
                other = draw(anywhere)
                one, two = content[start : start + span], content[other : other + span]
                content[start : start + len(one)], content[other : other + len(two)] = two, one
    return bytes(content)


_NUMBERS = (0, 1, -1, 2, 3, 7, 64, 2**31, 2**63, 10**12, 10**30, -(10**12), 0.5, -0.5, 1.5, 1e-12, 1e308)


_NONFINITE = (float("nan"), float("inf"), -float("inf"))


_TEXTS = (
    "", "a", "0", "1.5", "true", "???", "../..", "${oc.env:HOME}", "${seed}", "x" * 5000, "\0", "\ud800", "$x^{",
    "os.system", "builtins.eval", "ccnet.models.factory.build",
    "ccnet.models.segmentor.Segmentor", "ccnet.data.sets.folder.Folder",
)  # fmt: skip


_CALLS = (
    {"_target_": "os.system", "command": "touch ran"},
    {"_target_": "ccnet.models.factory.create_model", "name": "fcn", "num_classes": 3},
    {"_target_": "ccnet.models.backbone.TimmBackbone", "name": "resnet10t"},
    {"_target_": "ccnet.engine.evaluation.protocols.Whole"},
)


PLAIN = st.one_of(
    st.sampled_from(_NUMBERS + _NONFINITE),
    st.sampled_from(_TEXTS),
    st.sampled_from([None, True, False, [], [[]], {}, [None], [1, 2], [64, 64], [10**9, 10**9], {"a": 1}, [{}]]),
    st.sampled_from(_CALLS),
    st.integers(),
    st.floats(),
    st.text(max_size=8),
)


PICKLED = st.one_of(
    PLAIN, st.sampled_from([(), (_CALLS[0],), b"x", {1: 2}, {(1, 2): 3}, 1j, torch.zeros(2), torch.zeros(0)])
)


def _places(tree, path=()):
    yield path
    if isinstance(tree, (dict, list)):
        for key in tree if isinstance(tree, dict) else range(len(tree)):
            yield from _places(tree[key], (*path, key))


@st.composite
def mutated(draw, tree, values=PLAIN):
    """Return nested dicts and lists with entries removed, replaced, nested, renamed or swapped."""
    tree = copy.deepcopy(tree)
    for _ in range(draw(st.integers(1, 3))):
        places = [path for path in _places(tree) if path]
        if not places:
            break
        *way, key = draw(st.sampled_from(places))
        node = tree
        for part in way:
            node = node[part]
        match draw(st.sampled_from(["leave out", "replace", "replace", "replace", "nest", "rename", "exchange"])):
            case "leave out":
                del node[key]
            case "replace":
                node[key] = copy.deepcopy(draw(values))
            case "nest":
                for _ in range(draw(st.sampled_from([1, 2, 50]))):
                    node[key] = draw(st.sampled_from([[node[key]], {"a": node[key]}]))
            case "rename" if isinstance(node, dict):
                node[draw(st.sampled_from(["a", "_target_", "_args_", "_partial_", "_recursive_", ""]))] = node.pop(key)
            case "exchange":
                other = draw(st.sampled_from(list(node) if isinstance(node, dict) else range(len(node))))
                node[key], node[other] = node[other], node[key]
    return tree


def place(folder: Path, name: str, content: bytes) -> Path:
    path = folder / name
    path.write_bytes(content)
    return path
