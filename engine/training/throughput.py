"""Measure images per second, seconds per step and the fraction of time spent waiting for data."""

import time

from ...data.loader import Loader


class Throughput:
    """Measures the throughput of a run between consecutive log lines.

    Args:
        loader: the loader, which counts the seconds spent waiting for batches.
    """

    def __init__(self, loader: Loader):
        self._loader = loader
        self.restart()

    def restart(self) -> None:
        """Restart the measurement, for example after a validation, which it should not include."""
        self._start, self._images, self._iterations = time.perf_counter(), 0, 0
        self._loader.waited = 0.0

    def add(self, images: int) -> None:
        """Count an iteration and the images that it processed on all ranks."""
        self._images += images
        self._iterations += 1

    def read(self) -> dict[str, float]:
        """Return "images_per_s", "step_s" and "data_wait" (a fraction of the time), and restart the measurement.

        Call it once the device has finished the counted steps, for example after reading a loss.
        """
        seconds = time.perf_counter() - self._start
        measured = {
            "images_per_s": self._images / seconds,
            "step_s": seconds / self._iterations,
            "data_wait": self._loader.waited / seconds,
        }
        self.restart()
        return measured
