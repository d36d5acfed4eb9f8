"""A setting of the wrong type or out of bounds produces a single message."""

import pytest
from conftest import TINY


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ("recipe.batch_size=-1", "recipe.batch_size is -1, but must be a whole number from 1"),
        ("recipe.batch_size=two", "recipe.batch_size is 'two', but must be a whole number"),
        ("recipe.lr=nan", "recipe.lr is nan, but must be a number from 0"),
        ("recipe.lr=-1", "recipe.lr is -1, but must be a number from 0"),
        ("recipe.max_iters=0", "recipe.max_iters is 0, but must be a whole number from 1"),
        ("recipe.val_every=0", "recipe.val_every is 0, but must be a whole number from 1"),
        ("log_every=0", "log_every is 0, but must be a whole number from 1"),
        ("num_workers=-1", "num_workers is -1, but must be a whole number from 0"),
        ("seed=99999999999999999999", "seed is 99999999999999999999, but must be a whole number"),
        ("accumulate=0", "accumulate is 0, but must be a whole number from 1"),
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
def test_an_invalid_value_produces_a_single_message(run_entry, tmp_path, option, message):
    names = option.split("=")[0]
    done = run_entry("train.py", *(part for part in TINY if part.split("=")[0] != names), option, ok=False)
    assert f"error: {message}" in done.stderr
    assert "Traceback" not in done.stderr
    assert not list(tmp_path.rglob("*.pt"))
