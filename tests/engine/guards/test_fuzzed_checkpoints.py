"""Mutated checkpoints yield predictions or a clean error; see tests/fuzzing.py."""

import io
import json
from types import SimpleNamespace

import pytest
import torch
from conftest import composed
from fuzzing import PICKLED, clean, damage, examples, mutated, place
from hydra.utils import instantiate
from hypothesis import given
from hypothesis import strategies as st
from published_states import authors_state, mmseg_state
from safetensors.torch import load_file, save_file

from ccnet import train as training
from ccnet.engine import checkpoints, resuming
from ccnet.engine.drawing.label_images import save_mask
from ccnet.engine.evaluation.segmentation import predict
from ccnet.engine.training.state import TrainingState
from ccnet.models.checksums import CHECKSUM, HEADER
from ccnet.models.tensor_files import checksum

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """Train for one iteration; return the run's folder."""
    folder = tmp_path_factory.mktemp("run")
    training.train(composed("recipe.max_iters=1", "dataset.val.length=1", "recipe.head.channels=8"), folder)
    return folder


@pytest.fixture(scope="module")
def scratch(tmp_path_factory):
    return tmp_path_factory.mktemp("scratch")


def use(path):
    """Segment one small image with a checkpoint, as evaluate.py and predict.py do."""
    saved = checkpoints.load(path)
    network = checkpoints.network(saved)
    crop = saved.setting("recipe.train_transform.crop_size")
    node = saved.config.get("protocol", {"_target_": "ccnet.engine.evaluation.protocols.Slide", "crop_size": crop})
    labels = predict(network, torch.rand(1, 3, 33, 33), instantiate(node), bf16=bool(saved.setting("bf16")))
    save_mask(path.with_suffix(".png"), labels[0].numpy(), saved.palette)
    return labels


@pytest.fixture(scope="module")
def contents(run):
    return {name: (run / name).read_bytes() for name in ("last.pt", "best.safetensors")}


@examples(30)
@given(data=st.data(), name=st.sampled_from(["last.pt", "best.safetensors"]))
def test_fuzzed_bytes_of_a_checkpoint(contents, scratch, data, name):
    path = place(scratch, name, data.draw(damage(contents[name])))
    labels = clean(use, path)
    assert labels is None or labels.shape == (1, 33, 33)


@examples(30)
@given(data=st.data())
def test_fuzzed_content_of_a_checkpoint(run, scratch, data):
    """Mutate mainly the configuration, but also the rest, of both kinds of file; the checksums are valid."""
    content = torch.load(run / "last.pt", weights_only=True)
    kept = {"weights": content.pop("weights"), "training": content.pop("training")}
    config = content["config"]
    part = data.draw(st.sampled_from(["model", "model", "protocol", "recipe", "dataset", None]))
    if part in config:
        config[part] = data.draw(mutated({part: config[part]}, PICKLED)).get(part)
    else:
        content = data.draw(mutated(content, PICKLED))
    path = scratch / "last.pt"
    if data.draw(st.booleans()):
        torch.save(kept | content, path)
    else:
        path = scratch / "best.safetensors"
        weights = {key: tensor.contiguous() for key, tensor in kept["weights"].items()}
        try:
            text = json.dumps(content)
        except (TypeError, ValueError):
            return
        save_file(weights, path, metadata={HEADER: text, CHECKSUM: checksum(text, weights)})
    labels = clean(use, path)
    assert labels is None or labels.shape == (1, 33, 33)


def step_from(path, config, folder):
    """Take one step from a checkpoint, whose training state may be empty, and save; return the iteration."""
    saved = checkpoints.load(path)
    network = checkpoints.network(saved)
    algorithm = instantiate(config.optimizer.algorithm, network.parameters())
    identity = resuming.Identity("", {}, {}, {})
    state = TrainingState(network, algorithm, instantiate(config.optimizer.schedule, algorithm), identity)
    if saved.training:
        state.restore(saved)
    for parameter in network.parameters():
        parameter.grad = torch.ones_like(parameter)
    algorithm.step()
    state.advance()
    state.validation_due(1, 3)
    state.save(folder, saved.config, SimpleNamespace(classes=saved.classes, palette=saved.palette))
    return state.iteration


