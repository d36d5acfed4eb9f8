"""CrissCrossAttention under torch.func, forward mode, checkpoint, in-place changes, and on meta tensors."""

import shutil

import pytest
import torch
from torch import nn
from torch.autograd import forward_ad
from torch.func import functional_call, grad, jacrev, jvp, vmap
from torch.nn.utils import prune
from torch.utils.checkpoint import checkpoint

from ccnet.kernels import criss_cross_attention
from ccnet.models import CrissCrossAttention, RecurrentCrissCrossAttention, create_model, criss_cross, list_models

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("operators_on_small_calls")]


needs_interpreter = pytest.mark.skipif(
    torch.cuda.is_available(), reason="the Triton kernels take CPU tensors in its interpreter only"
)
needs_inductor = pytest.mark.skipif(shutil.which("g++") is None, reason="Inductor compiles for a CPU with g++")
BACKENDS = pytest.mark.parametrize("backend", ["reference", "auto", pytest.param("triton", marks=needs_interpreter)])
RECOMPUTE = pytest.mark.parametrize("recompute", [False, True])


def pair(backend, recompute=True):
    """Return the module under test, an equal one that keeps the formula's arrays, and an input."""
    module = CrissCrossAttention(8, backend=backend, recompute=recompute)
    nn.init.ones_(module.gamma)
    oracle = CrissCrossAttention(8, backend="reference", recompute=False)
    oracle.load_state_dict(module.state_dict())
    return module, oracle, torch.randn(2, 8, 3, 2).to(memory_format=torch.channels_last)


def assert_close(got, want):
    got, want = torch.utils._pytree.tree_leaves(got), torch.utils._pytree.tree_leaves(want)
    for ours, theirs in zip(got, want, strict=True):
        assert (ours - theirs).abs().max() < 1e-4 * max(1, theirs.abs().max())


@RECOMPUTE
@BACKENDS
def test_torch_func(backend, recompute):
    module, oracle, x = pair(backend, recompute)
    parameters = {key: parameter.detach() for key, parameter in module.named_parameters()}
    tangents = {key: torch.randn_like(parameter) for key, parameter in parameters.items()}
    results = []
    for network in (module, oracle):

        def apply(parameters, x, network=network):
            return functional_call(network, parameters, (x,))

        gradient = grad(lambda *inputs, apply=apply: apply(*inputs).square().sum())
        results.append(
            [
                gradient(parameters, x),
                vmap(gradient, (None, 0))(parameters, x[:, None]),
                vmap(apply, (0, None))({key: torch.stack([p, 2 * p]) for key, p in parameters.items()}, x),
                jvp(apply, (parameters, x), (tangents, x)),
                jacrev(network)(x[:1, :, :2]),
            ]
        )
    assert_close(*results)


@RECOMPUTE
def test_second_derivatives(recompute):
    module, oracle, x = pair("auto", recompute)
    results = []
    for network in (module, oracle):
        leaf = x.clone().requires_grad_()
        (first,) = torch.autograd.grad(network(leaf).square().sum(), leaf, create_graph=True)
        results.append(torch.autograd.grad(first.square().sum(), [leaf, *network.parameters()]))
    assert_close(*results)


@pytest.mark.parametrize("by_row", [False, True], ids=["product", "rows"])
@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("spatial", [(5,), (5, 4), (1, 5), (3, 5, 4)], ids=str)
def test_the_projection_is_the_convolutions(spatial, channels_last, by_row, monkeypatch):
    """On a CPU, its result is channels-last for every input."""
    monkeypatch.setattr(criss_cross, "_is_faster_by_row", lambda x: by_row)
    module = CrissCrossAttention(8)
    x = torch.randn(2, *spatial, 8).movedim(-1, 1)
    x = (x if channels_last else x.contiguous()).requires_grad_()
    convolutions = (module.query_conv, module.key_conv, module.value_conv)
    parameters = [conv.weight for conv in convolutions] + [conv.bias for conv in convolutions]
    projected = criss_cross._project(x, *parameters)
    separate = torch.cat([criss_cross._apply_as_image(conv, x) for conv in convolutions], dim=1)
    assert projected.movedim(1, -1).is_contiguous()
    assert torch.allclose(projected, separate, atol=1e-5)
    upstream = torch.randn_like(projected)
    got, want = (torch.autograd.grad(result, [x, *parameters], upstream) for result in (projected, separate))
    for ours, theirs in zip(got, want, strict=True):
        assert torch.allclose(ours, theirs, atol=1e-4)


