"""The operator on JAX arrays: agreement with the torch reference, transformations, and JAX's switches."""

from contextlib import ExitStack
from functools import partial

import numpy as np
import pytest
import torch
from jax_calls import OPERATORS, agree, jax_result, make, torch_result, used
from test_reference import CASES

from ccnet.kernels import criss_cross_attention, criss_cross_residual, criss_cross_weights, fallback

jax = pytest.importorskip("jax", reason="JAX is not installed: pip install -e '.[jax]'")
import jax.numpy as jnp  # noqa: E402
from jax.sharding import Mesh, PartitionSpec  # noqa: E402

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("jax_float64")]


# The formula is torch's, which passes the others of these cases, too.
@pytest.mark.parametrize(("spatial", "axes"), [case for case in CASES if case[0] not in ((6, 1), (2, 1, 1))], ids=str)
def test_reference_equals_torch_in_float64(spatial, axes):
    arrays = make(spatial)
    function = OPERATORS[len(axes) % 2]
    args = used(function, arrays), arrays[3]
    options = {"axes": axes, "scale": 0.7, "channel_axis": -1}
    agree(jax_result(function, *args, **options), torch_result(function, *args, **options), 1e-10)


@pytest.mark.parametrize(
    ("spatial", "axes"), [((4, 5), (0, 1)), ((4, 5), (1,)), ((2, 3, 4), (0, 1, 2)), ((2, 3, 4), (0, 2))], ids=str
)
def test_the_primitives_equal_torch_in_float32(spatial, axes):
    """They have a backward pass of their own, in which a scale is a factor of two gradients."""
    arrays = make(spatial, dtype=np.float32)
    for function in OPERATORS:
        args = used(function, arrays), arrays[3]
        options = {"axes": axes, "scale": 0.7, "channel_axis": -1}
        want = torch_result(function, *args, **options)
        agree(jax_result(function, *args, **options), want, 1e-5)
        agree([jax.jit(partial(function, **options))(*args[0])], want[:1], 1e-5)  # without a derivative


@pytest.mark.parametrize("dtype", [np.float64, np.float32], ids=lambda dtype: dtype.__name__)
@pytest.mark.parametrize("spatial", [(6,), (4, 5), (2, 3, 4)], ids=str)
def test_channels_first_equals_channels_last(spatial, dtype):
    """float32 uses the primitives, whose arrays are channels-last, float64 the reference."""
    arrays = make(spatial, dtype=dtype)
    want = np.asarray(jax.jit(partial(criss_cross_residual, channel_axis=-1))(*arrays))
    first = [np.moveaxis(array, -1, 1) for array in arrays[:4]]
    got = np.asarray(jax.jit(criss_cross_residual)(*first, arrays[4]))
    assert np.abs(np.moveaxis(got, 1, -1) - want).max() < (1e-12 if dtype is np.float64 else 1e-5)


@pytest.mark.parametrize("dtype", [np.float64, np.float32], ids=lambda dtype: dtype.__name__)
@pytest.mark.parametrize("function", OPERATORS)
def test_jit_grad_and_vmap_agree(function, dtype):
    """float32 uses the primitives that lower to kernels on a GPU, float64 the reference."""
    arrays = [jax.device_put(array) for array in used(function, make((4, 5), batch=6, dtype=dtype))]
    attend = partial(function, channel_axis=-1)
    tolerance = 1e-10 if dtype is np.float64 else 1e-5
    images, gamma = arrays[:4], arrays[4:]

    def loss(*arrays):
        return (jnp.sin(attend(*arrays)) * jnp.arange(5, dtype=dtype)).sum()

    numbers = tuple(range(len(arrays)))
    want, gradients = attend(*arrays), jax.jit(jax.grad(loss, numbers))(*arrays)
    agree([jax.jit(attend)(*arrays)], [want], tolerance)

    folded = [image.reshape(3, 2, *image.shape[1:]) for image in images]
    axes = (0,) * len(images) + (None,) * len(gamma)
    agree([jax.vmap(attend, axes)(*folded, *gamma).reshape(want.shape)], [want], tolerance)
    total = jax.jit(jax.grad(lambda *arrays: jax.vmap(loss, axes)(*arrays).sum(), numbers))
    mapped = [g.reshape(a.shape) for g, a in zip(total(*folded, *gamma), arrays, strict=True)]
    agree(mapped, gradients, tolerance * (1 if dtype is np.float64 else 10))


