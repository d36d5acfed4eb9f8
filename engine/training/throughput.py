"""Images per second, seconds per step and the share of the time that a run waits for data."""

import time

from ...data.loader import Loader


class Throughput:
    """Measures a run from one line of its log to the next.

    Args:
        loader: counts the seconds spent waiting for batches.
    """

    def __init__(self, loader: Loader):
        self._loader = loader
        self.restart()

    def restart(self) -> None:
        """Start measuring now: what ran before, such as a validation, does not count."""
        self._start, self._images, self._iterations = time.perf_counter(), 0, 0
        self._loader.waited = 0.0

    def add(self, images: int) -> None:
        """Count an iteration and the images that it takes in all processes together."""
        self._images += images
        self._iterations += 1

    def read(self) -> dict[str, float]:
        """Return "images_per_s", "step_s" and "data_wait", a share of the time, and restart.

        Call it when the device has done the steps that were counted, as after reading a loss.
        """
        seconds = time.perf_counter() - self._start
        measured = {
            "images_per_s": self._images / seconds,
            "step_s": seconds / self._iterations,
            "data_wait": self._loader.waited / seconds,
        }
        self.restart()
        return measured
