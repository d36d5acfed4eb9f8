"""Results name the machine that they were measured on."""

import importlib

import pytest
import torch

provenance = importlib.import_module("ccnet.engine.runtime.provenance")  # the package has a function of this name


@pytest.mark.parametrize(
    ("processors", "threads", "name"),
    [
        ("processor\t: 0\nmodel name\t: AMD EPYC 7B13\nmodel name\t: AMD EPYC 7B13\n", 1, "AMD EPYC 7B13, 1 thread"),
        ("processor\t: 0\nBogoMIPS\t: 50.00\n", 2, "CPU, 2 threads"),  # 64-bit ARM
        (None, 2, "CPU, 2 threads"),  # not Linux
    ],
)
def test_a_cpu_is_named(tmp_path, monkeypatch, processors, threads, name):
    path = tmp_path / "cpuinfo"
    if processors is not None:
        path.write_text(processors, encoding="utf-8")
    monkeypatch.setattr(provenance, "_PROCESSORS", path)
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    assert provenance.machine_of(torch.device("cpu")) == name
