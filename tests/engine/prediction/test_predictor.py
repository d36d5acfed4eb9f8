"""The prediction of single images: the choice of sliding windows from the memory at hand, and clips."""

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps
from torch import nn

from ccnet.engine.checkpoints import Checkpoint
from ccnet.engine.evaluation.cost import peak_bytes
from ccnet.engine.evaluation.detection import as_stored_objects
from ccnet.engine.evaluation.protocols import Slide, Whole
from ccnet.engine.prediction import predictor as module
from ccnet.engine.prediction.predictor import Predictor
from ccnet.engine.runtime.progress import Progress


class Brightness(nn.Module):
    """A network that predicts class 1 where the mean over the frames is bright."""

    def __init__(self):
        super().__init__()
        self.register_buffer("mean", torch.full((1, 3, 1, 1), 0.4))
        self.weight = nn.Parameter(torch.tensor(1.0))
        self.sizes = []

    def forward(self, images):
        self.sizes.append(tuple(images.shape[-2:]))
        bright = self.weight * images.mean(dim=1, keepdim=True)
        return {"out": torch.cat([torch.full_like(bright, 0.5), bright], dim=1)}


def test_peak_memory_is_that_of_the_live_tensors():
    network = nn.Sequential(nn.Conv2d(3, 8, 1), nn.ReLU(), nn.Conv2d(8, 2, 1))
    wrapped = type("Network", (nn.Module,), {"forward": lambda self, x: {"out": self.net(x)}})()
    wrapped.net = network
    pixels = 40 * 50
    # The image, and the activations before and after the ReLU, in float32
    assert peak_bytes(wrapped, (3, 40, 50)) == 4 * pixels * (3 + 8 + 8)
    assert peak_bytes(wrapped, (3, 4000, 5000)) == 4 * 10_000 * pixels * (
        3 + 8 + 8
    )  # nothing of that size is allocated


def test_an_image_that_needs_too_much_memory_is_split_into_windows(monkeypatch):
    network = Brightness()
    predict = Predictor(network, Whole(), device=torch.device("cpu"), windows=Slide((10, 12)))
    picture = torch.zeros(3, 40, 60, dtype=torch.uint8)
    picture[:, :, 30:] = 255
    monkeypatch.setattr(module, "available_memory", lambda device: 10**9)
    assert predict.about_memory((40, 60)) is None
    whole = predict(picture)
    assert network.sizes[-1] == (40, 60)
    monkeypatch.setattr(module, "available_memory", lambda device: 10**4)
    assert (
        "an image of 60x40 pixels needs about 0.0 GB in one pass and 0.0 GB are free: it is split into windows of 12x10"
        in (predict.about_memory((40, 60)) or "")
    )
    network.sizes.clear()
    assert np.array_equal(predict(picture), whole)
    assert set(network.sizes) == {(10, 12)}
    assert whole[0].tolist() == [0] * 30 + [1] * 30
    assert predict.protocol_for((20, 24)) is predict.protocol  # four windows always fit
    chosen = Predictor(network, Whole(), device=torch.device("cpu"))
    assert chosen.protocol_for((4000, 4000)) is chosen.protocol


def test_a_predictor_has_the_protocol_of_its_run_unless_another_is_chosen():
    def of(crop=(10, 12), own=None, protocol=None):
        config = {"recipe": {"train_transform": {"crop_size": crop}}, "protocol": own, "dataset": {"frames": 3}}
        saved = Checkpoint({}, config, [], [], None, {})
        return Predictor.of(saved, Brightness(), device=torch.device("cpu"), protocol=protocol, bf16=True)

    default = of()
    assert isinstance(default.protocol, Whole) and default.windows and default.windows.crop_size == (10, 12)
    assert default.frames == 3
    autocast = []
    default.network.register_forward_pre_hook(lambda *_: autocast.append(torch.is_autocast_enabled("cpu")))
    default(torch.zeros(3, 4, 6, dtype=torch.uint8))
    assert autocast == [True]
    assert of(crop=None).windows is None  # a published network whose crop is unknown
    own = of(own={"_target_": "ccnet.engine.evaluation.protocols.Slide", "crop_size": [4, 6]})
    assert isinstance(own.protocol, Slide) and own.protocol.crop_size == (4, 6) and own.windows is None
    for chosen in (Whole(), Slide((8, 8))):
        predict = of(own={"_target_": "ccnet.engine.evaluation.protocols.Whole"}, protocol=chosen)
        assert predict.protocol is chosen and predict.windows is None


