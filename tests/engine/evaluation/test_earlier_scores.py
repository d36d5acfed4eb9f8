"""An evaluation does not silently replace the scores of another checkpoint or of other data."""

import json

import pytest

from ccnet.engine.evaluation import check_replaceable, subject, variant


@pytest.fixture
def places(tmp_path):
    for name in ("run/best", "run/last", "a/val", "b/val", "roads", "cells"):
        (tmp_path / name).mkdir(parents=True)
    return tmp_path


def scores_of(path, about):
    path.write_text(json.dumps(about | {"miou": 0.5}))
    return path


def test_the_scores_of_another_checkpoint_are_not_replaced(places):
    file = scores_of(
        places / "best_val_whole.json", subject(places / "run" / "best", {"root": str(places / "roads")}, {})
    )
    with pytest.raises(ValueError, match=r"holds the scores of checkpoint=.*best, which .*: set output=FOLDER"):
        check_replaceable(file, subject(places / "run" / "last", {"root": str(places / "roads")}, {}))


@pytest.mark.parametrize(
    ("was", "now", "named"),
    [
        ({"root": "roads"}, {"root": "cells"}, r"dataset\.root=.*roads"),
        ({"images": "roads", "masks": "cells"}, {"images": "cells", "masks": "cells"}, r"dataset\.images=.*roads"),
        ({"images": {"val": "a/val"}, "masks": "cells"}, {"images": {"val": "b/val"}}, r"dataset\.images\.val=.*a/val"),
    ],
)
def test_the_scores_of_other_data_are_not_replaced_unless_it_has_moved(places, monkeypatch, was, now, named):
    monkeypatch.chdir(places)
    file = scores_of(places / "scores.json", subject(places / "run" / "best", was, {}))
    check_replaceable(file, subject(places / "run" / "best", was, {}))
    with pytest.raises(ValueError, match=rf"holds the scores of .*{named}"):
        check_replaceable(file, subject(places / "run" / "best", now, {}))
    for name in ("roads", "cells", "a"):
        (places / name).rename(places / f"old_{name}")
    check_replaceable(file, subject(places / "run" / "best", now, {}))


def test_the_same_data_by_another_path_is_the_same(places):
    (places / "link").symlink_to(places / "roads")
    file = scores_of(places / "scores.json", subject(places / "run" / "best", {"root": str(places / "roads")}, {}))
    check_replaceable(file, subject(places / "run" / "best", {"root": str(places / "link")}, {}))


@pytest.mark.parametrize("content", ["", "[]", '{"miou": 0.5}', '{"checkpoint": "gone/best", "data": []}', None])
def test_files_without_a_record_are_replaced(places, content):
    file = places / "scores.json"
    if content is not None:
        file.write_text(content)
    check_replaceable(file, subject(places / "run" / "best", {"root": str(places / "roads")}, {}))


@pytest.mark.parametrize(
    ("given", "name"),
    [
        ({"protocol": "ms_flip", "dataset": "camvid", "device": "cpu"}, ""),
        ({"protocol.scales": [0.5, 1.0], "protocol.flip": False}, "flip-false_scales-0.5-1.0"),
        ({"protocol.protocol.crop_size": [64, 96], "bf16": True}, "bf16-true_protocol.crop_size-64-96"),
    ],
)
def test_evaluations_with_other_options_of_a_protocol_write_other_files(given, name):
    assert variant(given) == name


def test_long_lists_of_options_give_short_names_that_differ():
    found = [variant({"protocol.scales": [*range(100), last]}) for last in (1, 2)]
    assert found[0] != found[1] and max(map(len, found)) < 80


def test_scores_with_other_settings_are_not_replaced(places):
    def about(**settings):
        return subject(places / "run" / "best", {"images": str(places / "roads")}, settings)

    node = {"images": "a", "val_share": 0.2, "palette": [[0, 0, 0]], "_target_": "old.Folder"}
    file = scores_of(places / "s.json", about(dataset={"val": node}, protocol={"crop_size": [8, 8]}, bf16=False))
    moved = node | {"images": "b", "palette": None, "_target_": "new.Folder", "new": 1}
    check_replaceable(file, about(dataset={"val": moved}, protocol={"crop_size": (8, 8)}, bf16=False))
    for settings, named in (
        ({"dataset": {"val": node | {"val_share": 0.5}}}, r"dataset\.val\.val_share=0\.2"),
        ({"protocol": {"crop_size": [9, 8]}}, r"protocol\.crop_size=\[8, 8\]"),
        ({"bf16": True}, "bf16=False"),
    ):
        with pytest.raises(ValueError, match=rf"holds the scores of {named}, which this evaluation would replace"):
            check_replaceable(file, about(**settings))
