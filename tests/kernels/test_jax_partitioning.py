"""The operator in programs that run on several devices: the users' own meshes, with and without explicit axis types."""

from functools import partial

import numpy as np
import pytest
from conftest import jax_cache

from ccnet.kernels import criss_cross_residual, criss_cross_weights

jax = pytest.importorskip("jax", reason="JAX is not installed: pip install -e '.[jax]'")
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec  # noqa: E402

pytestmark = pytest.mark.slow

SHAPE = (4, 4, 6)  # N and S


@pytest.fixture(scope="module")
def arrays():
    """Return query, key, value, residual and gamma."""
    generator = np.random.default_rng(0)
    images = [generator.standard_normal((*SHAPE, channels), np.float32) for channels in (3, 3, 8, 8)]
    return jax.device_put([*images, np.ones(1, np.float32)])


def both(*arrays, **options):
    """Return the output and the gradients with respect to all arrays."""

    def loss(*arrays):
        out = criss_cross_residual(*arrays, channel_axis=-1, **options)
        return (out**2).sum(), out

    (_, out), gradients = jax.value_and_grad(loss, range(5), has_aux=True)(*arrays)
    return out, *gradients


def mesh(**sizes):
    names, kind = tuple(sizes), AxisType.Auto
    return jax.make_mesh(tuple(sizes.values()), names, axis_types=(kind,) * len(names))


def spread(arrays, mesh, *spec, channels=None):
    """Shard the images by ``spec``, one entry per axis before the channels, and the value channels by ``channels``."""
    spec = (*spec, *[None] * (len(SHAPE) - len(spec)))
    kinds = [PartitionSpec(*spec, None)] * 2 + [PartitionSpec(*spec, channels)] * 2 + [PartitionSpec()]
    return [jax.device_put(array, NamedSharding(mesh, spec)) for array, spec in zip(arrays, kinds, strict=True)]


def agree(ours, theirs):
    for index, (a, b) in enumerate(zip(ours, theirs, strict=True)):
        assert np.abs(np.asarray(a) - np.asarray(b)).max() < 1e-4 * np.abs(b).max(), f"result {index}"


@pytest.mark.parametrize(
    ("sizes", "spec", "channels", "axes"),
    [
        ({"data": 4}, ("data",), None, None),
        ({"data": 2, "model": 2}, ("data",), "model", None),
        ({"rows": 4}, (None, "rows"), None, (1,)),
    ],
    ids=["batch", "batch and channels", "an axis that is not attended"],
)
def test_each_device_attends_within_its_shard(arrays, sizes, spec, channels, axes):
    """Under plain jit, XLA gathers nothing, and results are those of a single device."""
    sharded = spread(arrays, mesh(**sizes), *spec, channels=channels)
    program = jax.jit(partial(both, axes=axes)).lower(*sharded).compile()
    assert "all-gather" not in program.as_text()
    agree(program(*sharded), jax.jit(partial(both, axes=axes))(*arrays))


def test_tangents_stay_within_their_shards(arrays):
    sharded = spread(arrays, mesh(data=2, model=2), "data", channels="model")

    def change(*arrays):
        return jax.jvp(partial(criss_cross_residual, channel_axis=-1), arrays, arrays)[1:]

    program = jax.jit(change).lower(*sharded).compile()
    assert "all-gather" not in program.as_text()
    agree(program(*sharded), change(*arrays))


def test_the_compilation_cache_tells_options_apart(arrays, tmp_path):
    """Also without the addresses in its keys, which change from process to process."""
    sharded = spread(arrays, mesh(data=4), "data")

    def attend(scale):
        return jax.jit(lambda *arrays: [criss_cross_residual(*arrays, channel_axis=-1, scale=scale)])(*sharded)

    with jax_cache(tmp_path):
        outputs = [attend(scale) for scale in (1.0, 2.0, 1.0)]
    assert len(list(tmp_path.glob("jit__lambda*-cache"))) == 2
    agree(outputs[0], outputs[2])
    for out, scale in zip(outputs, (1.0, 2.0), strict=False):
        agree(out, [criss_cross_residual(*arrays, channel_axis=-1, scale=scale, backend="reference")])