def test_few_rows_are_projected_by_row_with_several_threads_only(monkeypatch):
    monkeypatch.setattr(criss_cross, "prefers_onednn", lambda: True)
    few, enough = ((1, 8, 15, 40), (1, 8, 5, 3, 2), (15, 8, 40)), ((1, 8, 16, 1), (2, 8, 8, 3), (16, 8, 40))
    for threads in (1, 2):
        monkeypatch.setattr(torch, "get_num_threads", lambda threads=threads: threads)
        assert [criss_cross._is_faster_by_row(torch.empty(shape)) for shape in few] == [threads > 1] * 3
        assert all(criss_cross._is_faster_by_row(torch.empty(shape)) for shape in enough)
    assert not criss_cross._is_faster_by_row(torch.empty(0, 8, 16, 16))


@RECOMPUTE
@BACKENDS
def test_forward_mode(backend, recompute):
    module, oracle, x = pair(backend, recompute)
    with forward_ad.dual_level():
        dual = forward_ad.make_dual(x, torch.ones_like(x))
        assert_close(*(forward_ad.unpack_dual(network(dual)).tangent for network in (module, oracle)))


@BACKENDS
def test_batched_gradients(backend):
    """As ``torch.autograd.functional.jacobian(vectorize=True)`` computes them."""
    module, _, x = pair(backend)
    out, leaves = module(x), list(module.parameters())
    upstream = torch.randn(2, *out.shape)
    batched = torch.autograd.grad(out, leaves, upstream, is_grads_batched=True, retain_graph=True)
    want = [torch.autograd.grad(out, leaves, each, retain_graph=True) for each in upstream]
    assert_close(batched, [torch.stack(each) for each in zip(*want, strict=True)])


@BACKENDS
def test_gradients_are_those_of_the_weights_of_a_functional_call(backend):
    """The module has its own weights again when the backward pass projects again."""
    module, oracle, x = pair(backend)
    results = []
    for network in (module, oracle):
        others = {key: (1.5 * p.detach()).requires_grad_() for key, p in module.named_parameters()}
        out = functional_call(network, others, (x,))
        results.append(torch.autograd.grad(out.square().sum(), list(others.values())))
    assert_close(*results)


def test_projections_are_recomputed_under_the_autocast_of_the_forward_pass():
    """The backward pass usually runs outside of autocast."""
    x, results = torch.randn(2, 8, 3, 2), []
    module = RecurrentCrissCrossAttention(8, recurrence=2, gamma="fixed")
    for module.attention.recompute in (False, True):
        with torch.autocast("cpu", torch.bfloat16):
            out = module(x)
        results.append(torch.autograd.grad(out.sum(), list(module.parameters())))
    assert all(map(torch.equal, *results))


@pytest.mark.parametrize("changed", ["gamma", "query_conv.weight", "value_conv.bias", "x"])
@pytest.mark.parametrize("backend", ["auto", pytest.param("triton", marks=needs_interpreter)])
def test_an_in_place_change_before_the_backward_pass_is_an_error(backend, changed):
    module, _, x = pair(backend)
    module.query_conv.requires_grad_(False)
    out = module(x)
    with torch.no_grad():
        (x if changed == "x" else module.get_parameter(changed)).mul_(2)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        out.sum().backward()


@pytest.mark.parametrize("use_reentrant", [False, True])
@RECOMPUTE
@BACKENDS
def test_checkpoint(backend, recompute, use_reentrant):
    module, oracle, x = pair(backend, recompute)
    results = []
    for function in (lambda x: checkpoint(module, x, use_reentrant=use_reentrant), oracle):
        leaf = x.clone().requires_grad_()
        function(leaf).square().sum().backward()
        results.append(leaf.grad)
    assert_close(results, [results[1]] * 2)
    assert_close([p.grad for p in module.parameters()], [p.grad for p in oracle.parameters()])


