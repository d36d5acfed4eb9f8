"""Launchers: runs in separate processes, and the GPUs assigned to them."""

import os
import signal
import socket
import sys
from functools import partial
from types import SimpleNamespace

import pytest
import torch

from ccnet.engine.runtime.devices import choose_device
from ccnet.engine.runtime.distributed import processes
from ccnet.engine.runtime.launchers import in_own_process, is_first
from ccnet.engine.runtime.stop_signals import EXIT_CODE


@pytest.mark.parametrize(
    ("end", "message"),
    [
        (partial(sys.exit, EXIT_CODE), "stopped and saved"),
        (partial(os._exit, 3), "exited with code 3"),
        (lambda: os.kill(os.getpid(), signal.SIGKILL), "killed by SIGKILL"),
    ],
)
def test_in_own_process_returns_the_result_or_reports_how_the_process_ended(end, message):
    assert in_own_process(lambda: {"mIoU": 1.0}) == {"mIoU": 1.0}
    with pytest.raises(ChildProcessError, match=f"{message}.*resume=auto"):
        in_own_process(end)


def test_parallel_runs_share_the_gpus(monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    assert choose_device("auto") == torch.device("cuda")
    chosen = []
    for number in (3, 4, 5):
        process = SimpleNamespace(name=f"LokyProcess-{number}")
        monkeypatch.setattr(
            "ccnet.engine.runtime.launchers.multiprocessing.current_process", lambda process=process: process
        )
        chosen.append(choose_device("auto"))
    assert chosen == [torch.device("cuda", 0), torch.device("cuda", 1), torch.device("cuda", 0)]
    assert choose_device("cuda:1") == torch.device("cuda", 1)
    with pytest.raises(ValueError, match="device=cuda:2, but torch finds 2 GPUs, numbered from 0"):
        choose_device("cuda:2")


@pytest.mark.parametrize("name", ["meta", "no such device", "cuda"])
def test_a_device_that_the_machine_lacks_is_rejected(monkeypatch, name):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    with pytest.raises(ValueError, match=rf"device={name}|does not recognise device={name}"):
        choose_device(name)


@pytest.fixture
def environment(monkeypatch):
    """Return a function that sets the variables of a launcher, which are unset until then."""
    for name in ("WORLD_SIZE", "RANK", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.delenv(name, raising=False)
    return lambda **given: [monkeypatch.setenv(name, str(value)) for name, value in given.items()]


@pytest.mark.parametrize("given", [{"RANK": 3}, {"WORLD_SIZE": "", "RANK": ""}, {"WORLD_SIZE": 1, "MASTER_PORT": "x"}])
def test_leftover_variables_of_a_launcher_do_not_affect_a_single_process(environment, given):
    environment(**given)
    assert is_first()
    with processes(torch.device("cpu")):
        assert not torch.distributed.is_initialized()


@pytest.mark.parametrize(
    ("device", "given", "wrong"),
    [
        ("cpu", {}, "RANK='', MASTER_PORT='', MASTER_ADDR=''"),
        ("cpu", {"RANK": 0, "MASTER_ADDR": "localhost", "MASTER_PORT": "auto"}, "MASTER_PORT='auto'"),
        ("cuda", {"RANK": 0, "MASTER_ADDR": "localhost", "MASTER_PORT": 29500}, "LOCAL_RANK=''"),
    ],
)
def test_an_incomplete_environment_of_a_launcher_is_named(environment, device, given, wrong):
    environment(WORLD_SIZE=2, **given)
    with (
        pytest.raises(ValueError, match=f"WORLD_SIZE=2 .* but {wrong} does not .* torchrun"),
        processes(torch.device(device)),
    ):
        pass


def test_a_port_in_use_is_named(environment):
    with socket.create_server(("", 0)) as taken:
        port = taken.getsockname()[1]
        environment(WORLD_SIZE=2, RANK=0, MASTER_ADDR="localhost", MASTER_PORT=port)
        with (
            pytest.raises(ConnectionError, match=f"port {port} is in use.* MASTER_PORT"),
            processes(torch.device("cpu"), timeout=5),
        ):
            pass
