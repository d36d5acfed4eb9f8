"""Networks export to ONNX with dynamic sizes, and compile with torch.compile without graph breaks."""

import json
import warnings
from unittest.mock import MagicMock, Mock

import pytest
import torch
from omegaconf import OmegaConf
from stand_in import stand_in

from ccnet.engine.prediction import TrainedNetwork
from ccnet.export import _size
from ccnet.models import RecurrentCrissCrossAttention, create_model
from ccnet.models.backbone import TimmBackbone

pytest.importorskip("onnxruntime", reason="pip install 'ccnet-segmentation[export]'")
import onnx
import onnxruntime

from ccnet.engine.checkpoints import export

TINY = {"num_classes": 5, "backbone": "beacons", "head__channels": 16}


def make(name, **options):
    torch.manual_seed(0)
    model = create_model(name, **TINY, **options).eval()
    for parameter in model.parameters():
        if parameter.shape == (1,):  # gamma: at its initial 0, attention would have no effect
            torch.nn.init.constant_(parameter, 0.5)
    return model


@pytest.fixture
def no_backbone(monkeypatch):
    """Use the pixels as features: tracing a backbone at symbolic sizes takes half of the time of an export."""

    def pooled(self, image):
        return [image[:, :1, ::8, ::8].expand(-1, channels, -1, -1) for channels in self.channels]

    monkeypatch.setattr(TimmBackbone, "forward", pooled)


def assert_standard(path):
    nodes = onnx.load(path).graph.node
    assert {node.domain for node in nodes} == {""}
    assert not {"EyeLike", "ScatterND"} & {node.op_type for node in nodes}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "options"), [("ccnet", {"head__recurrence": 1}), ("pspnet", {"head__context__bins": [1, 3]})]
)
def test_onnx_reproduces_the_logits_with_standard_operators(name, options, tmp_path, request):
    """Images may have any size. The test of clips below exports attention at a fixed size."""
    if name == "pspnet":  # ccnet has one
        request.getfixturevalue("no_backbone")
    model = make(name, **options)
    assert export.export_onnx(model, tmp_path / "net.onnx") < 1e-4
    assert_standard(tmp_path / "net.onnx")
    # An image size and a batch size that differ from those of the export.
    image = torch.rand(3, 3, 57, 121)
    session = onnxruntime.InferenceSession(tmp_path / "net.onnx", providers=["CPUExecutionProvider"])
    got = torch.from_numpy(session.run(None, {"image": image.numpy()})[0])
    with torch.inference_mode():
        want = model(image)["out"]
    assert (got - want).abs().max() < 1e-4 * want.abs().max()


class Pointwise(torch.nn.Module):
    """A network that exports in a second."""

    def __init__(self):
        super().__init__()
        self.register_buffer("mean", torch.zeros(1, 3, 1, 1))
        self.classify = torch.nn.Linear(3, 5)

    def check(self, image, clips):
        pass

    def forward(self, image):
        return {"out": self.classify(image.movedim(1, -1)).movedim(-1, 1)}


@pytest.mark.parametrize(
    ("size", "frames", "sides"),
    [
        (None, 1, ["height", "width"]),
        pytest.param(None, 3, [3, "height", "width"], marks=pytest.mark.slow),
        pytest.param((48, 65), 1, [48, 65], marks=pytest.mark.slow),
    ],
    ids=str,
)
def test_the_file_names_its_axes_and_classes(size, frames, sides, tmp_path):
    names = ["Straße", "car", "tree", "sky", "b,c"]
    export.export_onnx(Pointwise(), tmp_path / "net.onnx", classes=names, size=size, frames=frames)
    graph, metadata = (got := onnx.load(tmp_path / "net.onnx")).graph, got.metadata_props
    axes = [
        [axis.dim_param or axis.dim_value for axis in tensor.type.tensor_type.shape.dim]
        for tensor in (graph.input[0], graph.output[0])
    ]
    assert axes == [["batch", 3, *sides], ["batch", 5, *sides]]
    assert {entry.key: json.loads(entry.value) for entry in metadata} == {"classes": names}


