"""A message about an option that does not exist names those that the user may have meant."""

import pytest

from ccnet.engine.commands.similar_options import similar_options


@pytest.mark.parametrize(
    ("given", "meant"),
    [
        ("recipe.iterations=3", "recipe.max_iters"),
        ("recipe.max_iter=3", "recipe.max_iters"),
        ("crop_size=[65,65]", "recipe.train_transform.crop_size"),
        ("batch_size=4", "recipe.batch_size"),
        ("epochs=3", "recipe.epochs"),
        ("lr=0.1,0.2", "recipe.lr or optimizer.algorithm.lr"),
        ("modle=ccnet", "model or logger.mode"),
    ],
)
def test_the_option_that_was_meant_is_named(given, meant):
    option = given.partition("=")[0]
    assert f"There is no option {option}: did you mean {meant}?" in similar_options(["seed=1", given], "config")


def test_options_are_those_of_the_chosen_files_and_the_command():
    assert similar_options(["dataset=folder", "dataset.test_share=0.1"], "config") == ""
    assert "no option dataset.root." in similar_options(["dataset=folder", "dataset.root=DIR"], "config")
    assert "did you mean input?" in similar_options(["inputs=photo.jpg"], "predict")


@pytest.mark.parametrize("flag", ["--config-dir {}", "--config-dir={}", "-cd {}"])
def test_options_are_also_those_of_the_users_own_files(tmp_path, flag):
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "foo.yaml").write_text("defaults: [fcn, _self_]\nwidth: 3\n")
    given = [*flag.format(tmp_path).split(), "model=foo"]
    assert "did you mean model.width?" in similar_options([*given, "model.widht=4"], "config")
    assert "did you mean recipe.max_iters?" in similar_options([*given, "recipe.max_iter=3"], "config")
    assert similar_options([*given, "model.width=4"], "config") == ""


def test_an_argument_that_conf_leaves_at_its_default_takes_a_plus():
    hint = similar_options(["recipe.train_transform.flip=0"], "config")
    assert hint.endswith("conf/ leaves at its default: +recipe.train_transform.flip=VALUE sets it.")
    assert "There is no option recipe.train_transform.flap" in similar_options(
        ["recipe.train_transform.flap=0"], "config"
    )


def test_options_of_a_sweep_are_those_of_all_its_choices():
    swept = ["model=mask_rcnn,ccnet", "-m"]
    valid = ["model.frozen=true", "model.head.dropout=0"]
    assert similar_options([*swept, *valid], "config") == ""
    assert "did you mean model.frozen?" in similar_options([*swept, "model.frosen=true"], "config")


def test_nothing_is_said_about_options_that_exist_or_are_added():
    valid = ["model=ccnet,fcn", "+sweep=contexts", "+x.y=1", "++x.y=1", "hydra.run.dir=a", "backbone.name=x", "-m"]
    assert similar_options(valid, "config") == ""
    assert similar_options(["checkpoint=RUN"], "evaluate") == ""  # an option without a default
    assert similar_options(["model=typo", "lr=1"], "config") == ""  # Hydra's own message lists the models
