"""Processes that train together several times, as in a sweep under torchrun."""

import os
from datetime import timedelta

import pytest
import torch
from conftest import PATIENCE, forkserver
from torch.distributed import TCPStore

from ccnet.engine.runtime import distributed, from_all, processes, rank


def runs(own, port, results):
    """Join the other process for each of several runs."""
    os.environ |= {"RANK": str(own), "LOCAL_RANK": str(own), "WORLD_SIZE": "2"}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "TORCHELASTIC_USE_AGENT_STORE": "True"}
    found = []
    for _ in range(4):
        with processes(torch.device("cpu"), timeout=20):
            found.append(from_all(rank()))
    results.put(found)


@pytest.mark.slow
def test_processes_join_anew_for_every_run():
    store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)  # torchrun's, which outlives the runs
    context = forkserver()
    results = context.Queue()
    started = [context.Process(target=runs, args=(own, store.port, results), daemon=True) for own in range(2)]
    for process in started:
        process.start()
    assert [results.get(timeout=PATIENCE) for _ in started] == [[[0, 1]] * 4] * 2
    for process in started:
        process.join(PATIENCE)
    assert [process.exitcode for process in started] == [0, 0]


def test_a_process_keeps_its_store_whatever_the_timeout(monkeypatch):
    """Rank 0 could not open a second store, because the first one still occupies the port."""
    made = []
    monkeypatch.setattr(distributed, "rendezvous", lambda *_, **named: iter([(made.append(named), 0, 2)]))
    monkeypatch.setattr(distributed, "_STORES", {})
    for seconds in (600, 5):
        distributed._rendezvous(timedelta(seconds=seconds))
    assert made == [{"timeout": timedelta(seconds=600)}]
    monkeypatch.setenv("MASTER_PORT", "1234")
    distributed._rendezvous(timedelta(seconds=5))
    assert len(made) == 2
