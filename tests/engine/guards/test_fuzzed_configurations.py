"""Mutated options and configurations result in a run or a clean error; see tests/fuzzing.py."""

import shutil
import sys

import pytest
from conftest import composed
from fuzzing import clean, examples, mutated
from hydra.utils import instantiate
from hypothesis import given
from hypothesis import strategies as st
from omegaconf import OmegaConf

from ccnet import train as training
from ccnet.data.build import build_dataset
from ccnet.engine.guards import plain
from ccnet.engine.guards.setting_types import check_settings
from ccnet.models.factory import build

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def scratch(tmp_path_factory):
    return tmp_path_factory.mktemp("scratch")


_OVERRIDES = {
    name: value
    for name, value in (
        ("recipe.max_iters", "1"), ("recipe.val_every", "1"), ("recipe.batch_size", "2"), ("recipe.lr", "0.001"),
        ("recipe.weight_decay", "0.0001"), ("dataset.size", "65"), ("dataset.train.length", "2"),
        ("dataset.val.length", "1"), ("log_every", "1"), ("num_workers", "0"), ("seed", "0"), ("bf16", "false"),
        ("channels_last", "true"), ("save_every", "null"), ("accumulate", "1"), ("clip_norm", "null"),
        ("skip_nonfinite", "0"), ("skip_broken", "0"), ("device", "cpu"), ("model.head.recurrence", "2"),
        ("model.head.dropout", "0.1"), ("model.head.context.gamma", "fixed"), ("model.align_corners", "true"),
        ("loss.weights.aux", "0.4"), ("optimizer.algorithm.lr", "0.001"), ("optimizer.schedule.max_lr", "0.001"),
        ("recipe.train_transform.crop_size", "[65,65]"), ("framework", "torch"),
        ("recipe.head.channels", "8"), ("backbone.output_stride", "8"), ("backbone.out_indices", "[1,2]"),
        ("model.aux_head.channels", "8"), ("backbone.name", "resnet10t"),
        ("resume", "null"), ("init", "null"), ("loss.terms.main.class_weights", "null"),
    )
}  # fmt: skip


# Excludes values that ask for hours or for too much memory: users may legitimately request those.
_VALUES = st.one_of(
    st.sampled_from(
        ["-1", "0", "1", "3", "0.5", "-0.5", "nan", "inf", "-inf", "1e400", "true", "null", "a", "''", "[]", "[1]",
         "{}", "[[1]]",
         "[[1]]", "{a:1}", "[1,a]", "[-1,-1]", "[a,b]", "[null,null]", "${seed}", "${no.such}", "${oc.env:NO_SUCH}",
         "???", "[0,0]", "[1000000000,1000000000]", "99999999999999999999", "-99999999999999999999", "1_0", "0x10"]
    ),
    st.text("01.-e[]{},:'$a\\\"= ", max_size=6),
)  # fmt: skip


@examples(4)
@given(changed=st.dictionaries(st.sampled_from(sorted(_OVERRIDES)), _VALUES,
                               min_size=1, max_size=2))  # fmt: skip
def test_fuzzed_command_line(scratch, changed):
    """Options result in a run of one iteration or in a single message."""
    options = [f"{name}={value}" for name, value in (_OVERRIDES | changed).items() if name in changed or name[0] != "o"]
    folder = scratch / "train"

    def work():
        sys.argv[1:] = []
        return training.train(composed("dataset.val.length=1", "logger=none", *options), folder)

    arguments = list(sys.argv)
    try:
        score = clean(work)
    finally:
        sys.argv[:] = arguments
        shutil.rmtree(folder, ignore_errors=True)
    assert score is None or -1 <= score <= 1 or score != score


@pytest.mark.slow
@examples(20)
@given(data=st.data())
def test_fuzzed_configuration(data):
    """Build every component, as training does before its first step."""
    node = OmegaConf.to_container(composed("backbone.name=resnet10t"), resolve=False)
    parts = ("model", "dataset", "recipe", "loss", "optimizer", "protocol", "num_classes", "accumulate", "clip_norm")
    changed = data.draw(mutated({part: node[part] for part in parts}))

    def work():
        config = OmegaConf.create(node | changed)
        check_settings(plain(config))
        for split in ("train", "val"):
            build_dataset(config.dataset, split, instantiate(config.recipe.train_transform))[0]
        model = build(config.model, num_classes=4)
        instantiate(config.task).check(config, model)
        instantiate(config.protocol)
        instantiate(config.loss)
        optimizer = instantiate(config.optimizer.algorithm, model.parameters())
        instantiate(config.optimizer.schedule, optimizer)
        return True

    clean(work)


def test_the_unchanged_configuration_trains(scratch):
    """Otherwise every fuzzed example might be rejected for an unrelated reason."""
    options = [f"{name}={value}" for name, value in _OVERRIDES.items()]
    assert clean(training.train, composed(*options), scratch / "unchanged") is not None
