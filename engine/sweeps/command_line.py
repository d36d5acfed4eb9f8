"""Prepare the command line for Hydra, and report Ctrl-C during its start in one line."""

import functools
import os
import sys
from collections.abc import Callable
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException

from ..runtime.overrides import check_overrides

INTERRUPTED = 130  # exit code of shells for programs that Ctrl-C ends
_COMPOSED = ("[", "{", "'", '"')  # the first characters of lists, mappings and quoted strings


def command_line(main: Callable[[], Any]) -> Callable[[], Any]:
    """Decorate the function that ``hydra.main`` returns.

    Values that are no valid expression of Hydra's grammar, such as ``input=straße.jpg`` or ``input=IMG(1).jpg``, are
    passed on as quoted strings. An option without a value ends the program with a message.
    """

    @functools.wraps(main)
    def started(*given: Any) -> Any:
        given_arguments = sys.argv
        try:
            check_overrides(given_arguments[1:])
        except ValueError as error:
            print(f"error: {error}", file=sys.stderr)
            raise SystemExit(1) from None
        sys.argv = [given_arguments[0], *map(quoted, given_arguments[1:])]
        try:
            return main(*given)
        except KeyboardInterrupt:
            raise interrupted() from None
        finally:
            sys.argv = given_arguments

    return started


def interrupted(process: str = "") -> BaseException:
    """Print that the program was interrupted, after the prefix ``process``, and return the exception that ends it.

    ``HYDRA_FULL_ERROR=1`` shows the traceback instead.
    """
    if os.environ.get("HYDRA_FULL_ERROR") == "1":
        return KeyboardInterrupt()
    print(f"{process}interrupted", file=sys.stderr)
    return SystemExit(INTERRUPTED)


def quoted(argument: str) -> str:
    """Return ``key=value`` as ``key='value'`` if Hydra can only parse the latter, else the argument as it is."""
    key, equals, value = argument.partition("=")
    if not equals or argument.startswith("-") or value.startswith(_COMPOSED) or "${" in value or _parses(argument):
        return argument
    escaped = value.replace("'", "\\'")
    return f"{key}='{escaped}'" if _parses(f"{key}='{escaped}'") else argument


def _parses(override: str) -> bool:
    try:
        OverridesParser.create().parse_override(override)
    except HydraException:
        return False
    return True
