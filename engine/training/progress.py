"""Show the progress of a run: a bar in a terminal or notebook, and a line every few minutes in a log file."""

import time
from datetime import timedelta
from types import TracebackType

from tqdm import tqdm

from ..runtime.launchers import shows_bars

EVERY = 300.0  # seconds between two lines in a log file


class Progress:
    """The progress of a training run, shown while the ``with`` block lasts.

    Args:
        done: the number of completed iterations.
        last: the number of iterations of the whole run.
        shown: False to show nothing, as in all processes but the first.
    """

    def __init__(self, done: int, last: int, *, shown: bool):
        bar = shown and shows_bars()
        self._bar = tqdm(total=last, initial=done, dynamic_ncols=True, desc="train", disable=not bar)
        self._last, self._lines = last, shown and not bar
        self._written: float | None = None

    def advance(self) -> None:
        """Count an iteration."""
        self._bar.update()

    def show(self, iteration: int, metrics: dict[str, str], seconds_per_step: float) -> None:
        """Show the current metrics; in a log file, only if the latest line is old enough."""
        self._bar.set_postfix(metrics)
        now = time.monotonic()
        if self._lines and (self._written is None or now - self._written >= EVERY):
            self._written = now
            left = timedelta(seconds=round((self._last - iteration) * seconds_per_step))
            numbers = ", ".join(f"{name}={value}" for name, value in metrics.items())
            print(f"iteration {iteration} of {self._last}: {numbers}, {left} left", flush=True)

    def __enter__(self) -> "Progress":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.close()