def test_vmap_over_gamma_and_over_one_argument():
    *images, gamma = (jax.device_put(array) for array in make((4, 5), dtype=np.float32))
    attend = partial(criss_cross_residual, channel_axis=-1)
    gammas = jnp.stack([gamma, 2 * gamma, 3 * gamma])
    want = jnp.stack([attend(*images, each) for each in gammas])
    agree([jax.vmap(attend, (None,) * 4 + (0,))(*images, gammas)], [want], 1e-5)

    def loss(gamma, value):
        return (attend(*images[:2], value, images[3], gamma) ** 2).sum()

    each = [jax.grad(loss, (0, 1))(gamma, images[2]) for gamma in gammas]
    mapped = jax.vmap(jax.grad(loss, (0, 1)), (0, None))(gammas, images[2])
    agree(mapped, [jnp.stack(parts) for parts in zip(*each, strict=True)], 1e-3)


def test_shard_map_over_the_batch():
    """Each shard attends within its own images; the gradient of the shared gamma is summed over the shards."""
    mesh = Mesh(np.array(jax.devices()[:2]), ("batch",))
    split, whole = PartitionSpec("batch"), PartitionSpec()
    arrays = [jax.device_put(array) for array in make((4, 5), dtype=np.float32)]
    attend = partial(criss_cross_residual, channel_axis=-1)
    sharded = jax.shard_map(attend, mesh=mesh, in_specs=(split,) * 4 + (whole,), out_specs=split)
    numbers = tuple(range(5))
    losses = [lambda *arrays, f=f: (f(*arrays) ** 2).sum() for f in (sharded, attend)]
    agree([jax.jit(sharded)(*arrays)], [attend(*arrays)], 1e-6)
    agree(*(jax.jit(jax.grad(loss, numbers))(*arrays) for loss in losses), 1e-4)


@pytest.mark.parametrize(("dtype", "tolerance"), [("float16", 2e-3), ("bfloat16", 2e-2)])
def test_half_precision_is_widened(dtype, tolerance):
    arrays = [jnp.asarray(array).astype(dtype) for array in make((6, 5))]
    wide = [np.array(array.astype(jnp.float64)) for array in arrays]
    got = criss_cross_residual(*arrays, channel_axis=-1)
    want = criss_cross_residual(*map(torch.from_numpy, wide), channel_axis=-1).numpy()
    assert got.dtype == dtype
    assert np.abs(np.asarray(got, np.float64) - want).max() < 2 * tolerance
    assert jnp.isfinite(criss_cross_attention(*(40 * array for array in arrays[:3]), channel_axis=-1)).all()


@pytest.mark.parametrize("recurrence", [1, 2])
@pytest.mark.parametrize("spatial", [(5,), (4, 5), (2, 3, 4)], ids=str)
def test_weights_equal_torch(spatial, recurrence):
    query, key, *_ = make(spatial)
    position = tuple(size - 1 for size in spatial)
    options = {"recurrence": recurrence, "channel_axis": -1}
    single = [array.astype(np.float32) for array in (query, key)]
    weigh = partial(criss_cross_weights, position=position, **options)
    assert jax.eval_shape(partial(weigh, scale=np.float64(0.5)), *single).dtype == jnp.float32
    got = jax.jit(weigh)(query, key)
    want = criss_cross_weights(torch.from_numpy(query), torch.from_numpy(key), position, **options)
    assert np.abs(np.asarray(got) - want.numpy()).max() < 1e-12


