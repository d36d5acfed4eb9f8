"""Keep the environment's secrets out of what a run writes: its files are copied, shared and uploaded."""

import os
import re
from collections.abc import Iterator, Mapping
from typing import Any

_NAMED = re.compile(r"(^|_)(API_?KEY|ACCESS_?KEY|KEY|TOKEN|SECRET|PASS(WORD|WD)?|PWD|CREDENTIALS?)(_|$)", re.IGNORECASE)
_SHORTEST = 8  # characters; shorter values, such as "1" or "true", are in configurations by chance
_IN_ADDRESS = re.compile(r"://[^/\s@]*:[^/\s@]+@")


def refuse_secrets(written: Mapping[str, Any]) -> None:
    """Raise ValueError if a run's checkpoints, tables or W&B would contain a secret.

    Masking the value would not do: it would change the configuration, and the run could not be resumed.

    Args:
        written: the configuration, plain and resolved, and anything else that the run writes; names for the message
            -> values.
    """
    # A path is not a secret: PWD holds one, GOOGLE_APPLICATION_CREDENTIALS another.
    secrets = {
        value: name
        for name, value in os.environ.items()
        if _NAMED.search(name) and len(value) >= _SHORTEST and not os.path.isabs(value)
    }
    for place, text in _texts(written):
        name = next((name for value, name in secrets.items() if value in text), None)
        if name:
            raise ValueError(
                f"{place} holds the value of the environment variable {name}, and a run writes its configuration into "
                "its checkpoints and logs: leave it out, and let what needs it read the environment"
            )
        if _IN_ADDRESS.search(text):
            raise ValueError(
                f"{place} holds a password in an address, and a run writes its configuration into its checkpoints and "
                "logs: leave it out"
            )


def _texts(node: Any, name: str = "") -> Iterator[tuple[str, str]]:
    """Yield (dotted name, string) for every string in a plain configuration."""
    if isinstance(node, Mapping):
        for key, value in node.items():
            yield from _texts(value, f"{name}.{key}" if name else str(key))
    elif isinstance(node, (list, tuple)):
        for value in node:
            yield from _texts(value, name)
    elif isinstance(node, str):
        yield name, node
