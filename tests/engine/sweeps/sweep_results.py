"""Configurations of sweeps, and the tables and figures that they write."""

import numpy as np
from conftest import ROOT
from hydra import compose, initialize_config_dir
from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.override_parser.overrides_parser import OverridesParser
from PIL import Image


def composed(*overrides, **options):
    with initialize_config_dir(config_dir=str(ROOT / "conf"), version_base="1.3"):
        return compose("config", overrides=list(overrides), **options)


def jobs(name):
    """Return the overrides of each run of a sweep in ``conf/sweep``."""
    params = composed(f"+sweep={name}", return_hydra_config=True).hydra.sweeper.params
    parsed = OverridesParser.create().parse_overrides([f"{key}={value}" for key, value in params.items()])
    return BasicSweeper.split_arguments(parsed, None)[0]


def is_picture(path):
    return np.array(Image.open(path)).std() > 10
