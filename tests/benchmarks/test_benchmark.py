"""The benchmark's peers compute criss-cross attention, and its FLOP counts match the paper."""

import math
from contextlib import nullcontext

import pytest
import torch
from conftest import ROOT, forkserver
from omegaconf import OmegaConf

from ccnet.benchmarks import training_step as benchmark_train
from ccnet.benchmarks.comparison import compare_torch as benchmark_compare
from ccnet.benchmarks.comparison import peers as benchmark_peers
from ccnet.benchmarks.comparison import rows as benchmark_rows
from ccnet.benchmarks.comparison.compare import compare_operators
from ccnet.benchmarks.comparison.peers import Peer
from ccnet.benchmarks.comparison.rows import check_error, largest_error, result_row
from ccnet.benchmarks.timing import Timing
from ccnet.engine.drawing.tables import read_records
from ccnet.engine.evaluation.cost import Cost
from ccnet.kernels.launches import plan
from ccnet.kernels.launches.cost import least_cost


@pytest.fixture
def config():
    return OmegaConf.load(ROOT / "conf" / "benchmark.yaml")


@pytest.fixture
def small(config, tmp_path):
    """Return a configuration with few channels and repeats that writes files named "b" to the test's folder."""
    config.output, config.repeats, config.value_channels, config.query_channels = str(tmp_path / "b"), 5, 16, 8
    return config


@pytest.mark.parametrize("name", [name for name in benchmark_peers.PEERS if name != "compiled_einsum"])
def test_peer_equals_the_operator(name):
    torch.manual_seed(0)
    inputs = benchmark_compare.make_inputs([2, 5, 7], 8, 16, torch.float32, torch.device("cpu"))
    peer = benchmark_peers.PEERS[name]
    for of_gradients in (False, True)[: 1 + peer.has_gradient]:
        assert benchmark_compare.error_of(peer, inputs, of_gradients) < 5e-6


def test_a_wrong_peer_is_detected():
    torch.manual_seed(0)
    inputs = benchmark_compare.make_inputs([1, 5, 7], 8, 16, torch.float32, torch.device("cpu"))
    twice = benchmark_peers.Peer(lambda *arrays: 2 * benchmark_peers.reference(*arrays))
    assert benchmark_compare.error_of(twice, inputs, of_gradients=False) > 0.5
    assert benchmark_compare.error_of(twice, inputs, of_gradients=True) > 0.5


def test_a_gradient_of_nan_is_detected_beside_correct_ones():
    def broken(query, key, value):
        return benchmark_peers.reference(query, key + (key - key.detach()).abs().sqrt(), value)  # plus zero

    inputs = benchmark_compare.make_inputs([1, 5, 7], 8, 16, torch.float32, torch.device("cpu"))
    assert benchmark_compare.error_of(Peer(broken), inputs, of_gradients=False) < 5e-6
    assert math.isnan(benchmark_compare.error_of(Peer(broken), inputs, of_gradients=True))


