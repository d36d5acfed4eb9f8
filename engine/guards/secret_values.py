"""Keep secrets in environment variables out of a run's files, which may be copied, shared and uploaded."""

import os
import re
from collections.abc import Iterator, Mapping
from typing import Any

_NAMED = re.compile(r"(^|_)(API_?KEY|ACCESS_?KEY|KEY|TOKEN|SECRET|PASS(WORD|WD)?|PWD|CREDENTIALS?)(_|$)", re.IGNORECASE)
_SHORTEST = 8  # characters; shorter values, such as "1" or "true", occur in configurations by chance
_IN_ADDRESS = re.compile(r"://[^/\s@]*:[^/\s@]+@")


def refuse_secrets(written: Mapping[str, Any]) -> None:
    """Raise ValueError if a run's checkpoints, tables or W&B logs would contain a secret.

    Masking the value is not an option: it would change the configuration, and the run could not be resumed.

    Args:
        written: the plain, resolved configuration and anything else that the run writes, as {name in the error
            message: value}.
    """
    # Paths, such as those in PWD and GOOGLE_APPLICATION_CREDENTIALS, are not secrets.
    secrets = {
        value: name
        for name, value in os.environ.items()
        if _NAMED.search(name) and len(value) >= _SHORTEST and not os.path.isabs(value)
    }
    for place, text in _texts(written):
        name = next((name for value, name in secrets.items() if value in text), None)
        if name:
            raise ValueError(
                f"{place} contains the value of the environment variable {name}, and a run writes its configuration to "
                "its checkpoints and logs: remove it, and let the code that needs it read the environment"
            )
        if _IN_ADDRESS.search(text):
            raise ValueError(
                f"{place} contains a URL with a password, and a run writes its configuration to its checkpoints and "
                "logs: remove it"
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
