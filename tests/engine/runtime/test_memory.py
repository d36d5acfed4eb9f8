"""The peak memory of a process is its own, in MiB, on Linux and elsewhere."""

import math
import resource
import sys
from types import SimpleNamespace

import pytest

from ccnet.engine.runtime import memory


def test_the_peak_of_a_parent_process_does_not_count(tmp_path, monkeypatch):
    (tmp_path / "status").write_text("Name:\tpython\nVmPeak:\t 999999 kB\nVmHWM:\t   14336 kB\nVmRSS:\t 1024 kB\n")
    monkeypatch.setattr(memory, "_STATUS", tmp_path / "status")
    monkeypatch.setattr(resource, "getrusage", lambda _: SimpleNamespace(ru_maxrss=600 * 2**10))  # that of the parent
    assert memory.process_peak_mib() == 14


@pytest.mark.parametrize(("platform", "peak"), [("darwin", 600 * 2**20), ("freebsd", 600 * 2**10)])
def test_the_peak_is_in_mib_on_systems_without_proc(tmp_path, monkeypatch, platform, peak):
    monkeypatch.setattr(memory, "_STATUS", tmp_path / "none")
    monkeypatch.setattr(sys, "platform", platform)
    monkeypatch.setattr(resource, "getrusage", lambda _: SimpleNamespace(ru_maxrss=peak))
    assert memory.process_peak_mib() == 600


def test_the_peak_is_unknown_on_windows(tmp_path, monkeypatch):
    monkeypatch.setattr(memory, "_STATUS", tmp_path / "none")
    monkeypatch.setitem(sys.modules, "resource", None)
    assert math.isnan(memory.process_peak_mib())