@pytest.fixture(scope="module")
def begun(run, tmp_path_factory):
    """Return the configuration of each optimiser and the content of its ``last.pt`` after one step."""
    found = {}
    for optimizer in ("adamw", "sgd", "sgd_steps"):
        config = composed("recipe.max_iters=3", f"optimizer={optimizer}")
        folder = tmp_path_factory.mktemp(optimizer)
        assert step_from(run / "best.safetensors", config, folder) == 1
        found[optimizer] = config, torch.load(folder / "last.pt", weights_only=True)
    return found


@examples(20)
@given(data=st.data(), optimizer=st.sampled_from(["adamw", "sgd", "sgd_steps"]))
def test_fuzzed_training_state(begun, scratch, data, optimizer):
    """Mutate the state of the optimiser, schedule and random generators; the checksums are valid."""
    config, content = begun[optimizer]
    training = dict(content["training"])
    part = data.draw(st.sampled_from(["optimizer", "optimizer", "schedule", None]))
    if part:
        training[part] = data.draw(mutated({part: training[part]}, PICKLED)).get(part)
    else:
        training = data.draw(mutated(training, PICKLED))
    path = scratch / "begun.pt"
    torch.save(content | {"training": training}, path)
    assert clean(step_from, path, config, scratch) in (None, 2)


@examples(12)
@given(data=st.data())
def test_fuzzed_header_of_a_safetensors_file(contents, scratch, data):
    """Mutate the JSON header: names, types, shapes and offsets of the tensors."""
    whole = contents["best.safetensors"]
    length = int.from_bytes(whole[:8], "little")
    header = json.dumps(data.draw(mutated(json.loads(whole[8 : 8 + length])))).encode()
    path = place(scratch, "best.safetensors", len(header).to_bytes(8, "little") + header + whole[8 + length :])
    labels = clean(use, path)
    assert labels is None or labels.shape == (1, 33, 33)


@pytest.fixture(scope="module")
def published():
    """Return a state dict in each published layout."""
    return {"authors": authors_state(), "mmseg": mmseg_state("ccnet")}


@pytest.fixture(scope="module")
def published_bytes(published):
    """Return a small .pth file whose tensors have the correct names and the shape (1,)."""
    file = io.BytesIO()
    small = {key: tensor.flatten()[:1].clone() for key, tensor in published["mmseg"].items()}
    torch.save({"state_dict": small, "meta": {"iter": 1, "CLASSES": ["a", "b", "c"]}}, file)
    return file.getvalue()


@examples(20)
@given(data=st.data())
def test_fuzzed_bytes_of_a_published_checkpoint(published_bytes, scratch, data):
    clean(use, place(scratch, "published.pth", data.draw(damage(published_bytes))))


_TENSORS = st.sampled_from(
    [torch.zeros(0), torch.zeros(10**6, 0), torch.zeros(1).expand(10**12), torch.zeros(3, dtype=torch.int8), None, 3,
     torch.zeros(1), torch.zeros(2, 2), torch.zeros((), dtype=torch.complex64), "x", torch.eye(2).to_sparse()]
)  # fmt: skip


@examples(4)
@given(data=st.data(), layout=st.sampled_from(["authors", "mmseg"]))
def test_fuzzed_tensors_of_a_published_checkpoint(published, scratch, data, layout):
    state = dict(published[layout])
    for _ in range(data.draw(st.integers(0, 3))):
        key = data.draw(st.sampled_from([key for key in state if "layer" not in str(key)] + list(state)[:20]))
        match data.draw(st.sampled_from(["leave out", "replace", "rename"])):
            case "leave out":
                del state[key]
            case "replace":
                state[key] = data.draw(_TENSORS)
            case "rename":
                state[data.draw(st.sampled_from(["x", "", "head.x", "decode_head.x", "decode_head", 3]))] = state.pop(
                    key
                )
    meta = {"iter": 9, "CLASSES": ["a", "b", "c"], "PALETTE": [[1, 2, 3]] * 3, "config": "crop_size=(512, 512)"}
    content = {"state_dict": state, "meta": data.draw(mutated(meta, PICKLED)) if data.draw(st.booleans()) else meta}

    path = scratch / "held.pth"
    torch.save(content, path)
    found = clean(checkpoints.load, path)
    assert found is None or len(found.classes) == 3


@pytest.mark.parametrize("name", ["last.pt", "best.safetensors"])
def test_unchanged_checkpoints_are_read(run, scratch, name):
    """Otherwise every fuzzed example might be rejected for an unrelated reason."""
    assert clean(use, place(scratch, name, (run / name).read_bytes())).shape == (1, 33, 33)
    assert load_file(run / "best.safetensors")