def test_empty_batch():
    arrays = [jax.device_put(array) for array in make((4, 5), batch=0, dtype=np.float32)]
    out, backward = jax.vjp(partial(criss_cross_residual, channel_axis=-1), *arrays)
    assert out.shape == (0, 4, 5, 5)
    assert backward(out)[4] == 0


def test_bad_input_is_rejected():
    query, key, value = (jnp.moveaxis(array, -1, 1) for array in make((4, 5), dtype=np.float32)[:3])
    with pytest.raises(ValueError, match="query and key must have the same shape"):
        jax.jit(criss_cross_attention)(query, key[:, 1:], value)
    with pytest.raises(ValueError, match="value float64: cast them"):
        criss_cross_attention(query, key, value.astype(jnp.float64))
    with pytest.raises(ValueError, match=r"and torch\.Tensor: pass only torch tensors or only jax arrays"):
        criss_cross_attention(query, torch.zeros(query.shape), value)
    with pytest.raises(ValueError, match=r"scale must be a number or an array with one element, got .* shape \(5,\)"):
        criss_cross_attention(query, key, value, scale=jnp.ones(5))  # would scale the columns
    with pytest.raises(ValueError, match="scale must be a number or an array with one element, got str"):
        criss_cross_weights(query, key, (0, 0), scale="0.5")
    with pytest.raises(ValueError, match="kernels support float16, bfloat16, float32, not float64"):
        criss_cross_attention(*(array.astype(jnp.float64) for array in (query, key, value)), backend="triton")
    with pytest.raises(ValueError, match="lowered for a platform other than CUDA"):
        jax.jit(partial(criss_cross_attention, backend="triton"))(query, key, value)


def test_more_query_channels_than_the_kernels_hold(monkeypatch, caplog):
    query, key, value, *_ = (jax.device_put(array) for array in make((2, 3), d=129, dtype=np.float32))
    fallback.warn_once.cache_clear()
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")  # elsewhere, there is nothing to fall back from
    attend = partial(criss_cross_attention, channel_axis=-1)
    got, want = (attend(query, key, value, backend=backend) for backend in ("auto", "reference"))
    assert jnp.array_equal(got, want)
    assert "falls back to the reference: more than 128 query channels do not fit on chip" in caplog.text
    with pytest.raises(ValueError, match="more than 128 query channels do not fit on chip; use backend='reference'"):
        attend(query, key, value, backend="triton")


@pytest.mark.parametrize("function", OPERATORS)
def test_forward_mode_and_higher_derivatives(function):
    """float32 uses the primitives, whose tangents and second derivatives come from the reference."""
    arrays = tuple(used(function, make((3, 4), dtype=np.float32)))
    tangents = tuple(np.cos(3 * array) for array in arrays)
    numbers = tuple(range(len(arrays)))

    def results(arrays, tangents, backend):
        attend = partial(function, channel_axis=-1, backend=backend)

        def change(*arrays):
            return jax.jvp(attend, arrays, tangents)[1]

        def slopes(*arrays):
            return jax.grad(lambda *arrays: jnp.sin(attend(*arrays)).sum(), numbers)(*arrays)

        def along(*arrays):
            return jax.jvp(slopes, arrays, tangents)[1]

        def squares(function):
            return jax.grad(
                lambda *arrays: sum((each**2).sum() for each in jax.tree.leaves(function(*arrays))), numbers
            )

        linear = jax.linearize(attend, *arrays)[1]
        transformed = [change(*arrays), jax.jvp(jax.jit(attend), arrays, tangents)[1]]
        transformed.append(jax.vmap(linear)(*(jnp.stack([array, 2 * array]) for array in arrays)))
        return transformed + [each for second in (along, squares(slopes), squares(change)) for each in second(*arrays)]

    programs = [jax.jit(partial(results, backend=backend)) for backend in ("auto", "reference")]
    agree(*(program(arrays, tangents) for program in programs), 1e-4)


