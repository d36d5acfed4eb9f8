"""The forward kernel's copies through tensor descriptors, in Triton's interpreter."""

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from triton_calls import INTERPRETED, pinned

from ccnet.kernels.call import Call, Options
from ccnet.kernels.launches import plan
from ccnet.kernels.torch_ops import launch, passes
from ccnet.kernels.torch_ops.devices import device_of

pytestmark = INTERPRETED


def options_of(axes):
    return Options(axes, 1.0, "ieee", channel_axis=-1, backend="triton")


@pytest.mark.parametrize(("spatial", "axes"), [((7, 20), (0, 1)), ((2, 3, 4), (0, 1, 2)), ((9, 2), (0,))], ids=str)
@pytest.mark.parametrize("save_out", [True, False])
def test_descriptors_copy_the_same_slabs_as_pointers(spatial, axes, save_out):
    """Odd lines, slices of one projection, and a residual that is a slice as well."""
    d, c = 8, 32
    query, key, value = torch.randn(2, *spatial, 2 * d + c).split([d, d, c], dim=-1)
    residual = torch.randn(2, *spatial, c + 4)[..., :c]
    call = Call(query, key, value, options_of(axes), residual, torch.tensor([0.7]))
    found = []
    for descriptors in (True, False):
        tile = plan.Tile(16, 32, 16, 4, 2, descriptors)
        with pinned(tile):
            problem = passes.problem_of(call, 2 * d + c, aligned=True)
            assert {planned.tile for planned in plan.forward_launches(problem, device_of(None))} == {tile}
            result = torch.empty(2, *spatial, c)
            found.append([result, *passes.forward(call, result, save_out)])
    for ours, want in zip(*found, strict=True):
        assert torch.equal(ours, want) and not ours.isnan().any()


@pytest.mark.parametrize(("c", "splits"), [(48, 1), (64, 2)])
def test_groups_of_slabs_end_with_the_last_channel(monkeypatch, c, splits):
    """Beyond it, a descriptor has the next pixel's channels, so three slabs are not split into two groups."""
    call = Call(*(torch.randn(1, 2, 7, 5, width) for width in (8, 8, c)), options_of((0, 1, 2)))
    device = device_of(None)._replace(processors=15)  # more than the lines along one axis
    monkeypatch.setattr(passes, "device_of", lambda index: device)
    found = []
    for descriptors in (True, False):
        with pinned(plan.Tile(16, 16, 16, 4, 2, descriptors)):
            launches = plan.forward_launches(passes.problem_of(call, c, aligned=True), device)
            if descriptors:
                assert max(planned.constants["SPLITS"] for planned in launches) == splits
            for planned in launches:  # in reverse order, the interpreter would not repair an overrun
                planned.constants["REVERSED"] = True
            found.append(passes.forward(call, None, save_out=True))
    assert all(torch.equal(ours, want) for ours, want in zip(*found, strict=True))


def test_arrays_that_descriptors_cannot_describe_are_read_through_pointers(monkeypatch):
    """Descriptors need one dtype and multiples of 16 bytes: for float16, 8 elements."""
    used = []
    monkeypatch.setattr(launch, "run", lambda kernel, planned, *_: used.append(planned.tile.descriptors))

    def uses_descriptors(value, residual=None, save_out=False):
        query = torch.zeros(1, 80, 8, dtype=torch.float16)
        gamma = None if residual is None else torch.ones(1)
        result = None if residual is None else torch.empty(1, 80, 32, dtype=residual.dtype)
        passes.forward(Call(query, query, value, options_of((0,)), residual, gamma), result, save_out)
        return used.pop()

    half = torch.zeros(1, 80, 48, dtype=torch.float16)
    assert uses_descriptors(half[..., :32])
    assert uses_descriptors(half[..., 8:40])
    assert uses_descriptors(half[..., :32], residual=half[..., :32])
    assert not uses_descriptors(half[..., 1:33])
    assert not uses_descriptors(torch.zeros(1, 80, 36, dtype=torch.float16)[..., :32])
    assert not uses_descriptors(half[..., :32], residual=torch.zeros(1, 80, 32))
    assert not uses_descriptors(half[..., :32], save_out=True)  # the output is kept in float32
    assert not uses_descriptors(half[..., :24])  # half a slab
    assert not uses_descriptors(half[:, :1, :32].expand(1, 80, 32))  # all pixels in one place


@pytest.mark.parametrize(("length", "described"), [(80, True), (20, False)])
def test_a_thread_without_a_cuda_context_gets_one_before_descriptors_are_encoded(monkeypatch, length, described):
    """torch's device guards leave a new thread without one on the first GPU (pytorch#195256)."""
    events = []
    monkeypatch.setattr(torch.cuda, "set_device", lambda device: events.append(str(device)))
    monkeypatch.setattr(launch, "run", lambda kernel, planned, *_: events.append(planned.tile.descriptors))
    monkeypatch.setattr(passes, "device_of", lambda index: device_of(None))
    monkeypatch.setattr(passes, "_are_aligned", lambda arrays: True)  # fake tensors have no addresses
    with FakeTensorMode():
        query, value = (torch.empty(1, length, width, dtype=torch.float16, device="cuda") for width in (8, 32))
        passes.forward(Call(query, query, value, options_of((0,))), None, save_out=False)
    assert events == (["cuda:0", True] if described else [False])
