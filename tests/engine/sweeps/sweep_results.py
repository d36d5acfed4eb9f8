"""Configurations of sweeps, and the tables and figures that they write."""

import numpy as np
from conftest import configured
from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.override_parser.overrides_parser import OverridesParser
from PIL import Image


def jobs(name):
    """Return the overrides of each run of a sweep in ``conf/sweep``."""
    params = configured(f"+sweep={name}", return_hydra_config=True).hydra.sweeper.params
    parsed = OverridesParser.create().parse_overrides([f"{key}={value}" for key, value in params.items()])
    return BasicSweeper.split_arguments(parsed, None)[0]


def is_picture(path):
    return np.array(Image.open(path)).std() > 10
