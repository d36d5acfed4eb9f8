"""The CPU formula of the JAX convolution equals XLA's convolution in every derivative, and stays on the CPU."""

from functools import partial

import numpy as np
import pytest

jax = pytest.importorskip("jax", reason="JAX is not installed: pip install -e '.[jax]'")
import jax.numpy as jnp  # noqa: E402
from jax.sharding import AxisType, NamedSharding, PartitionSpec  # noqa: E402

from ccnet.models.nnx import convolution  # noqa: E402
from ccnet.models.nnx.convolution import convolve  # noqa: E402

OPERATIONS = ("convolution", "dot_general", "while")

# Input shape, kernel shape, and the settings: stride, padding, dilation, groups.
CASES = {
    "1x1": ((2, 5, 6, 4), (1, 1, 4, 3), (1, 1), ((0, 0), (0, 0)), (1, 1), 1),
    "1x1, stride and padding": ((2, 6, 5, 4), (1, 1, 4, 3), (2, 3), ((1, 0), (2, 1)), (1, 1), 1),
    "3x3": ((2, 6, 5, 4), (3, 3, 4, 3), (1, 1), ((1, 1), (1, 1)), (1, 1), 1),
    "3x3, stride": ((1, 7, 8, 3), (3, 3, 3, 4), (2, 2), ((1, 1), (1, 1)), (1, 1), 1),
    "2x5, dilation": ((1, 9, 11, 3), (2, 5, 3, 2), (1, 2), ((3, 1), (0, 4)), (4, 2), 1),
    "3x3, same, dilation": ((1, 7, 8, 2), (3, 3, 2, 2), (1, 2), "SAME", (2, 3), 1),
    "4x4, valid": ((1, 8, 9, 3), (4, 4, 3, 4), (4, 4), "VALID", (1, 1), 1),
    "groups": ((2, 7, 6, 6), (3, 3, 2, 9), (2, 1), ((2, 2), (2, 2)), (2, 2), 3),
    "1x1, groups": ((2, 4, 3, 6), (1, 1, 2, 9), (1, 1), ((0, 0), (0, 0)), (1, 1), 3),
    "depthwise": ((2, 7, 6, 4), (3, 3, 1, 4), (2, 1), ((2, 2), (1, 1)), (2, 1), 4),
    "depthwise, more outputs": ((1, 5, 5, 3), (3, 3, 1, 6), (1, 1), "SAME", (1, 1), 3),
}


@pytest.fixture(autouse=True)
def _narrow(monkeypatch):
    monkeypatch.setattr(convolution, "_WIDE", 1)  # so that small arrays take the CPU formula
    monkeypatch.setattr(jax, "device_count", lambda backend: 1)  # so that kernels of several taps take it


def case(name, dtype=np.float32):
    """Return input, kernel, our convolution and XLA's."""
    shape, kernel, stride, padding, dilation, groups = CASES[name]
    draw = np.random.default_rng(0).standard_normal
    settings = {"stride": stride, "padding": padding, "dilation": dilation, "groups": groups}
    arrays = draw(shape).astype(dtype), draw(kernel).astype(dtype)
    return *arrays, partial(convolve, **settings), partial(convolution._plain, **settings)


def derivatives(function, x, kernel):
    """Return the value, both gradients, a directional derivative, and the gradients of a function of the gradients."""

    def gradients(x, kernel):
        y, back = jax.vjp(function, x, kernel)
        return y, back(jnp.cos(y))

    def penalty(x, kernel):
        return sum((gradient**2).sum() for gradient in gradients(x, kernel)[1])

    directional = jax.jvp(function, (x, kernel), (jnp.sin(x), jnp.cos(kernel)))[1]
    return *gradients(x, kernel), directional, jax.grad(penalty, (0, 1))(x, kernel)


def assert_close(ours, theirs, tolerance):
    for one, other in zip(*map(jax.tree.leaves, jax.device_get((ours, theirs))), strict=True):
        assert (one.shape, one.dtype) == (other.shape, other.dtype)
        assert abs(one - other).max() <= tolerance * abs(other).max()


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
def test_all_derivatives_equal_those_of_xla_in_float64(name):
    with jax.enable_x64(True):
        x, kernel, ours, plain = case(name, np.float64)
        ours_at, theirs_at = (jax.jit(partial(derivatives, function))(x, kernel) for function in (ours, plain))
        assert_close(ours_at, theirs_at, 1e-12)


