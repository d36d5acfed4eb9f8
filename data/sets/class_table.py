"""The class tables of the data sets, stored in JSON files next to this module."""

import json
from pathlib import Path
from typing import Any


def read_classes(name: str) -> list[dict[str, Any]]:
    """Return the entries of ``data/sets/<name>.json``, one per class: "name", "colour" and extra fields."""
    return json.loads((Path(__file__).parent / f"{name}.json").read_text(encoding="utf-8"))
