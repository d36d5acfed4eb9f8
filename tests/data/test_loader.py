import multiprocessing.util
import signal
from multiprocessing import resource_tracker

import pytest

from ccnet.data.loader import Loader


class NotStarted(OSError):
    """Raised in place of starting a process."""


def test_no_spawned_worker_starts_with_a_signal_unblocked_that_ends_a_job(monkeypatch):
    tracker, start, masks = resource_tracker.ResourceTracker(), multiprocessing.util.spawnv_passfds, []

    def started(path, arguments, descriptors):
        if "resource_tracker" in arguments[-1]:
            return start(path, arguments, descriptors)
        masks.append(signal.pthread_sigmask(signal.SIG_BLOCK, []))
        raise NotStarted

    monkeypatch.setattr(multiprocessing.util, "spawnv_passfds", started)
    for name in ("ensure_running", "register", "unregister", "getfd"):  # those of a process that has no tracker yet
        monkeypatch.setattr(resource_tracker, name, getattr(tracker, name))
    monkeypatch.setattr("ccnet.data.loader._start_method", lambda num_workers: "spawn")
    with pytest.raises(NotStarted):
        iter(Loader([0, 1], num_workers=1))
    tracker._stop()
    assert [mask >= {signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR2} for mask in masks] == [True]