def test_an_attended_axis_is_gathered(arrays):
    sharded = spread(arrays, mesh(rows=4), None, "rows")
    agree(jax.jit(both)(*sharded), jax.jit(both)(*arrays))


DATA, ROWS, CHANNELS = PartitionSpec("data"), PartitionSpec(None, "data"), PartitionSpec(None, None, None, "data")


@pytest.fixture(scope="module")
def wide(arrays):
    """Return arrays with 4 query channels, for 4 devices, and on one device the results by axes, and the weights."""
    arrays = [*(jax.device_put(np.concatenate([array, array[..., :1]], axis=-1)) for array in arrays[:2]), *arrays[2:]]
    expected = {axes: jax.device_get(jax.jit(partial(both, axes=axes))(*arrays)) for axes in (None, (1,))}
    return arrays, expected, np.asarray(criss_cross_weights(*arrays[:2], (1, 2), channel_axis=-1))


@pytest.mark.parametrize("kind", [AxisType.Auto, AxisType.Explicit], ids=str)
@pytest.mark.parametrize(
    ("of_query", "of_value", "axes"),
    [(DATA, DATA, None), (ROWS, ROWS, None), (CHANNELS, CHANNELS, None), (DATA, ROWS, (1,)), (DATA, CHANNELS, (1,))],
    ids=["batch", "attended", "channels", "batch and rows", "batch and channels"],
)
def test_arrays_of_any_sharding(wide, kind, of_query, of_value, axes):
    """Explicit axis types track shardings in array types; the result is sharded like the residual."""
    devices = jax.make_mesh((4,), ("data",), axis_types=(kind,))
    arrays, expected, expected_weights = wide
    shardings = [NamedSharding(devices, spec) for spec in (of_query,) * 2 + (of_value,) * 2 + (PartitionSpec(),)]
    sharded = [jax.device_put(array, place) for array, place in zip(arrays, shardings, strict=True)]
    with jax.set_mesh(devices):
        out, *gradients = jax.jit(partial(both, axes=axes))(*sharded)
        weights = jax.jit(partial(criss_cross_weights, position=(1, 2), channel_axis=-1))(*sharded[:2])
    if kind == AxisType.Explicit:
        assert out.sharding.is_equivalent_to(sharded[3].sharding, out.ndim)
    agree([out, *gradients], expected[axes])
    agree([weights], [expected_weights])


@pytest.mark.parametrize("kind", [AxisType.Auto, AxisType.Explicit], ids=str)
def test_within_a_partly_manual_shard_map(arrays, kind):
    """The batch axis is manual. Only Auto shards the channels too: JAX gathers explicit axes where a shard_map ends."""
    devices = jax.make_mesh((2, 2), ("data", "model"), axis_types=(kind,) * 2)
    batch, whole = PartitionSpec("data"), PartitionSpec()
    shard = jax.shard_map(
        partial(criss_cross_residual, channel_axis=-1),
        mesh=devices, in_specs=(batch,) * 4 + (whole,), out_specs=batch, axis_names={"data"},
    )  # fmt: skip
    sharded = spread(arrays, devices, "data", channels="model" if kind == AxisType.Auto else None)
    program = jax.jit(shard).lower(*sharded).compile()
    assert "all-gather" not in program.as_text()
    agree([program(*sharded)], [criss_cross_residual(*arrays, channel_axis=-1)])


def test_within_the_users_shard_map(arrays):
    devices = Mesh(np.array(jax.devices()), ("anything",))
    split, whole = PartitionSpec("anything"), PartitionSpec()
    attend = partial(criss_cross_residual, channel_axis=-1)
    sharded = jax.shard_map(attend, mesh=devices, in_specs=(split,) * 4 + (whole,), out_specs=split)
    agree([jax.jit(sharded)(*arrays)], [attend(*arrays)])
