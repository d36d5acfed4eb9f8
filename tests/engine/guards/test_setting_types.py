"""A setting of the wrong type or out of bounds produces a single message."""

import math
import re

import pytest
from conftest import TINY

from ccnet.engine.guards.setting_types import check_settings
from ccnet.train import run


def nested(name, value):
    """Return the configuration in which an option has a value."""
    for key in reversed(name.split(".")):
        value = {key: value}
    return value


@pytest.mark.parametrize(
    ("names", "accepted", "refused"),
    [
        ("log_every accumulate recipe.max_iters recipe.batch_size recipe.val_every", [1, 10**6], [0, None, True, 1.5]),
        ("save_every recipe.epochs recipe.patience recipe.base_batch_size", [1, None], [0, True, "a"]),
        ("num_workers", [0, 1024], [-1, 1025, None]),
        ("skip_nonfinite skip_broken", [0, 9], [-1, None]),
        ("frozen_stages", [0, 4], [-1, 5, None]),
        ("seed", [0, -1, 2**63 - 1], [2**63, None]),
        ("dataset.frames published.recurrence", [1, 64], [0, None]),
        ("recipe.lr recipe.weight_decay", [0, 0.5, 10**6], [-1e-9, math.inf, math.nan, None, True, "1"]),
        ("ema", [0.5, 0.999, 1e-6, None], [0, 1]),
        ("clip_norm", [1, 1e-12, None], [0, -1]),
        ("bf16 compile channels_last norm_eval grad_checkpointing", [True, False], [0, 1, None, "true"]),
        ("published.align_corners", [True, False, None], ["maybe", 1]),
        ("optimizer.lr_factors", [None, {}, {"backbone": 0.1}], [{"backbone": 0}, {"backbone": None}, 0.1, []]),
        ("recipe.monitor", [None, "mIoU"], [1, True, ["mIoU"]]),
    ],
)
def test_the_bounds_of_an_option_are_accepted_and_nothing_beyond(names, accepted, refused):
    for name in names.split():
        for value in accepted:
            check_settings(nested(name, value))
        for value in refused:
            with pytest.raises(ValueError, match=f"^{name} is "):
                check_settings(nested(name, value))


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ("recipe.batch_size=two", "recipe.batch_size is 'two', but must be a whole number"),
        ("recipe.lr=nan", "recipe.lr is nan, but must be a number from 0"),
        ("seed=99999999999999999999", "seed is 99999999999999999999, but must be a whole number"),
        ("save_every=0", "save_every is 0, but must be a whole number from 1 to 2147483647 or null"),
        ("bf16=maybe", "bf16 is 'maybe', but must be true or false"),
        (
            "dataset.size=1000000",
            "crop_size=[1000000, 1000000] has 1000000x1000000 pixels, 1000000000000 in all, more than the limit",
        ),
        ("dataset.size=-5", "crop_size=[-5, -5] has -5x-5 pixels: both sides must be at least 1"),
        ("dataset.train.length=0", "length is 0"),
        ("recipe.train_transform.crop_size=[64]", "crop_size is [64]: set it to [height, width]"),
        (
            "recipe.train_transform.crop_size=64",
            "recipe.train_transform.crop_size is 64, but must be a list in which each item is a",
        ),
        ("optimizer.schedule=null", "optimizer.schedule is null, but must be a mapping with a _target_"),
        ("optimizer.algorithm=null", "optimizer.algorithm is null, but must be a mapping with a _target_"),
        ("+recipe.train_transform.flip=null", "recipe.train_transform.flip is null, but must be a number"),
        ("+recipe.train_transform.flip=1.5", "flip is 1.5: set it to a probability from 0 to 1"),
        ("recipe.train_transform.crop_size=null", "recipe.train_transform.crop_size is null, but must be a list"),
        ("model.head.context=null", "recurrence is 2, but context is null: set the module to apply"),
        ("model.head.recurrence=1.5", "model.head.recurrence is 1.5, but must be a whole number"),
        ("model.head.recurrence=1000000000", "recurrence is 1000000000: set the number of loops"),
        ("model.head.dropout=a", "model.head.dropout is 'a', but must be a number"),
        (
            "loss.weights.aux=[1]",
            "loss.weights is {'main': 1.0, 'aux': [1]}, but must be a mapping in which each value is a number",
        ),
        ("+loss.foo=1", "loss.foo is 1, but ccnet.losses.WeightedSum takes terms, weights, ramp: leave loss.foo out"),
        ("+protocol.x=1", "protocol.x is 1, but ccnet.engine.evaluation.protocols.Whole takes no arguments: leave"),
    ],
)
def test_an_invalid_value_produces_a_single_message(tmp_path, option, message):
    name = option.split("=")[0]
    with pytest.raises(ValueError, match=f"^{re.escape(message)}"):
        run(*(part for part in TINY if part.split("=")[0] != name), option, folder=tmp_path / "run")
    assert not list(tmp_path.rglob("*.pt"))
