"""The benchmark's peers compute what they say, and its counts are the paper's."""

import csv
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from engine import benchmark_compare, benchmark_peers
from kernels import plan

ROOT = Path(__file__).resolve().parent.parent


@pytest.mark.parametrize("name", [name for name in benchmark_peers.PEERS if name != "compiled_einsum"])
def test_peer_is_the_operator(name):
    torch.manual_seed(0)
    inputs = benchmark_compare.make_inputs([2, 5, 7], 8, 16, torch.float32, torch.device("cpu"))
    assert benchmark_compare.largest_error(benchmark_peers.PEERS[name], inputs) < 5e-6


def test_a_wrong_peer_is_found():
    torch.manual_seed(0)
    inputs = benchmark_compare.make_inputs([1, 5, 7], 8, 16, torch.float32, torch.device("cpu"))
    twice = benchmark_peers.Peer(lambda *arrays: 2 * benchmark_peers.reference(*arrays))
    assert benchmark_compare.largest_error(twice, inputs) > 0.5


def test_least_cost_is_the_papers_arithmetic():
    """8x97x97 in bfloat16, D = 64, C = 512: 16.8 and 35.5 GFLOP, 2304 and 4608 bytes and 8 per pixel."""
    problem = plan.Problem(8, (97, 97), (0, 1), 64, 512, "bfloat16")
    forward, backward = (plan.least_cost(problem, direction) for direction in ("forward", "backward"))
    assert [round(cost.flops / 1e9, 1) for cost in (forward, backward)] == [16.8, 35.5]
    assert [cost.bytes // (8 * 97 * 97) for cost in (forward, backward)] == [2304 + 8, 4608 + 8]


def test_recomputed_projection_changes_nothing():
    from engine.benchmark_complexity import Block, einsum

    torch.manual_seed(0)
    results = []
    plain = Block(einsum, 12, 4, 2, False)
    again = Block(einsum, 12, 4, 2, True)
    again.load_state_dict(plain.state_dict())
    image = torch.randn(1, 12, 5, 6)
    for block in (plain, again):
        torch.nn.init.constant_(block.gamma, 0.5)
        leaf = image.clone().requires_grad_()
        out = block(leaf)
        results.append([out, *torch.autograd.grad(out.square().sum(), [leaf, *block.parameters()])])
    for ours, want in zip(*results, strict=True):
        assert torch.allclose(ours, want, rtol=1e-4, atol=1e-5)


def test_complexity_table(tmp_path):
    """GFLOPs are the paper's; two loops keep at most 64 MB in bfloat16 and, recomputed, 100 in float32."""
    done = subprocess.run(
        [sys.executable, ROOT / "benchmark.py", "mode=complexity", f"output={tmp_path}/table", "device=cpu"],
        cwd=tmp_path,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    with open(tmp_path / "table_complexity.csv") as file:
        rows = {(row["implementation"], row["R"], row["attention"]): row for row in csv.DictReader(file)}
    assert rows["einsum", "1", "non-local"]["gflops"] == "108.16"
    assert [rows["fused", r, "criss-cross"]["gflops"] for r in "123"] == ["8.29", "16.58", "24.88"]
    assert float(rows["fused", "2", "criss-cross"]["saved_mb_bfloat16"]) < 64
    assert float(rows["fused, projections recomputed", "2", "criss-cross"]["saved_mb_float32"]) < 100


def test_tuning_needs_a_gpu():
    done = subprocess.run(
        [sys.executable, ROOT / "benchmark.py", "mode=tune", "device=cpu"], capture_output=True, text=True
    )
    assert done.returncode != 0 and "on an NVIDIA GPU" in done.stderr