@pytest.mark.parametrize("name", ["3x3", "depthwise"])
def test_the_convolution_under_vmap_and_in_low_precision(name):
    x, kernel, ours, plain = case(name)
    xs, kernels = np.stack([x, 2 * x]), np.stack([kernel, kernel + 1])
    assert_close(*(jax.jit(jax.vmap(function))(xs, kernels) for function in (ours, plain)), 1e-5)
    half = np.asarray(jax.jit(ours)(x.astype(jnp.bfloat16), kernel.astype(jnp.bfloat16)))
    assert half.dtype == jnp.bfloat16
    rounded = [array.astype(jnp.bfloat16).astype(np.float32) for array in (x, kernel)]
    assert_close(half.astype(np.float32), plain(*rounded), 2**-8)  # only the sum is rounded


@pytest.mark.parametrize("name", ["1x1", "3x3", "groups", "depthwise"])
def test_programs_for_gpus_contain_the_plain_convolution(name):
    x, kernel, ours, plain = case(name)

    def lowered(function, platform):
        gradients = jax.jit(jax.grad(lambda x, kernel: jnp.sin(function(x, kernel)).sum(), (0, 1)))
        text = gradients.trace(x, kernel).lower(lowering_platforms=(platform,)).as_text()
        return {
            operation: text.count(f"stablehlo.{operation}") for operation in ("convolution", "dot_general", "while")
        }

    assert lowered(ours, "cuda") == lowered(plain, "cuda") == {"convolution": 3, "dot_general": 0, "while": 0}
    assert lowered(ours, "cpu")["convolution"] == 0


def test_grouped_and_wide_kernels_become_products_on_a_cpu_and_narrow_ones_do_not(monkeypatch):
    monkeypatch.setattr(convolution, "_WIDE", 12)  # the product of channels in the case "3x3"
    for name, plain in (("3x3", 0), ("3x3, stride", 0), ("2x5, dilation", 1), ("groups", 0), ("depthwise", 0)):
        x, kernel, ours, _ = case(name)
        assert jax.jit(ours).lower(x, kernel).as_text().count("stablehlo.convolution") == plain, name


def test_programs_for_several_devices_contain_no_loops(monkeypatch):
    x, kernel, ours, _ = case("groups")
    assert "while" in jax.jit(ours).lower(x, kernel).as_text()
    # An all-reduce inside a loop can deadlock on a CPU.
    monkeypatch.setattr(jax, "device_count", lambda backend: {"cpu": 2}.get(backend, 1))
    assert "while" not in jax.jit(lambda *arrays: ours(*arrays)).lower(x, kernel).as_text()


@pytest.mark.parametrize("kind", [AxisType.Auto, AxisType.Explicit], ids=str)
@pytest.mark.parametrize("name", ["1x1", "groups"])
def test_a_sharded_batch_gives_the_same_gradients(name, kind, monkeypatch):
    monkeypatch.undo()
    x, kernel, ours, plain = case(name)
    x = np.concatenate([x, 2 * x])

    def gradients(function, x, kernel):
        return jax.grad(lambda x, kernel: jnp.sin(function(x, kernel)).sum(), (0, 1))(x, kernel)

    expected = jax.jit(partial(gradients, plain))(x, kernel)
    mesh = jax.make_mesh((4,), ("data",), axis_types=(kind,))
    split, everywhere = PartitionSpec("data"), PartitionSpec()
    with jax.set_mesh(mesh):
        placed = jax.device_put((x, kernel), (NamedSharding(mesh, split), NamedSharding(mesh, everywhere)))
        assert_close(jax.device_get(jax.jit(partial(gradients, ours))(*placed)), jax.device_get(expected), 1e-5)
        manual = jax.shard_map(partial(gradients, ours), in_specs=(split, everywhere), out_specs=(split, everywhere))
        assert_close(jax.device_get(jax.jit(manual)(*placed)), jax.device_get(expected), 1e-5)
