"""Tables match the expected text, Markdown and CSV; the tests of their callers cover charts and images."""

import errno

import pytest

from ccnet.engine.drawing import Table

TABLE = Table(("class", "IoU", "pictures"), [("road", 91.4567, 101), ("a|b", float("nan"), "none")])


def test_text_right_aligns_numbers_and_shows_two_decimals():
    assert TABLE.text().splitlines() == [
        "class    IoU  pictures",
        "-----  -----  --------",
        "road   91.46       101",
        "a|b      nan      none",
    ]


def test_wide_characters_take_two_columns():
    rows = [("道路", 1), ("Cafe\u0301", 22)]  # the accent takes none
    assert Table(("class", "n"), rows).text().splitlines() == ["class   n", "-----  --", "道路    1", "Cafe\u0301   22"]


def test_markdown_escapes_pipes():
    assert TABLE.markdown().splitlines() == [
        "| class | IoU | pictures |",
        "| --- | --: | --: |",
        "| road | 91.46 | 101 |",
        r"| a\|b | nan | none |",
    ]


def test_csv_keeps_full_precision(tmp_path):
    TABLE.write_csv(tmp_path / "table.csv")
    assert (tmp_path / "table.csv").read_text().splitlines() == [
        "class,IoU,pictures",
        "road,91.4567,101",
        "a|b,nan,none",
    ]


def test_records_are_appended_under_one_header_with_rounded_numbers(tmp_path):
    path = tmp_path / "new" / "rows.csv"
    for milliseconds in (12.3, 4.0):
        table = Table.of_records([{"network": "fcn", "step_ms": milliseconds, "peak_mib": 7}])
        table.append_csv(path)
    assert path.read_text().splitlines() == ["network,step_ms,peak_mib", "fcn,12.3,7", "fcn,4.0,7"]
    assert table.text().splitlines()[2] == "fcn          4.0         7"
    assert table.markdown().splitlines()[2] == "| fcn | 4.0 | 7 |"


def test_rows_with_other_columns_are_not_appended(tmp_path):
    path = tmp_path / "rows.csv"
    Table.of_records([{"network": "fcn", "step_ms": 12.3}]).append_csv(path)
    with pytest.raises(ValueError, match=r"rows.csv has the columns network, step_ms, not network, ratio, .*move the"):
        Table.of_records([{"network": "fcn", "ratio": 1.0}]).append_csv(path)
    assert path.read_text().splitlines() == ["network,step_ms", "fcn,12.3"]


def test_a_table_without_rows_is_only_a_header(tmp_path):
    empty = Table(("class", "IoU"), [])
    assert empty.text().splitlines() == ["class  IoU", "-----  ---"]
    assert empty.markdown().splitlines() == ["| class | IoU |", "| --- | --: |"]
    empty.write_csv(tmp_path / "table.csv")
    assert (tmp_path / "table.csv").read_text().splitlines() == ["class,IoU"]


def test_a_full_disk_leaves_the_csv_file_as_it_was(tmp_path, monkeypatch):
    def full(source, target):
        raise OSError(errno.ENOSPC, "No space left on device")

    path = tmp_path / "table.csv"
    path.write_text("before")
    monkeypatch.setattr("os.replace", full)
    with pytest.raises(OSError, match=r"No space left on device: .*table\.csv"):
        TABLE.write_csv(path)
    assert (path.read_text(), list(tmp_path.iterdir())) == ("before", [path])