@RECOMPUTE
@BACKENDS
def test_the_callers_hooks_get_every_saved_tensor(backend, recompute):
    """The module's own hooks would hide its tensors from those of a checkpoint around it, which would drop none."""
    module, _, x = pair(backend, recompute)
    packed = []
    with torch.autograd.graph.saved_tensors_hooks(lambda tensor: packed.append(tensor.shape), lambda _: None):
        module(x.requires_grad_())
    assert x.shape in packed
    assert module.gamma.shape in packed


@BACKENDS
def test_saved_tensor_hooks_may_be_forbidden(backend):
    module, oracle, x = pair(backend)
    with torch.autograd.graph.disable_saved_tensors_hooks("no hooks here"):
        assert_close(module(x), oracle(x))


@pytest.mark.parametrize("backend", ["auto", pytest.param("triton", marks=needs_interpreter)])
def test_compiles_without_a_graph_break(backend):
    module, oracle, x = pair(backend)
    compiled = torch.compile(module, fullgraph=True, backend="aot_eager")
    results = [
        torch.autograd.grad(network(x).square().sum(), list(owner.parameters()))
        for network, owner in ((compiled, module), (oracle, oracle))
    ]
    assert_close(*results)


@needs_interpreter
def test_compiled_autograd():
    """It traces the hooks that recompute the projections."""
    module, oracle, x = pair("triton")
    results = []
    for network in (module, oracle):
        leaf = x.clone().requires_grad_()
        loss = network(network(leaf)).square().sum()
        if network is oracle:
            loss.backward()
        else:
            with torch._dynamo.config.patch(compiled_autograd=True):
                torch.compile(lambda loss=loss: loss.backward(), backend="aot_eager")()
        results.append([leaf.grad, *(p.grad for p in network.parameters())])
    assert_close(*results)


def test_traces_with_gradients():
    module, _, x = pair("auto")
    traced = torch.jit.trace(module, (x,))
    x = torch.randn(1, 8, 4, 5)
    inputs = list(module.parameters())
    assert_close(*(torch.autograd.grad(network(x).square().sum(), inputs) for network in (traced, module)))


@pytest.mark.slow
@needs_inductor
def test_inductor_differentiates_clips_of_dynamic_size():
    module = CrissCrossAttention(16)
    nn.init.ones_(module.gamma)
    x = torch.randn(1, 16, 2, 3, 4, requires_grad=True)
    compiled = torch.compile(module, fullgraph=True, dynamic=True)
    inputs = [x, *module.parameters()]
    assert_close(*(torch.autograd.grad(network(x).square().sum(), inputs) for network in (compiled, module)))


@needs_inductor
def test_inductor_gives_the_gradients_of_the_reference_for_one_image():
    def attend(*arrays):
        return criss_cross_attention(*arrays, backend="reference").square().sum()

    arrays = [torch.randn(1, channels, 5, 7, requires_grad=True) for channels in (2, 2, 16)]
    compiled = torch.compile(attend, fullgraph=True)
    assert_close(*(torch.autograd.grad(function(*arrays), arrays) for function in (compiled, attend)))


@pytest.mark.parametrize("name", sorted(set(list_models()) - {"mask_rcnn"}))
def test_create_model_on_meta(name):
    """Mask R-CNN is built on meta too, but how many objects it finds depends on the image."""
    with torch.device("meta"):
        network = create_model(name, num_classes=3, backbone="resnet10t").eval()
        size = (2, 33, 33) if name.endswith("3d") else (33, 33)
        out = network(torch.rand(1, 3, *size))["out"]
    assert (out.shape, out.device.type) == ((1, 3, *size), "meta")


@BACKENDS
def test_a_module_built_on_meta_trains_once_it_has_weights(backend):
    with torch.device("meta"):
        module = CrissCrossAttention(8, gamma="fixed", backend=backend)
    module(torch.empty(2, 8, 3, 2, device="meta")).sum().backward()
    same = CrissCrossAttention(8, gamma="fixed", backend="reference")
    module.to_empty(device="cpu").load_state_dict(same.state_dict())
    x = torch.randn(2, 8, 3, 2)
    assert_close(module(x), same(x))


