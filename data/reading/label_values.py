"""The mapping from values in label images, numbers or colours, to classes."""

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from ..dataset import IGNORE_INDEX
from .file_lists import expanded_path, read_lines

Value = int | tuple[int, ...]  # a number, or an RGB triple
_IGNORED = ("ignore", "ignored", "void")
_RANGE = re.compile(r"(\d+)\s*-\s*(\d+)")
# "0 road", "128,0,0 car" or "car,128,0,0", as in the class_dict.csv file of some data sets.
_LINE = re.compile(
    r"(?P<value>\d+(?:[\s,;]+\d+[\s,;]+\d+)?)[\s,;]+(?P<name>[^\d\s,;].*)"
    r"|(?P<name_first>[^\d\s,;].*?)[\s,;]+(?P<value_last>\d+(?:[\s,;]+\d+[\s,;]+\d+)?)"
)
_QUOTED = re.compile(r'"((?:[^"]|"")*)"')


class LabelValues(NamedTuple):
    """The classes of a data set and their values in label images.

    Attributes:
        classes: the names of the K classes.
        label_ids: maps each value to a class index or ``IGNORE_INDEX``.
    """

    classes: list[str]
    label_ids: dict[Value, int]


def label_values(
    values: Sequence[Any] | Mapping[Any, Any] | str | None,
    classes: Sequence[str] | int | None,
    ignore_label: int | None = None,
) -> LabelValues:
    """Return the classes of a data set and their values in its label images.

    Args:
        values: the values, in one of these forms. None: 0 to K - 1.
            A list: one number or RGB triple per class, in the order of ``classes``.
            "1-150": a range of numbers, one per class.
            A mapping from values (0, or "128 0 0") to class names, class indices or "ignore". Several values may be
            mapped to the same class.
            The path of a text file with two columns, value and class name, such as "128 0 0  car".
        classes: K names, or K itself. None uses the names in a mapping or file, in order of appearance.
        ignore_label: another number to ignore, besides 255. 255 is ignored unless it is the value of a class. Both only
            apply if the values are numbers.

    Raises:
        FileNotFoundError: ``values`` is a string but neither a range nor an existing file.
        ValueError: the values do not match the classes, or have none of these forms.
    """
    values = read_file(values)
    if isinstance(values, str) and (bounds := _RANGE.fullmatch(values)):
        values = [*range(int(bounds[1]), int(bounds[2]) + 1)]
    pairs = [(_value(key), _target(name)) for key, name in values.items()] if isinstance(values, Mapping) else None
    names = _class_names(classes, values, pairs)
    if not 2 <= len(names) <= 254:
        raise ValueError(f"dataset.classes has {len(names)} classes: pass 2 to 254, as names or as a number")
    if pairs is None:
        listed = [_value(value) for value in (range(len(names)) if values is None else values)]
        if len(listed) != len(names):
            raise ValueError(
                f"dataset.values lists {len(listed)} values for {len(names)} classes: list one per class, in the order "
                "of dataset.classes"
            )
        pairs = list(zip(listed, range(len(names)), strict=True))
    label_ids = {value: _index(target, names) for value, target in pairs}
    if len({isinstance(value, int) for value in label_ids}) > 1:
        raise ValueError("dataset.values mixes numbers and colours: use one of them")
    if len(label_ids) < len(pairs):
        raise ValueError(f"dataset.values lists a value twice: {', '.join(str(value) for value, _ in pairs)}")
    if isinstance(next(iter(label_ids)), int):
        label_ids.setdefault(IGNORE_INDEX, IGNORE_INDEX)
        if ignore_label is not None:
            label_ids[_ignore_value(ignore_label)] = IGNORE_INDEX
    if without := [name for index, name in enumerate(names) if index not in label_ids.values()]:
        ignoring = "" if ignore_label is None else f" besides dataset.ignore_label={ignore_label}"
        raise ValueError(
            f"dataset.values has no value for {', '.join(without)}{ignoring}: map at least one value to every class"
        )
    return LabelValues(names, label_ids)


def _class_names(classes: Sequence[str] | int | None, values: Any, pairs: Sequence[tuple] | None) -> list[str]:
    if isinstance(classes, int):
        return [f"class {index}" for index in range(classes)]
    if isinstance(classes, str):
        raise ValueError(
            f"dataset.classes={classes}: pass a list of names, [NAME,NAME,...], or their number; dataset.values reads "
            "names and their mask values from a file"
        )
    if classes is not None:
        names = [str(name) for name in classes]
        if twice := [name for name, number in Counter(names).items() if number > 1]:
            raise ValueError(f"dataset.classes lists {', '.join(twice)} twice: give every class a name of its own")
        return names
    named = [target for _, target in pairs or () if isinstance(target, str)]
    if pairs is None or len(named) + sum(target == IGNORE_INDEX for _, target in pairs) < len(pairs):
        raise ValueError(
            "dataset.classes is not set: pass dataset.classes=[NAME,NAME,...] or their number, or name them in "
            "dataset.values"
        )
    return list(dict.fromkeys(named))


