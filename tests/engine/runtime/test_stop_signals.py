"""Stop requests: a second signal, and jobs that are requeued."""

import multiprocessing
import os
import signal
import time

import pytest
from conftest import PATIENCE

from ccnet.engine.runtime.stop_signals import EXIT_CODE, StopRequest


def test_a_second_signal_ends_the_process_immediately():
    def twice():
        with StopRequest() as request:
            os.kill(os.getpid(), signal.SIGTERM)
            os.kill(os.getpid(), signal.SIGINT)  # immediately: the same request, forwarded
            assert request.received == "SIGTERM"
            time.sleep(1.1)
            os.kill(os.getpid(), signal.SIGTERM)

    process = multiprocessing.get_context("fork").Process(target=twice)
    process.start()
    process.join(PATIENCE)
    assert process.exitcode == -signal.SIGTERM


def test_a_closed_terminal_is_a_request_to_stop_unless_it_is_ignored():
    """``nohup`` lets a program ignore it."""
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)
    try:
        with StopRequest() as request:
            os.kill(os.getpid(), signal.SIGHUP)
            assert request.received == "SIGHUP"
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
        with StopRequest() as request:
            os.kill(os.getpid(), signal.SIGHUP)
            assert request.received is None
    finally:
        signal.signal(signal.SIGHUP, before)


def test_a_hangup_that_the_program_handles_is_not_the_first_of_two_signals():
    def handled():
        hangups = []
        signal.signal(signal.SIGHUP, lambda *_: hangups.append("again"))
        with StopRequest() as request:
            os.kill(os.getpid(), signal.SIGHUP)
            time.sleep(1.1)
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(0.2)  # the watching thread would end the process now
            os._exit(0 if (hangups, request.received) == (["again"], "SIGTERM") else 1)

    process = multiprocessing.get_context("fork").Process(target=handled)
    process.start()
    process.join(PATIENCE)
    assert process.exitcode == 0


def test_a_job_is_saved_before_it_is_requeued():
    queued = []
    before = signal.signal(signal.SIGUSR2, lambda *_: queued.append("again"))
    try:
        with StopRequest() as request:
            for _ in range(2):
                os.kill(os.getpid(), signal.SIGUSR2)
            assert (request.received, queued) == ("SIGUSR2", [])
            with pytest.raises(SystemExit) as ended:
                request.stop()
        assert (ended.value.code, queued) == (EXIT_CODE, ["again"])
        signal.signal(signal.SIGUSR2, signal.SIG_DFL)
        with StopRequest():
            assert signal.getsignal(signal.SIGUSR2) == signal.SIG_DFL
    finally:
        signal.signal(signal.SIGUSR2, before)
