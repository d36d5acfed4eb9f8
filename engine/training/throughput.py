"""How fast a run goes."""

import time


class Pace:
    """Measures from one line of the log to the next."""

    def __init__(self):
        self.restart()

    def restart(self) -> None:
        """Begin anew, after something that is not training."""
        self._start, self._waited, self._images, self._iterations = time.perf_counter(), 0.0, 0, 0

    def add(self, images: int, waited: float) -> None:
        """Count an iteration: its images in all processes, and the seconds spent waiting for them."""
        self._images += images
        self._waited += waited
        self._iterations += 1

    def read(self) -> dict[str, float]:
        """Images per second, seconds of an iteration, share of the time spent waiting for data; begins anew.

        Call it when the device has done what was counted, as after reading a loss.
        """
        seconds = time.perf_counter() - self._start
        measured = {
            "images_per_s": self._images / seconds,
            "step_s": seconds / self._iterations,
            "data_wait": self._waited / seconds,
        }
        self.restart()
        return measured
