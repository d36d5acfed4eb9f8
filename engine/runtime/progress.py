"""Show the progress of long work: a bar in a terminal or notebook, and a line every few minutes in a log file."""

import time
from collections.abc import Iterator, Mapping
from datetime import timedelta
from typing import Any

from tqdm import tqdm

from .launchers import is_first, shows_bars

EVERY = 300.0  # seconds between two lines in a log file


class Progress:
    """The progress of some work, shown by the first process while the ``with`` block lasts.

    Args:
        title: the title of the bar.
        step: what is counted, as named in a log file, such as "iteration" or "predicted image".
        total: the number of steps.
        done: the number of steps that were completed earlier, as in a resumed run.
        leave: keep the bar when the work is finished.
        first_line: write the first line at the first call of :meth:`show`, not only after a few minutes.
    """

    def __init__(
        self, title: str, step: str, total: int, *, done: int = 0, leave: bool = True, first_line: bool = False
    ):
        bar = shows_bars()
        self._bar = tqdm(total=total, initial=done, desc=title, dynamic_ncols=True, leave=leave, disable=not bar)
        self._step, self._total, self._lines = step, total, is_first() and not bar
        self._done = self._before = done
        self._started = time.monotonic()
        self._written = None if first_line else self._started

    def advance(self) -> None:
        """Count a step."""
        self._done += 1
        self._bar.update()

    def show(self, metrics: Mapping[str, str] | None = None, *, seconds_per_step: float | None = None) -> None:
        """Show the current metrics; in a log file, only if the latest line is old enough.

        Args:
            metrics: the metrics by name, if there are any.
            seconds_per_step: the current time per step; None for the mean since the start.
        """
        if metrics:
            self._bar.set_postfix(metrics)
        now = time.monotonic()
        if self._lines and (self._written is None or now - self._written >= EVERY):
            self._written = now
            pace = seconds_per_step or (now - self._started) / max(self._done - self._before, 1)
            left = timedelta(seconds=round((self._total - self._done) * pace))
            shown = [*(f"{name}={value}" for name, value in (metrics or {}).items()), f"{left} left"]
            print(f"{self._step} {self._done} of {self._total}: {', '.join(shown)}", flush=True)

    def __enter__(self) -> "Progress":
        return self

    def __exit__(self, *error: object) -> None:
        self._bar.close()


def tracked(items: Any, title: str, step: str, *, leave: bool = True) -> Iterator[Any]:
    """Yield the items of a collection or loader, and show the progress; see :class:`Progress` for the arguments."""
    with Progress(title, step, len(items), leave=leave) as progress:
        for item in items:
            yield item
            progress.advance()
            progress.show()