def test_memory_is_measured_unless_a_larger_image_is_known_to_fit(monkeypatch):
    measured = []

    def peak(network, shape):
        measured.append(shape)
        return 10 * shape[-2] * shape[-1]

    monkeypatch.setattr(module, "peak_bytes", peak)
    monkeypatch.setattr(module, "available_memory", lambda device: 10**6)
    predict = Predictor(Brightness(), Whole(), device=torch.device("cpu"), windows=Slide((10, 12)))
    sizes = (400, 600), (40, 60), (40, 60), (30, 50), (41, 50), (30, 61)
    assert [predict.protocol_for(size) is predict.windows for size in sizes] == [True] + [False] * 5
    assert measured == [(3, 400, 600), (3, 40, 60), (3, 41, 50), (3, 30, 61)]
    monkeypatch.setattr(module, "available_memory", lambda device: 13 * 80 * 90)  # 1.3 times the peak: it just fits
    assert predict.protocol_for((80, 90)) is predict.protocol
    assert predict.protocol_for((80, 91)) is predict.windows
    clips = Predictor(Brightness(), Whole(), device=torch.device("cpu"), frames=5, windows=Slide((10, 12)))
    clips.protocol_for((40, 60))
    assert measured[-1] == (3, 5, 40, 60)


def test_only_an_image_of_many_passes_has_a_progress_bar(monkeypatch):
    bars = []

    def progress(*given, **options):
        bars.append(Progress(*given, **options))
        return bars[-1]

    monkeypatch.setattr(module, "Progress", progress)
    predict = Predictor(Brightness(), Slide((10, 12)), device=torch.device("cpu"))
    predict(torch.zeros(3, 10, 12, dtype=torch.uint8), bar="a.jpg")
    predict(torch.zeros(3, 40, 60, dtype=torch.uint8))
    assert bars == []
    predict(torch.zeros(3, 40, 60, dtype=torch.uint8), bar="a.jpg")
    assert bars[0]._total == bars[0]._done == len(predict.network.sizes[1:]) / 2


def test_the_frames_of_a_clip_have_the_size_of_the_image():
    predict = Predictor(Brightness(), Whole(), device=torch.device("cpu"), frames=3)
    seen = []
    predict.network.register_forward_pre_hook(lambda network, arguments: seen.append(arguments[0]))
    before = torch.full((3, 4, 6), 255, dtype=torch.uint8)
    predict(torch.zeros(3, 4, 6, dtype=torch.uint8), [before])
    assert seen[0].shape == (1, 3, 3, 4, 6)
    assert seen[0].mean(dim=(0, 1, 3, 4)).tolist() == [1, 1, 0]  # the first frame is repeated
    predict(torch.zeros(3, 4, 6, dtype=torch.uint8), [before, before, before // 5, before // 3])
    assert seen[1].mean(dim=(0, 1, 3, 4)).tolist() == pytest.approx([1 / 5, 1 / 3, 0])  # only the latest two
    with pytest.raises(ValueError, match="the frame has 5x4 pixels and one before it 6x4"):
        predict(torch.zeros(3, 4, 5, dtype=torch.uint8), [before])


@pytest.mark.parametrize("orientation", range(1, 9))
def test_objects_are_turned_to_the_orientation_of_the_file(orientation):
    masks = torch.zeros(1, 1, 6, 9)
    masks[0, 0, 1:3, 2:6] = 1
    turned = as_stored_objects({"boxes": torch.tensor([[2.0, 1, 6, 3]]), "masks": masks}, orientation)
    rows, columns = np.nonzero(turned["masks"][0, 0].numpy())
    assert turned["boxes"].tolist() == [[columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]]
    exif = Image.Exif()
    exif[0x0112] = orientation
    upright = Image.fromarray(turned["masks"][0, 0].numpy().astype(np.uint8))
    upright.info["exif"] = exif.tobytes()
    assert np.array_equal(np.array(ImageOps.exif_transpose(upright)), masks[0, 0].numpy())
