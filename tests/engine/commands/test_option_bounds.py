"""Every number, switch and list of numbers that a command reads has a type and bounds."""

from collections.abc import Iterator
from typing import Any

import pytest
from omegaconf import OmegaConf

from ccnet.conf import CONF
from ccnet.engine.commands.option_bounds import OPTION_BOUNDS
from ccnet.engine.guards.setting_types import BOUNDS, check_bounds

COMMANDS = ["app", "benchmark", "check_data", "config", "evaluate", "export", "predict", "publish"]
ELSEWHERE = {"fps"}  # its maximum depends on the format of the video; see drawing.check_video
MAPPINGS = ("hydra.", "machines.", "tune.ranges.")  # entries of any name


def _numbers(node: Any, name: str = "") -> Iterator[str]:
    """Yield the options whose defaults are numbers, true or false, or lists of numbers."""
    if isinstance(node, dict):
        for key, value in node.items():
            yield from _numbers(value, f"{name}.{key}" if name else key)
    elif isinstance(node, int | float) or (isinstance(node, list) and node and isinstance(node[0], int)):
        yield name


@pytest.mark.parametrize("command", COMMANDS)
def test_every_number_of_a_command_has_bounds(command):
    settings = OmegaConf.to_container(OmegaConf.load(CONF / f"{command}.yaml"), resolve=False)
    numbers = {name for name in _numbers(settings) if not name.startswith(MAPPINGS)}
    assert numbers - ELSEWHERE <= BOUNDS.keys() | OPTION_BOUNDS.keys()


@pytest.mark.parametrize("command", COMMANDS)
def test_the_defaults_of_a_command_are_within_the_bounds(command):
    check_bounds(OmegaConf.load(CONF / f"{command}.yaml"), BOUNDS | OPTION_BOUNDS)


@pytest.mark.parametrize(
    ("option", "value", "allowed"),
    [
        ("port", 65536, "a whole number from 0 to 65535"),
        ("port", None, None),
        ("shape", [8], "a list of 2 or 3 or 4 items, each a whole number from 1 to 2147483647 or null"),
        ("shape", [8, 97, 0], "a list of 2 or 3 or 4 items"),
        ("shape", [8, 97, 97.5], "a list of 2 or 3 or 4 items"),
        ("shape", None, None),
        ("shape", [8, 97], None),
        ("shape", [1, 3, 97, 97], None),
        ("compare_rows", 0, None),
        ("samples", -1, "a whole number from 0"),
        ("most_lost", -1, None),
        ("half", "yes", "true or false"),
        ("cache_mib", True, "a number from 0"),
        ("gpu", {"minutes": -1}, "a number from 0"),
    ],
)
def test_a_value_out_of_bounds_is_named(option, value, allowed):
    config = OmegaConf.create({option: value})
    if allowed is None:
        return check_bounds(config, OPTION_BOUNDS)
    with pytest.raises(ValueError, match=rf"^{option}.* is .*, but must be {allowed}"):
        check_bounds(config, OPTION_BOUNDS)
