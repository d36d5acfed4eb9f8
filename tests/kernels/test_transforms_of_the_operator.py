"""Forward mode, torch.func, checkpoint, meta and fake tensors through the operator, on each backend.

Expectations come from the formula in float64, differentiated in reverse mode where the subject is another mode.
"""

from functools import partial

import pytest
import torch
from torch.autograd import forward_ad
from torch.func import functional_call, grad, hessian, jacfwd, jacrev, jvp, vjp, vmap
from torch.utils.checkpoint import checkpoint

from ccnet.kernels import criss_cross_attention, criss_cross_residual, criss_cross_weights

pytest.importorskip("triton", reason="triton is not installed")
from ccnet.kernels.torch_ops import transforms
from ccnet.kernels.torch_ops.launch import is_interpreted

pytestmark = [
    pytest.mark.slow,
    pytest.mark.usefixtures("operators_on_small_calls"),
    pytest.mark.skipif(not is_interpreted(), reason="TRITON_INTERPRET=1 was not set before triton was imported"),
    pytest.mark.filterwarnings("error:There is a performance drop"),
]
BACKENDS = pytest.mark.parametrize("backend", ["triton", "reference", "auto"])
OPERATORS = pytest.mark.parametrize(
    "operator", [criss_cross_attention, criss_cross_residual], ids=["attention", "residual"]
)


def call(operator, backend):
    return lambda *arrays: operator(*arrays, backend=backend)


def loss(function):
    return lambda *arrays: function(*arrays).square().sum()


def make(operator, *, spatial=(3, 2), leading=()):
    arrays = [torch.randn(*leading, 1, channels, *spatial) for channels in (4, 4, 5, 5)]
    arrays.append(torch.rand(*leading, 1))
    return tuple(arrays[:3] if operator is criss_cross_attention else arrays)


def oracle(operator):
    return lambda *arrays: operator(*(array.double() for array in arrays), backend="reference")


def assert_close(got, want):
    got, want = torch.utils._pytree.tree_leaves(got), torch.utils._pytree.tree_leaves(want)
    for ours, theirs in zip(got, want, strict=True):
        assert (ours - theirs).abs().max() < 1e-4


def pushed_forward(function, arrays, tangents):
    """Return the Jacobian in reverse mode times the tangents."""
    jacobians = torch.autograd.functional.jacobian(function, arrays)
    return sum(
        torch.tensordot(one, tangent.to(one.dtype), tangent.ndim)
        for one, tangent in zip(jacobians, tangents, strict=True)
    )


@BACKENDS
@OPERATORS
def test_forward_mode(operator, backend):
    arrays, tangents = make(operator), make(operator)
    want = pushed_forward(oracle(operator), arrays, tangents)
    function = call(operator, backend)
    assert_close(jvp(function, arrays, tangents)[1], want)
    with forward_ad.dual_level():
        duals = map(forward_ad.make_dual, arrays, tangents)
        assert_close(forward_ad.unpack_dual(function(*duals)).tangent, want)


@BACKENDS
@OPERATORS
def test_grad_and_vjp(operator, backend):
    arrays, indices = make(operator), tuple(range(len(make(operator))))
    function, leaves = call(operator, backend), [array.clone().requires_grad_() for array in arrays]
    want = torch.autograd.grad(loss(oracle(operator))(*leaves), leaves)
    assert_close(grad(loss(function), indices)(*arrays), want)
    out, pull = vjp(function, *arrays)
    assert_close(pull(2 * out), want)


@BACKENDS
@OPERATORS
def test_vmap_and_vmap_of_grad(operator, backend):
    stacked, indices = make(operator, leading=(2,)), tuple(range(len(make(operator))))
    rows = list(zip(*stacked, strict=True))
    function = call(operator, backend)
    assert_close(vmap(function)(*stacked), torch.stack([oracle(operator)(*row) for row in rows]))
    want = [grad(loss(oracle(operator)), indices)(*row) for row in rows]
    assert_close(vmap(grad(loss(function), indices))(*stacked), [torch.stack(each) for each in zip(*want, strict=True)])
    some = vmap(function, (0, *[None] * (len(stacked) - 1)))(stacked[0], *rows[0][1:])
    assert_close(some[1], oracle(operator)(rows[1][0], *rows[0][1:]))