def test_least_cost_matches_the_paper():
    """8x97x97 in bfloat16, D = 64, C = 512: 16.8 and 35.5 GFLOPs, 2304 + 8 and 4608 + 8 bytes per pixel."""
    problem = plan.Problem(8, (97, 97), (0, 1), 64, 512, "bfloat16")
    forward, backward = (least_cost(problem, direction) for direction in ("forward", "backward"))
    assert [round(cost.flops / 1e9, 1) for cost in (forward, backward)] == [16.8, 35.5]
    assert [cost.bytes // (8 * 97 * 97) for cost in (forward, backward)] == [2304 + 8, 4608 + 8]


def test_recomputed_projection_changes_nothing():
    from ccnet.benchmarks.complexity import Block, einsum

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


@pytest.mark.slow
def test_complexity_table(tmp_path, config):
    """GFLOPs match the paper; two loops keep at most 64 MB in bfloat16, or 100 MB in float32 with recomputation."""
    from ccnet.benchmarks.complexity import count_complexity

    config.output = str(tmp_path / "table")
    count_complexity(config, torch.device("cpu"))
    rows = {
        (row["implementation"], row["R"], row["attention"]): row
        for row in read_records(tmp_path / "table_complexity.csv")
    }
    assert rows["einsum", "1", "non-local"]["gflops"] == "108.16"
    assert [rows["fused", r, "criss-cross"]["gflops"] for r in "123"] == ["8.29", "16.58", "24.88"]
    assert float(rows["fused", "2", "criss-cross"]["saved_mb_bfloat16"]) < 64
    assert float(rows["fused, projections recomputed", "2", "criss-cross"]["saved_mb_float32"]) < 100


def test_an_unknown_implementation_or_framework_is_named_before_anything_is_timed(config):
    config.peers = ["reference", "einsun"]
    with pytest.raises(ValueError, match="peers contains einsun: choose some of triton, cpu, reference, einsum"):
        benchmark_compare.time_in_torch(config, torch.device("cpu"), "float32", [1, 5, 6])
    config.framework = "flax"
    with pytest.raises(ValueError, match="framework is 'flax': choose 'torch' or 'jax'"):
        compare_operators(config, torch.device("cpu"))


def test_a_mode_that_needs_triton_says_so_where_it_is_missing(run_entry, monkeypatch):
    class Benchmarks:
        def __getattr__(self, name):
            raise ModuleNotFoundError("No module named 'triton'", name="triton")

    monkeypatch.setattr("ccnet.benchmark.benchmarks", Benchmarks())
    done = run_entry("benchmark.py", "mode=complexity", ok=False)
    assert "error: mode=complexity needs triton" in done.stderr


def test_an_unknown_backbone_is_not_silently_left_out(tmp_path, config):
    pytest.importorskip("jax", reason="pip install 'ccnet-segmentation[jax]'")
    from ccnet.benchmarks.jax_backbones import compare_backbones

    config.output, config.backbones.names = str(tmp_path / "b"), ["resnet19"]
    with pytest.raises(ValueError, match=r"backbones\.names contains resnet19: timm has no such model"):
        compare_backbones(config, torch.device("cpu"))


def test_comparison_writes_rows_and_a_figure(tmp_path, small):
    small.peers = ["reference", "bmm"]
    benchmark_compare.time_in_torch(small, torch.device("cpu"), "float32", [1, 5, 6])
    rows = read_records(tmp_path / "b.csv")
    assert [(row["peer"], row["pass"]) for row in rows[:3]] == [
        ("reference", "forward"),
        ("reference", "backward"),
        ("reference", "both"),
    ]
    assert all(float(row["median_us"]) > 0 and row["commit"] and row["machine"] for row in rows)
    assert (tmp_path / "b_1x5x6_float32.png").stat().st_size > 0


def test_the_figure_compares_times_by_the_length_of_bars(tmp_path, monkeypatch):
    figures = []
    monkeypatch.setattr(benchmark_rows, "write_figure", lambda path, figure, **_: figures.append(figure))
    times = {("slow", "forward"): 134_400, ("fast", "forward"): 48_000, ("fast", "backward"): 90_040}
    rows = [
        {"peer": peer, "pass": direction, "shape": "1x5x6", "dtype": "float32", "median_us": float(time)}
        for (peer, direction), time in times.items()
    ]
    benchmark_rows.draw(rows, "a CPU", tmp_path / "b.png")
    (axes,) = figures[0].axes
    assert axes.get_xscale() == "linear" and axes.get_xlim()[0] == 0 and axes.get_xlabel() == "median time (ms)"
    assert [label.get_text() for label in axes.get_yticklabels()] == [
        "fast, forward",
        "slow, forward",
        "fast, backward",
    ]
    assert [bar.get_width() for bar in axes.patches] == [48.0, 134.4, 90.04]
    assert [text.get_text().strip() for text in axes.texts] == ["48.0 ms, 1.0x", "134 ms, 2.8x", "90.0 ms, 1.0x"]


class WrongBackward(torch.autograd.Function):
    """An identity whose backward pass fails."""

    @staticmethod
    def forward(ctx, array):
        return array.clone()

    @staticmethod
    def backward(ctx, grad):
        raise NotImplementedError("no kernel image is available")


def test_a_direction_that_fails_does_not_affect_the_other(tmp_path, small, monkeypatch):
    """Rows are in the file as soon as they are measured, here before the next implementation ends the process."""

    def forward_only(query, key, value):
        return WrongBackward.apply(benchmark_peers.reference(query, key, value))

    def ends(query, key, value):
        raise KeyboardInterrupt

    small.peers = ["forward_only", "ends"]
    monkeypatch.setitem(benchmark_peers.PEERS, "forward_only", benchmark_peers.Peer(forward_only))
    monkeypatch.setitem(benchmark_peers.PEERS, "ends", benchmark_peers.Peer(ends))
    with pytest.raises(KeyboardInterrupt):
        benchmark_compare.time_in_torch(small, torch.device("cpu"), "float32", [1, 5, 6])
    assert [(row["peer"], row["pass"]) for row in read_records(tmp_path / "b.csv")] == [("forward_only", "forward")]


def test_a_comparison_without_results_is_an_error(small, monkeypatch, capsys):
    monkeypatch.setitem(benchmark_peers.PEERS, "wrong", Peer(lambda query, key, value: value))
    for small.peers, said in (["wrong"], "wrong, forward: not measured"), (["triton"], ""):
        with pytest.raises(ValueError, match="nothing was measured"):
            benchmark_compare.time_in_torch(small, torch.device("cpu"), "float32", [1, 2, 3])
        assert capsys.readouterr().out.startswith(said), "the kernels do not fail on a CPU: they are left out"


@pytest.mark.parametrize("machine", ["NVIDIA H200", "NVIDIA H100 80GB HBM3"])
def test_floors_of_the_machines(config, machine):
    """8x97x97 in bfloat16 is bound by memory: 174 MB."""
    problem = plan.Problem(8, (97, 97), (0, 1), 64, 512, "bfloat16")
    timing = Timing(100.0, 100.0, 100.0, 1.0)
    found = benchmark_compare._percent_of_floor(problem, "forward", timing, config.machines[machine])
    floor = least_cost(problem, "forward").bytes / config.machines[machine].terabytes_per_second / 1e6
    assert found == round(floor, 1)


def test_the_rates_of_a_row_are_per_second():
    problem = plan.Problem(8, (97, 97), (0, 1), 64, 512, "bfloat16")
    cost = least_cost(problem, "backward")
    timing = Timing(2000.0, 1900.0, 2100.0, 1.0)
    row = result_row("triton", "backward, recomputed", problem, timing, 1.23e-3, seed=7, peak_mib=1.5)
    assert row["gb_per_s"] == pytest.approx(cost.bytes / 1e9 / 2e-3, abs=0.05)
    assert row["tflops"] == pytest.approx(cost.flops / 1e12 / 2e-3, abs=0.005)
    assert [row[key] for key in ("shape", "d", "c", "seed", "error")] == ["8x97x97", 64, 512, 7, "1.2e-03"]


def test_an_error_is_relative_to_the_largest_wanted_element():
    results, wanted = ([1.0, -12.0], [0.1, 0.3]), ([1.0, -10.0], [0.1, 0.4])
    assert largest_error(map(torch.tensor, results), map(torch.tensor, wanted)) == pytest.approx(0.25)


@pytest.mark.parametrize(("error", "accepted"), [(9.9e-5, True), (1e-4, False), (math.nan, False)])
def test_an_error_at_the_tolerance_is_too_large(error, accepted):
    with nullcontext() if accepted else pytest.raises(ValueError, match="above the tolerance"):
        check_error(error, "float32")


@pytest.mark.slow
def test_comparison_in_jax_checks_and_times_the_same_operator(tmp_path, small, monkeypatch):
    pytest.importorskip("jax", reason="pip install 'ccnet-segmentation[jax]'")
    from ccnet.benchmarks.comparison import compare_jax as benchmark_jax

    monkeypatch.setitem(benchmark_jax.PEERS, "wrong", Peer(lambda query, key, value: value))
    benchmark_jax.time_in_jax(small, "float32", [1, 4, 5])
    rows = {(row["peer"], row["pass"]): row for row in read_records(tmp_path / "b_jax.csv")}
    timed = [(peer, direction) for peer in ("reference", "einsum", "non_local") for direction in ("forward", "both")]
    assert list(rows) == timed
    assert all(float(row["error"]) < 1e-5 for row in rows.values())
    assert (tmp_path / "b_jax_1x4x5_float32.png").is_file()


def test_calls_in_jax_take_turns_of_the_inputs():
    benchmark_jax = pytest.importorskip("ccnet.benchmarks.comparison.compare_jax", reason="needs JAX")
    calls = []
    assert benchmark_jax._measure(calls.append, 20).median_us > 0
    assert calls == [0, *range(20)]  # the first one compiles


@pytest.mark.slow
def test_zoo_table(tmp_path, run_entry):
    done = run_entry(
        *("benchmark.py", "mode=zoo", "device=cpu", "zoo.models=[ccnet,fcn]", "zoo.backbone=resnet10t"),
        *("zoo.size=[65,97]", "zoo.timed_size=[33,33]", f"output={tmp_path / 'networks'}"),
    )
    rows = read_records(tmp_path / "networks_zoo.csv")
    assert [row["network"] for row in rows] == ["fcn", "ccnet, R = 1", "ccnet, R = 2", "ccnet, R = 3"]
    added = [float(row["added_gflops"]) for row in rows]
    assert added[0] == 0 and added == sorted(added)
    assert all(float(row["images_per_s"]) > 0 for row in rows)
    assert all(f"| {row['network']} |" in done.stdout for row in rows)


@pytest.mark.slow
def test_training_iterations_of_several_networks_are_timed(tmp_path, config, monkeypatch):
    monkeypatch.setattr(benchmark_train, "get_context", lambda method: forkserver())  # has imported torch already
    config.output = str(tmp_path / "step")
    config.train.update({"rounds": 1, "warmup": 1, "iterations": 2, "models": ["fcn", "ccnet ema=0.9"]})
    averaged = []
    monkeypatch.setattr(benchmark_train.AveragedWeights, "update", lambda self, iteration: averaged.append(iteration))
    dtypes = set()

    def place(self, images, labels, original=benchmark_train.TorchStep.place):
        dtypes.add((images.dtype, labels.dtype))
        return original(self, images, labels)

    monkeypatch.setattr(benchmark_train.TorchStep, "place", place)
    config.train.settings.cpu = [
        "dataset=cityscapes", "backbone=resnet10t", "backbone.pretrained=false", "recipe.batch_size=2",
        "recipe.train_transform.crop_size=[65,65]", "model.head.channels=32",
    ]  # fmt: skip
    said = benchmark_train.time_training(config, torch.device("cpu"))
    rows = read_records(tmp_path / "step_train.csv")
    assert [row["network"] for row in rows] == ["fcn", "ccnet ema=0.9"]
    assert averaged == [0, 1, 2]
    assert dtypes == {(torch.uint8, torch.uint8)}  # as from the loader
    assert rows[0]["ratio"] == "1.0"
    for row in rows:
        assert 0 < float(row["fastest_ms"]) <= float(row["step_ms"]) <= float(row["slowest_ms"])
        assert float(row["images_per_s"]) == pytest.approx(2000 / float(row["step_ms"]), rel=0.05)
        assert 20 < float(row["peak_mib"]) < 2000
        assert row["criss_cross_share"] == "not measured"
        assert f"{row['step_ms']}" in said


def test_a_network_that_fails_does_not_affect_the_others(tmp_path, config, monkeypatch):
    turns = []

    def turn(run, *_):
        turns.append(run)
        if len(turns) in (1, 4):  # each run of the benchmark starts with ccnet
            raise torch.OutOfMemoryError("out of memory")
        return 10.0 * len(turns), float("nan")

    monkeypatch.setattr(benchmark_train, "_round", turn)
    monkeypatch.setattr(benchmark_train, "_alone", lambda *_: 100.0)
    config.output = str(tmp_path / "step")
    config.train.update({"rounds": 2, "models": ["ccnet", "fcn"]})
    for _ in range(2):  # the second run keeps the rows of the first
        with pytest.raises(ValueError, match=r"ccnet: not measured\. OutOfMemoryError: out of memory"):
            benchmark_train.time_training(config, torch.device("cpu"))
    rows = read_records(tmp_path / "step_train.csv")
    assert [(row["network"], row["ratio"], row["peak_mib"]) for row in rows] == [
        ("fcn", "not measured", "100")  # the baseline is ccnet
    ] * 2
    assert len(turns) == 6  # the failed network takes no second turn


def test_the_zoo_continues_after_a_failed_network(tmp_path, config, monkeypatch):
    from ccnet.benchmarks import zoo

    def create(name, **_):
        if name == "hv":
            raise RuntimeError("no such weights")
        return torch.nn.Module()

    monkeypatch.setattr(zoo, "create_model", create)
    monkeypatch.setattr(zoo, "network_cost", lambda *_: Cost(1.0, 2.0, 3.0))
    monkeypatch.setattr(zoo, "_images_per_s", lambda *_: 4.0)
    monkeypatch.setattr(torch.nn.Module, "head", None, raising=False)
    config.output, config.zoo.models = str(tmp_path / "n"), ["fcn", "hv", "gcn"]
    with pytest.raises(ValueError, match=r"hv: not measured\. RuntimeError: no such weights"):
        zoo.measure_zoo(config, torch.device("cpu"))
    config.zoo.models = ["fcn"]
    zoo.measure_zoo(config, torch.device("cpu"))  # the second run keeps the rows of the first
    assert [row["network"] for row in read_records(tmp_path / "n_zoo.csv")] == ["fcn", "gcn", "fcn"]


def test_times_are_not_added_to_a_file_with_other_columns(tmp_path, config, monkeypatch):
    monkeypatch.setattr(benchmark_train, "_round", lambda *_: pytest.fail("time was spent before the file was read"))
    config.output = str(tmp_path / "step")
    (tmp_path / "step_train.csv").write_text("network,step_ms,kernel_share\nccnet,5.0,0.1\n")
    with pytest.raises(ValueError, match=r"step_train\.csv has the columns network, step_ms, kernel_share, not"):
        benchmark_train.time_training(config, torch.device("cpu"))


def test_measuring_ends_when_a_result_cannot_be_written(tmp_path, small, monkeypatch):
    measured = []
    monkeypatch.setattr(
        benchmark_compare, "measure", lambda *arguments: measured.append(arguments) or Timing.of([1.0], host_us=1.0)
    )
    (tmp_path / "b.csv").write_text("peer,median_us\neinsum,5.0\n")
    with pytest.raises(ValueError, match=r"b\.csv has the columns peer, median_us, not"):
        benchmark_compare.time_in_torch(small, torch.device("cpu"), "float32", [1, 5, 6])
    assert len(measured) == 1


@pytest.mark.parametrize("fails", [False, True])
def test_what_networks_add_is_relative_to_fcn_even_if_fcn_is_not_in_the_table(tmp_path, config, monkeypatch, fails):
    from ccnet.benchmarks import zoo

    def create(name, **_):
        if name == "fcn" and fails:
            raise RuntimeError("no such weights")
        model = torch.nn.Module()
        model.name, model.head = name, object.__new__(zoo.ContextHead)
        return model

    costs = {"fcn": Cost(1.0, 2.0, 3.0), "hv": Cost(1.0, 2.5, 5.0), "pspnet": Cost(1.0, 4.0, 9.0)}
    monkeypatch.setattr(zoo, "create_model", create)
    monkeypatch.setattr(zoo, "network_cost", lambda model, _: costs[model.name])
    monkeypatch.setattr(zoo, "_images_per_s", lambda *_: 4.0)
    config.output, config.zoo.models = str(tmp_path / "n"), ["hv", "pspnet"]
    with pytest.raises(ValueError, match="fcn, the baseline: not measured") if fails else nullcontext():
        zoo.measure_zoo(config, torch.device("cpu"))
    added = [(row["added_gflops"], row["added_mb"]) for row in read_records(tmp_path / "n_zoo.csv")]
    assert added == ([("", "")] * 2 if fails else [("0.5", "2.0"), ("2.0", "6.0")])


def test_the_fraction_of_time_in_the_criss_cross_kernels():
    from ccnet.kernels import backward, forward

    times = [("cudnn_convolution", 60.0), (forward.line_forward_kernel.__name__, 30.0), ("memcpy", 5.0)]
    times.append((f"{backward.line_backward_kernel.__name__}_0d1d", 5.0))
    assert benchmark_train.share_of(benchmark_train.KERNELS, times) == 0.35


@pytest.mark.parametrize("spans", [[7.0], [400.0, 9000.0], [1.0, 2.0, 3.0, 4.0, 5.0, 6.0]])
def test_percentiles_are_within_the_measured_times(spans):
    timing = Timing.of(spans, host_us=1.0)
    assert min(spans) <= timing.p20_us <= timing.median_us <= timing.p80_us <= max(spans)
