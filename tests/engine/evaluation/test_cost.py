"""The measured cost of networks agrees with the paper and with arithmetic."""

import os

import pytest
import torch
from conftest import PATIENCE, forkserver

from ccnet.engine.evaluation.cost import network_cost
from ccnet.models import create_model


@pytest.fixture(scope="module")
def baseline():
    return network_cost(create_model("fcn", num_classes=19, backbone="resnet18"), (3, 769, 769))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "recurrence", "gflops"),
    [("ccnet", 1, 8.3), ("ccnet", 2, 16.5), ("ccnet", 3, 24.8), ("nonlocal", 1, 108.2), ("nonlocal", 2, 216.3)],
)
def test_attention_adds_the_cost_reported_in_the_paper(name, recurrence, gflops, baseline):
    """8.3, 16.5, 24.7, 108 and 216 GFLOPs; R = 2 needs less than the paper's 127 MB."""
    network = create_model(name, num_classes=19, backbone="resnet18", head__recurrence=recurrence)
    cost = network_cost(network, (3, 769, 769))
    assert cost.gflops - baseline.gflops == pytest.approx(gflops, abs=0.05)
    assert cost.saved_mb - baseline.saved_mb < 65 * recurrence


def test_the_cost_does_not_depend_on_the_device():
    network = create_model("ccnet", num_classes=3, backbone="resnet18", head__channels=16)
    assert network_cost(network.to("meta"), (3, 33, 33)) == network_cost(network.to_empty(device="cpu"), (3, 33, 33))


def kernel_after_counting(file):
    """Write the type of the kernel that a program without TRITON_INTERPRET imports after it has counted a cost."""
    os.environ.pop("TRITON_INTERPRET", None)
    network_cost(create_model("ccnet", num_classes=2, backbone="beacons", head__channels=16), (3, 33, 33))
    from ccnet.kernels.forward import line_forward_kernel

    file.write_text(type(line_forward_kernel).__name__)


def test_counting_leaves_the_kernels_to_the_gpu(tmp_path):
    """A kernel that is first imported in Triton's interpreter would stay interpreted, and no GPU could run it."""
    pytest.importorskip("triton")
    process = forkserver().Process(target=kernel_after_counting, args=(tmp_path / "kernel",))
    process.start()
    process.join(PATIENCE)
    assert (tmp_path / "kernel").read_text() == "JITFunction"


def test_counts_equal_those_of_the_layers():
    class Network(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.convolution = torch.nn.Conv2d(3, 5, 3, padding=1).eval()  # as if frozen

        def forward(self, image):
            return {"out": self.convolution(image).square()}

    network = Network()
    cost = network_cost(network, (3, 7, 9))
    assert cost.parameters == (3 * 9 + 1) * 5 / 1e6
    assert cost.gflops == pytest.approx(2 * 3 * 9 * 5 * 7 * 9 / 1e9)
    # The output of the convolution, which the square saves, and the output of the square, which the caller holds.
    assert cost.saved_mb == pytest.approx(2 * 5 * 7 * 9 * 4 / 1e6)
    assert network.training and not network.convolution.training
    assert network.convolution.weight.device.type == "cpu"
    assert not isinstance(network.convolution.weight, torch._subclasses.FakeTensor)