@BACKENDS
@OPERATORS
def test_jacobians(operator, backend):
    arrays = make(operator, spatial=(2, 2))
    indices, function = tuple(range(len(arrays))), call(operator, backend)
    want = torch.autograd.functional.jacobian(oracle(operator), arrays)
    assert_close(jacrev(function, indices)(*arrays), want)
    assert_close(jacfwd(function, indices)(*arrays), want)
    assert_close(torch.autograd.functional.jacobian(function, arrays, vectorize=True), want)
    assert_close(torch.autograd.functional.jacobian(function, arrays, vectorize=True, strategy="forward-mode"), want)


@BACKENDS
def test_second_derivatives_in_torch_func(backend):
    arrays = make(criss_cross_attention, spatial=(2,))
    want = torch.autograd.functional.hessian(loss(oracle(criss_cross_attention)), arrays)
    assert_close(hessian(loss(call(criss_cross_attention, backend)), (0, 1, 2))(*arrays), want)


@OPERATORS
def test_a_tangent_of_the_gradient_passes_the_kernels_backward(operator):
    """The backward pass is linear in the arriving gradient, so its tangent is the backward pass of the tangent."""
    arrays = [array.requires_grad_() for array in make(operator)]
    out = call(operator, "triton")(*arrays)
    upstream, tangent = torch.randn_like(out), torch.randn_like(out)
    want = torch.autograd.grad(out, arrays, tangent, retain_graph=True)
    with forward_ad.dual_level():
        gradients = torch.autograd.grad(out, arrays, forward_ad.make_dual(upstream, tangent))
        assert_close([forward_ad.unpack_dual(one).tangent for one in gradients], want)


@OPERATORS
def test_batched_gradients(operator):
    arrays = [array.requires_grad_() for array in make(operator)]
    out = call(operator, "triton")(*arrays)
    upstream = torch.randn(2, *out.shape)
    batched = torch.autograd.grad(out, arrays, upstream, is_grads_batched=True, retain_graph=True)
    want = [torch.autograd.grad(out, arrays, each, retain_graph=True) for each in upstream]
    assert_close(batched, [torch.stack(each) for each in zip(*want, strict=True)])


class Undefined(torch.autograd.Function):
    """The identity, without a gradient."""

    @staticmethod
    def forward(ctx, array):
        return array.clone()

    @staticmethod
    def backward(ctx, gradient):
        return None


@BACKENDS
@OPERATORS
def test_a_result_without_a_gradient_gives_none(operator, backend):
    arrays = [array.requires_grad_() for array in make(operator)]
    out = Undefined.apply(call(operator, backend)(*arrays))
    gradients = torch.autograd.grad(out.sum(), arrays, allow_unused=True)
    assert all(gradient is None or not gradient.any() for gradient in gradients)


@pytest.mark.parametrize("use_reentrant", [False, True])
@BACKENDS
@OPERATORS
def test_checkpoint(operator, backend, use_reentrant):
    results = []
    for function in (oracle(operator), lambda *a: checkpoint(call(operator, backend), *a, use_reentrant=use_reentrant)):
        torch.manual_seed(0)
        arrays = [array.requires_grad_() for array in make(operator)]
        loss(function)(*arrays).backward(retain_graph=True)
        results.append([array.grad.clone() for array in arrays])
    assert_close(*results)