@pytest.mark.slow
def test_a_network_for_clips_is_exported_for_clips(tmp_path, run_entry, no_backbone):
    """On single images, it would lack the earlier frames that predict.py gives it."""
    saved = stand_in("ccnet3d", "model.head.recurrence=2", "backbone=beacons")
    saved.config["dataset"]["frames"] = 3
    TrainedNetwork(saved, device="cpu").save_pretrained(tmp_path / "net")
    done = run_entry("export.py", f"checkpoint={tmp_path / 'net'}", f"output={tmp_path / 'net.onnx'}", "size=[40,33]")
    assert "net.onnx: clips of 3 frames of 40x33; ONNX Runtime's" in done.stdout
    assert_standard(tmp_path / "net.onnx")
    session = onnxruntime.InferenceSession(tmp_path / "net.onnx", providers=["CPUExecutionProvider"])
    assert session.get_inputs()[0].shape == ["batch", 3, 3, 40, 33]
    assert session.run(None, {"image": torch.rand(1, 3, 3, 40, 33).numpy()})[0].shape == (1, 11, 3, 40, 33)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("size", "message"),
    [
        ("65", "size=65 is not an image size: set size=[HEIGHT,WIDTH]"),
        ("[65]", "size=[65] is not an image size: set size=[HEIGHT,WIDTH]"),
        ("[4,64]", "of at least 8x8 pixels (the output stride), got (2, 3, 4, 64)"),
    ],
)
def test_a_wrong_size_ends_in_one_message(size, message, tmp_path, run_entry):
    TrainedNetwork(stand_in(), device="cpu").save_pretrained(tmp_path / "net")
    command = (f"checkpoint={tmp_path / 'net'}", f"output={tmp_path / 'net.onnx'}", f"size={size}")
    done = run_entry("export.py", *command, ok=False)
    assert message in done.stderr and "Traceback" not in done.stderr


@pytest.mark.parametrize("differences", [(1e-6, 1e-3, 1e-6), (1e-6, float("nan"), 1e-6)], ids=str)
def test_a_wrong_export_is_not_saved(differences, tmp_path, monkeypatch):
    """The logits may be wrong, or not finite, at one of the three sizes only."""
    monkeypatch.setattr(torch.onnx, "export", lambda *_, **__: MagicMock(save=lambda path: path.write_bytes(b"wrong")))
    monkeypatch.setattr(onnxruntime, "InferenceSession", Mock())
    monkeypatch.setattr(export, "_difference", Mock(side_effect=differences))
    with pytest.raises(ValueError, match="logits differ from the network's by"):
        export.export_onnx(Pointwise(), tmp_path / "net.onnx")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
@pytest.mark.parametrize("name", ["ccnet", "ccnet3d", "pspnet"])
def test_compiles_without_a_graph_break(name):
    torch._dynamo.reset()
    model = create_model(name, **TINY, embedding_channels=4)
    image = torch.rand(2, 3, *((2, 33, 41) if name == "ccnet3d" else (33, 41)))
    # Tracing is enough to find graph breaks; the backend compilers are not tested here.
    compiled = torch.compile(model, fullgraph=True, backend="eager")
    output = compiled(image)
    assert set(output) == {"out", "aux", "embedding"}
    sum(tensor.square().mean() for tensor in output.values()).backward()
    assert all(parameter.grad is not None for parameter in model.parameters())


def test_the_module_exports_without_dynamo(tmp_path):
    module, path = RecurrentCrissCrossAttention(8).eval(), tmp_path / "module.onnx"
    torch.nn.init.constant_(module.attention.gamma, 0.5)
    sizes = {0: "batch", 2: "height", 3: "width"}
    names = {"input_names": ["x"], "output_names": ["y"], "dynamic_axes": {"x": sizes, "y": sizes}}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch deprecates this exporter
        torch.onnx.export(module, (torch.randn(2, 8, 5, 6),), path, dynamo=False, **names)
    x = torch.randn(3, 8, 7, 4)
    (got,) = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"]).run(None, {"x": x.numpy()})
    with torch.inference_mode():
        assert (torch.from_numpy(got) - module(x)).abs().max() < 1e-5


@pytest.mark.parametrize("size", [[-65, 65], [0, 65], [65, True], [65.0, 65], [65, 65, 3]])
def test_sizes_without_pixels_are_refused(size):
    with pytest.raises(ValueError, match=r"is not an image size: set size=\[HEIGHT,WIDTH\]"):
        _size(OmegaConf.create(size))