def _value(setting: Any) -> Value:
    """Parse a value: a number, or an RGB triple such as [128, 0, 0], "128 0 0" or "[128,0,0]"."""
    given = re.findall(r"[^\s,;()\[\]]+", setting) if isinstance(setting, str) else setting
    parts = given if isinstance(given, Sequence) else [given]
    numbers = [int(part) for part in parts if type(part) is int or (isinstance(part, str) and part.isdecimal())]
    if len(numbers) == len(parts) == 1 and 0 <= numbers[0] < 2**16:
        return numbers[0]
    if len(numbers) == len(parts) == 3 and all(0 <= number < 256 for number in numbers):
        return tuple(numbers)
    raise ValueError(
        f"dataset.values contains {setting!r}: a value is a whole number from 0 to 65535, or a colour such as '128 0 0'"
    )


def _ignore_value(setting: Any) -> int:
    """Return ``dataset.ignore_label``; raise ValueError unless it is a number that label images can contain."""
    if type(setting) is int and 0 <= setting < 2**16:
        return setting
    raise ValueError(
        f"dataset.ignore_label={setting}: set it to a whole number from 0 to 65535; dataset.values={{NUMBER:ignore}} "
        "ignores several"
    )


def _target(setting: Any) -> str | int:
    """Parse what a value is mapped to: a class name, a class index, or ``IGNORE_INDEX``."""
    if setting is None or (isinstance(setting, str) and setting.lower() in _IGNORED):
        return IGNORE_INDEX
    return setting if type(setting) is int else str(setting)


def _index(target: str | int, names: Sequence[str]) -> int:
    if target == IGNORE_INDEX or (isinstance(target, int) and 0 <= target < len(names)):
        return int(target)
    if target not in names:
        raise ValueError(
            f"dataset.values names the class {target!r}, which is not in dataset.classes ({', '.join(names)}); pixels "
            "to leave out are mapped to 'ignore'"
        )
    return list(names).index(str(target))


def read_file(values: Any) -> Any:
    """Return ``values`` as in :func:`label_values`, with the path of a file replaced by the mapping in the file.

    Raises:
        FileNotFoundError: ``values`` is a string but neither a range nor an existing file.
        ValueError: a line does not consist of a value and a name, a value is listed twice, there are no such lines, or
            the file is not UTF-8.
    """
    if not isinstance(values, str) or _RANGE.fullmatch(values):
        return values
    return _read_columns(expanded_path(values))


def _read_columns(path: Path) -> dict[int | str, str]:
    """Read {value: class name} from a text file with two columns, skipping a heading without digits and comments.

    Colours are strings such as "128 0 0", as in YAML. Names may be quoted as in CSV files.
    """
    if not path.is_file():
        raise FileNotFoundError(
            f"dataset.values={path} is neither a range such as 1-150 nor a file: pass a list, a mapping, or a file "
            "with two columns, value and class name"
        )
    names: dict[int | str, str] = {}
    for number, line in enumerate(read_lines(path), 1):
        if not line.strip() or line.lstrip().startswith("#") or (number == 1 and not re.search(r"\d", line)):
            continue
        match = _LINE.fullmatch(line.strip())
        name = _class_name(match["name"] or match["name_first"]) if match else None
        if not match or name is None:
            raise ValueError(
                f"{path}, line {number}: expected a value and a class name, such as '128 0 0  car', and no other "
                f"columns: {line!r}; names that contain a comma or begin with a digit need quotes"
            )
        parsed = _value(match["value"] or match["value_last"])
        value = parsed if isinstance(parsed, int) else shown_value(parsed)
        if value in names:
            raise ValueError(f"{path}, line {number}: the value {value} is listed twice")
        names[value] = name
    if not names:
        raise ValueError(f"{path} has no lines with a value and a class name, such as '128 0 0  car'")
    return names


def _class_name(text: str) -> str | None:
    """Return the class name in a column, without CSV quotes; None if there are further columns."""
    if quoted := _QUOTED.fullmatch(text.strip()):
        return quoted[1].replace('""', '"')
    return None if re.search(r"[,;\t]", text) else text.strip()


def shown_value(value: Value) -> str:
    """Format a value as written in ``dataset.values``, such as "7" or "128 0 0"."""
    return str(value) if isinstance(value, int) else " ".join(map(str, value))


def shown_values(values: Iterable[Value], most: int = 5) -> str:
    """Format the smallest values as a list for messages; runs of numbers become ranges such as "0 to 10"."""
    ordered = sorted(values)  # all numbers or all colours
    runs: list[list[Value]] = []
    for value in ordered:
        if runs and isinstance(value, int) and runs[-1][-1] == value - 1:
            runs[-1].append(value)
        else:
            runs.append([value])
    ends = [[f"{run[0]} to {run[-1]}"] if len(run) > 2 else map(shown_value, run) for run in runs]
    texts = [text for texts in ends for text in texts]
    return ", ".join(texts[:most]) + (", ..." if len(texts) > most else "")