@pytest.mark.parametrize("channel_axis", [1, -1])
@BACKENDS
@OPERATORS
def test_a_result_may_be_changed_in_place(operator, backend, channel_axis):
    """As by nn.ReLU(inplace=True); the kernels save the result of attention without a residual, and torch says so."""
    arrays = [array.requires_grad_() for array in make(operator, spatial=(4, 4))]  # 4 channels and pixels: any layout
    arrays = [*arrays[:2], arrays[1], arrays[0], *arrays[4:]][: len(arrays)]
    changed = operator(*arrays, backend=backend, channel_axis=channel_axis).relu_()
    if backend == "triton" and operator is criss_cross_attention:
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            changed.sum().backward()
        return
    want = oracle(partial(operator, channel_axis=channel_axis))(*arrays).relu()
    leaves = [arrays[0], arrays[1], *arrays[4:]]
    assert_close(*(torch.autograd.grad(out.square().sum(), leaves) for out in (changed, want)))


@BACKENDS
def test_functional_call(backend):
    class Module(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.gamma = torch.nn.Parameter(torch.zeros(1))

        def forward(self, *arrays):
            return criss_cross_residual(*arrays, self.gamma, backend=backend)

    *arrays, gamma = make(criss_cross_residual)
    got = grad(lambda gamma: functional_call(Module(), {"gamma": gamma}, tuple(arrays)).square().sum())(gamma)
    assert_close(got, grad(loss(oracle(criss_cross_residual)), 4)(*arrays, gamma))


@BACKENDS
@OPERATORS
def test_meta_and_fake_tensors(operator, backend):
    from torch._subclasses.fake_tensor import FakeTensorMode

    with FakeTensorMode() as mode:
        fake = [mode.from_tensor(array).requires_grad_() for array in make(operator)]
        meta = [array.to("meta").requires_grad_() for array in make(operator)]
        for arrays, device in ((fake, "cpu"), (meta, "meta")):
            out = call(operator, backend)(*arrays)
            assert (out.shape, out.device.type) == (arrays[2].shape, device)
            gradients = torch.autograd.grad(out.sum(), arrays)
            assert [gradient.shape for gradient in gradients] == [array.shape for array in arrays]


def test_meta_tensors_give_weights():
    weights = criss_cross_weights(*torch.empty(2, 1, 4, 3, 2, device="meta"), (0, 1), recurrence=2)
    assert (weights.shape, weights.device.type) == ((1, 3, 2), "meta")


def test_meta_tensors_have_the_kernels_limits():
    arrays = [torch.empty(1, 300, 2, 2, device="meta")] * 3
    with pytest.raises(ValueError, match="more than 128 query channels"):
        criss_cross_attention(*arrays, backend="triton")


def test_only_exports_count_as_exports():
    """Otherwise compiled networks would use the formula in place of the kernels."""

    class Network(torch.nn.Module):
        def forward(self, x):
            return x + 1 if transforms.is_exporting() else x - 1

    network, x = Network(), torch.zeros(2)
    assert (torch.compile(network, backend="eager", fullgraph=True)(x) == -1).all()
    assert (torch.export.export(network, (x,)).module()(x) == 1).all()
    assert (torch.jit.trace(network, (x,))(x) == 1).all()


def test_compiled_transforms():
    arrays = make(criss_cross_attention, leading=(2,))
    function = vmap(grad(loss(call(criss_cross_attention, "triton"))))
    compiled = torch.compile(function, fullgraph=True, backend="aot_eager")
    assert_close(compiled(*arrays), function(*arrays))


@pytest.mark.parametrize("has_gamma", [False, True])
def test_opcheck_of_the_backward_operator(has_gamma):
    query, key, value, residual, gamma = make(criss_cross_residual)
    options = ([0, 1], 1.0, "tf32x3", 1)
    out, stats = torch.ops.ccnet.criss_cross.default(query, key, value, *options)
    for joined in (False, True):
        arguments = (query, key, value, out, stats, residual, gamma if has_gamma else None, *options, joined)
        torch.library.opcheck(torch.ops.ccnet.criss_cross_backward.default, arguments)