@pytest.mark.parametrize("backend", ["auto", pytest.param("triton", marks=needs_interpreter)])
def test_images_from_inference_mode_are_accepted_outside_of_it(backend):
    """They have no version, which the hooks that recompute the projections would read."""
    module, oracle, x = pair(backend)
    module.requires_grad_(False)
    with torch.inference_mode():
        same = x.clone()
    assert_close(module(same), oracle(x))


@RECOMPUTE
@pytest.mark.parametrize("size", [(5,), (3, 4), (2, 3, 4)], ids=str)
def test_projections_with_hooks_are_called(size, recompute):
    """Pruning recomputes the weights in a hook before each forward pass."""
    module, oracle, _ = pair("auto", recompute)
    x = torch.randn(2, 8, *size)
    prune.l1_unstructured(module.value_conv, "weight", 0.5)
    seen = []
    module.query_conv.register_forward_hook(lambda conv, inputs, output: seen.append(output.shape))
    with torch.no_grad():
        module.value_conv.weight_orig.mul_(2)
        oracle.value_conv.weight.mul_(2 * module.value_conv.weight_mask)
    for _ in range(2):  # a weight that is not recomputed would keep the graph of the first pass
        got = module(x)
        got.square().sum().backward()
    assert_close(got, oracle(x))
    assert len(seen) == 2


@pytest.mark.parametrize("kind", ["forward_pre", "forward", "full_backward_pre", "full_backward"])
def test_a_hook_of_any_kind_on_one_projection_is_called(kind):
    module, _, x = pair("auto")
    calls = []
    getattr(module.key_conv, f"register_{kind}_hook")(lambda *_: calls.append(kind))
    module(x).sum().backward()
    assert calls == [kind]


def test_projections_can_be_replaced():
    class Adapted(nn.Module):  # as in LoRA
        def __init__(self, conv):
            super().__init__()
            self.conv, self.added = conv, nn.Conv2d(8, conv.out_channels, 1, bias=False)

        def forward(self, x):
            return self.conv(x) + self.added(x)

    module, oracle, x = pair("auto")
    module.value_conv = Adapted(module.value_conv)
    with torch.no_grad():
        oracle.value_conv.weight += module.value_conv.added.weight
    module.query_conv = nn.Conv2d(8, 1, 3, padding=1)
    with torch.no_grad():
        module.query_conv.weight.zero_()
        module.query_conv.weight[:, :, 1:2, 1:2] = oracle.query_conv.weight
    module.query_conv.bias = oracle.query_conv.bias
    assert_close(module(x), oracle(x))


class Positive(nn.Conv2d):
    def _conv_forward(self, x, weight, bias):
        return super()._conv_forward(x, weight.abs(), bias)


def doubled(conv):
    """Replace the method of one module, as libraries that offload weights do."""
    forward = conv.forward
    conv.forward = lambda x: 2 * forward(x)
    return conv


@pytest.mark.parametrize(
    "value_conv",
    [Positive(8, 8, 1), doubled(nn.Conv2d(8, 8, 1)), nn.Conv2d(8, 8, 1, groups=4), nn.Conv2d(8, 8, 1, bias=False)],
    ids=["subclass", "replaced method", "groups", "no bias"],
)
def test_projections_with_another_computation_are_called(value_conv):
    module, _, x = pair("auto")
    module.value_conv = value_conv
    query, key, value = module.query_conv(x), module.key_conv(x), value_conv(x)
    assert_close(module(x), criss_cross_attention(query, key, value) + x)


@pytest.mark.parametrize("shape", [(8, 3, 4), (2, 4, 3, 4), (2, 8), (1, 8, 2, 2, 2, 2)], ids=str)
def test_an_error_names_the_expected_shape(shape):
    with pytest.raises(ValueError, match=r"expected \(N, 8, \*S\).*got \(" + ", ".join(map(str, shape))):
        CrissCrossAttention(8)(torch.randn(shape))
