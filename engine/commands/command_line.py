"""Pass the command line to Hydra in a form that it accepts, and report Ctrl-C during its start in one line."""

import functools
import os
import sys
from collections.abc import Callable
from typing import Any

from .arguments import accepted, check_overrides
from .similar_options import similar_options

INTERRUPTED = 130  # exit code of shells for programs that Ctrl-C ends


def with_command_line(main: Callable[..., Any], config_name: str) -> Callable[..., Any]:
    """Return ``main``, a function that ``hydra.main`` has returned, called with the arguments of the command line.

    Arguments are passed on as :func:`~ccnet.engine.commands.arguments.accepted` returns them. An invalid one ends
    the program with a message; a mistyped option, with those that may have been meant.

    Args:
        main: the function.
        config_name: the file in ``conf/`` that the command starts from.
    """

    @functools.wraps(main)
    def started(*given: Any) -> Any:
        """Run ``main`` with the rewritten arguments; Ctrl-C and mistyped options end in a message."""
        given_arguments = sys.argv
        try:
            check_overrides(given_arguments[1:])
        except ValueError as error:
            print(f"error: {error}", file=sys.stderr)
            raise SystemExit(1) from None
        sys.argv = [given_arguments[0], *accepted(given_arguments[1:])]
        try:
            return main(*given)
        except KeyboardInterrupt:
            raise interrupted() from None
        except SystemExit as error:
            if error.code == 1 and (hint := similar_options(sys.argv[1:], config_name)):
                print(hint, file=sys.stderr)
            raise
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