def test_a_gradient_computes_no_tangent():
    arrays = [jax.device_put(array) for array in make((3, 4), dtype=np.float32)]
    text = str(jax.make_jaxpr(jax.grad(lambda *arrays: criss_cross_residual(*arrays, channel_axis=-1).sum()))(*arrays))
    assert text.count("criss_cross_forward[") == text.count("criss_cross_backward[") == 1
    assert "criss_cross_tangent[" not in text


# ---- JAX's own switches


def test_the_operator_works_under_jaxs_switches():
    arrays = [jax.device_put(array) for array in make((3, 4), dtype=np.float32)]
    attend = partial(criss_cross_residual, channel_axis=-1)
    half = [*(array.astype(jnp.bfloat16) for array in arrays[:3]), *arrays[3:]]  # the residual and gamma are float32
    want = [jax.grad(lambda *arrays: attend(*arrays).sum(), range(5))(*case) for case in (arrays, half)]
    for switches in (
        [jax.disable_jit()],
        [jax.debug_nans(True)],
        [jax.numpy_dtype_promotion("strict"), jax.numpy_rank_promotion("raise"), jax.checking_leaks()],
    ):
        with ExitStack() as stack:
            for switch in switches:
                stack.enter_context(switch)
            for case, expected in zip((arrays, half), want, strict=True):
                got = jax.grad(lambda *arrays: attend(*arrays).sum(), range(5))(*case)
                agree([a.astype(jnp.float32) for a in got], [b.astype(jnp.float32) for b in expected], 2e-2)


def test_weights_in_half_precision_ignore_strict_promotion():
    query, key = (jnp.asarray(array, jnp.bfloat16) for array in make((3, 4))[:2])
    want = criss_cross_weights(query, key, (1, 2), channel_axis=-1)
    with jax.numpy_dtype_promotion("strict"):
        got = criss_cross_weights(query, key, (1, 2), channel_axis=-1)
    assert got.dtype == want.dtype and jnp.array_equal(got, want)


def test_check_grads_passes_numpy_arrays():
    from jax.test_util import check_grads

    check_grads(partial(criss_cross_residual, channel_axis=-1), tuple(make((3, 4))), order=1, modes=["rev"])


def test_a_learned_scale_and_an_empty_vmap():
    query, key, value = (jax.device_put(array) for array in make((3, 4), dtype=np.float32)[:3])
    attend = partial(criss_cross_attention, channel_axis=-1)
    slope = jax.jit(jax.grad(lambda scale: attend(query, key, value, scale=scale).sum()))(jnp.float32(0.7))
    reference = jax.grad(lambda factor: attend(factor * query, key, value).sum())(0.7)
    assert float(slope) == pytest.approx(float(reference), rel=1e-3, abs=1e-4)
    half = [array.astype(jnp.bfloat16) for array in (query, key, value)]
    scaled = (half[0] * jnp.float32(0.7)).astype(jnp.bfloat16)  # the kernels need queries and keys of one dtype
    assert jnp.array_equal(attend(*half, scale=jnp.float32(0.7)), attend(scaled, *half[1:]))
    nothing = [jnp.zeros((0, *array.shape), array.dtype) for array in (query, key, value)]
    assert jax.vmap(attend)(*nothing).shape[0] == 0


def test_unsupported_calls_are_explained():
    query, key, value, residual, gamma = (jax.device_put(array) for array in make((3, 4), dtype=np.float32))
    attend = partial(criss_cross_residual, channel_axis=-1)
    with pytest.raises(ValueError, match="expected residual in float16, bfloat16, float32, float64, got int32"):
        attend(query, key, value, residual.astype(jnp.int32), gamma)
    with pytest.raises(ValueError, match="expected gamma in float16, bfloat16, float32, float64, got int32"):
        attend(query, key, value, residual, gamma.astype(jnp.int32))
    with pytest.raises(ValueError, match="pass channel_axis=-1 if channels are in that position"):
        criss_cross_attention(query, key, value)
