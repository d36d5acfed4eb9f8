"""The Triton kernels as operations of JAX: gradients, batching, and a lowering for each platform.

Lowered for an NVIDIA GPU the operations become the launches that ``plan.py`` says, the same as in
``torch_op.py``; lowered for anything else they become the plain path. Arrays are (N, *S, channels), dense;
the public functions move the axis, for which XLA makes a copy.
"""

from collections.abc import Sequence
from functools import cache, partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array
from jax.ad_checkpoint import checkpoint_name
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir

from . import jax_reference as reference
from . import plan
from .jax_dispatch import log_once
from .precision import float32_precision

# Of the attention's output and statistics, for a policy of jax.checkpoint that recomputes all else.
KEPT = "criss_cross_kept"


class Options(NamedTuple):
    """What does not change from call to call; ``backend`` "triton" refuses a platform without the kernels."""

    axes: tuple[int, ...]
    scale: float
    precision: str
    backend: str


def criss_cross_attention(
    query: Array, key: Array, value: Array, axes: Sequence[int], scale: float, channel_axis: int, backend: str
) -> Array:
    """See :func:`kernels.criss_cross_attention`; ``axes`` are sorted and the input is checked."""
    options = Options(tuple(axes), float(scale), float32_precision(), backend)
    inputs = _alike(_channels_last(channel_axis, query, key, value))
    return _channels_back(channel_axis, _attention(*inputs, options))


def criss_cross_residual(
    query: Array,
    key: Array,
    value: Array,
    residual: Array,
    gamma: Array,
    axes: Sequence[int],
    scale: float,
    channel_axis: int,
    backend: str,
) -> Array:
    """See :func:`kernels.criss_cross_residual`; ``axes`` are sorted and the input is checked."""
    options = Options(tuple(axes), float(scale), float32_precision(), backend)
    inputs = _channels_last(channel_axis, query, key, value, residual)
    return _channels_back(channel_axis, _residual(*_alike([*inputs, gamma.reshape(1)]), options))


def _channels_last(channel_axis: int, *arrays: Array) -> list[Array]:
    return [jnp.moveaxis(array, 1, -1) if channel_axis == 1 else array for array in arrays]


def _channels_back(channel_axis: int, array: Array) -> Array:
    return jnp.moveaxis(array, -1, 1) if channel_axis == 1 else array


def _alike(arrays: Sequence[Array]) -> list[Array]:
    """The arrays as varying over the same axes of a ``shard_map``: a gamma that all shards share becomes each one's."""
    varying = [jax.typeof(array).mat.varying for array in arrays]
    every = frozenset().union(*varying)
    return [
        jax.lax.pcast(array, tuple(every - own), to="varying") if every - own else array
        for array, own in zip(arrays, varying, strict=True)
    ]


# ---- gradients


@partial(jax.custom_vjp, nondiff_argnums=(3,))
def _attention(query, key, value, options):
    return _attention_forward(query, key, value, options)[0]


def _attention_forward(query, key, value, options):
    out, stats = _forward_p.bind(query, key, value, options=options, save_out=True)
    return out.astype(value.dtype), (query, key, value, out, stats)


def _attention_backward(options, saved, grad):
    return tuple(_backward_p.bind(*saved, grad, options=options)[:3])


_attention.defvjp(_attention_forward, _attention_backward)


@partial(jax.custom_vjp, nondiff_argnums=(5,))
def _residual(query, key, value, residual, gamma, options):
    # The attention's output is kept for the backward pass alone; without one it is never written.
    (result,) = _forward_p.bind(query, key, value, residual, gamma, options=options, save_out=False)
    return result


def _residual_forward(query, key, value, residual, gamma, options):
    result, out, stats = _forward_p.bind(query, key, value, residual, gamma, options=options, save_out=True)
    out, stats = (checkpoint_name(array, KEPT) for array in (out, stats))
    return result, (query, key, value, out, stats, gamma)


def _residual_backward(options, saved, grad):
    *saved, gamma = saved
    value = saved[2]
    dquery, dkey, dvalue, delta = _backward_p.bind(*saved, grad.astype(value.dtype), gamma, options=options)
    return dquery, dkey, dvalue, grad, delta.sum().astype(gamma.dtype).reshape(1)


_residual.defvjp(_residual_forward, _residual_backward)

# ---- operations

_forward_p = Primitive("criss_cross_forward")
_backward_p = Primitive("criss_cross_backward")


def _forward_shapes(query, key, value, residual=None, gamma=None, *, options, save_out):
    """Query, key, value -> out, stats; with residual and gamma -> result, and with ``save_out`` out, stats."""
    # Made from the input's types, whose other properties, such as a shard_map's axes, they share.
    stats = query.update(shape=(*query.shape[:-1], 2), dtype=jnp.dtype(jnp.float32))
    out = value.update(dtype=_kept_dtype(value))
    if residual is None:
        return [out, stats]
    return [residual, out, stats] if save_out else [residual]


def _kept_dtype(value) -> Any:
    return jnp.dtype(plan.kept_dtype(str(value.dtype)))


def _backward_shapes(query, key, value, out, stats, grad, gamma=None, *, options):
    """-> dquery, dkey, dvalue, delta."""
    return [query, key, value, stats.update(shape=(*query.shape[:-1], 1))]


def _forward_plain(query, key, value, residual=None, gamma=None, *, options, save_out):
    _refuse_triton(options)
    out = reference.criss_cross_attention(query, key, value, options.axes, options.scale, -1)
    stats = jnp.zeros((*query.shape[:-1], 2), jnp.float32)  # the plain backward does not ask for them
    kept = out.astype(_kept_dtype(value))
    if residual is None:
        return [kept, stats]
    result = (gamma * out + residual).astype(residual.dtype)
    return [result, kept, stats] if save_out else [result]


def _backward_plain(query, key, value, out, stats, grad, gamma=None, *, options):
    _refuse_triton(options)

    def attend(*inputs):
        return reference.criss_cross_attention(*inputs, options.axes, options.scale, -1)

    gradients = jax.vjp(attend, query, key, value)[1](grad)
    if gamma is not None:
        gradients = [(gamma * gradient).astype(gradient.dtype) for gradient in gradients]
    return [*gradients, (out.astype(jnp.float32) * grad.astype(jnp.float32)).sum(-1, keepdims=True)]


def _refuse_triton(options: Options) -> None:
    if options.backend == "triton":
        raise ValueError(
            "backend='triton' cannot take this call: it is lowered for a platform other than CUDA; use backend='auto'"
        )


def _forward_kernels(query, key, value, residual=None, gamma=None, *, options, save_out):
    from .forward import line_forward_kernel
    from .jax_binding import Updated, Written, launch

    strides = {"query_stride": query.shape[-1], "key_stride": key.shape[-1], "value_stride": value.shape[-1]}
    strides["residual_stride"] = value.shape[-1]
    launches = plan.forward_launches(_problem(query, value, options), device(), residual is not None, save_out)
    stats_shape = (*query.shape[:-1], 2)
    out_dtype = _kept_dtype(value) if save_out else value.dtype
    out = stats = None
    for index, step in enumerate(launches):
        fused, saves = step.constants["HAS_RESIDUAL"], step.constants["SAVE_OUT"]
        if not saves:
            out_here = _unused(value) if out is None else out
        else:
            out_here = Written(value.shape, out_dtype) if out is None else Updated(out)
        in_place = not saves and out is not None and fused and residual.dtype == value.dtype
        made = launch(
            line_forward_kernel,
            {
                "query_ptr": query,
                "key_ptr": key,
                "value_ptr": value,
                "out_ptr": out_here,
                "stats_ptr": Written(stats_shape, jnp.float32),
                "previous_stats_ptr": None if index == 0 else stats,
                "residual_ptr": residual if fused else None,
                "gamma_ptr": gamma if fused else None,
                "result_ptr": Written(value.shape, residual.dtype, "out_ptr" if in_place else None) if fused else None,
                **strides,
                "length": step.length,
                "inner": step.inner,
                "scale": options.scale,
            },
            step.constants,
            grid=step.grid,
            num_warps=step.num_warps,
            num_stages=step.num_stages,
            capability=device().capability,
        )
        out, stats = made.get("out_ptr"), made["stats_ptr"]
    if residual is None:
        return [out, stats]
    return [made["result_ptr"], out, stats] if save_out else [made["result_ptr"]]


def _backward_kernels(query, key, value, out, stats, grad, gamma=None, *, options):
    from .backward import line_backward_kernel
    from .jax_binding import Updated, Written, launch

    strides = {"query_stride": query.shape[-1], "key_stride": key.shape[-1], "value_stride": value.shape[-1]}
    strides["grad_stride"] = value.shape[-1]
    launches = plan.backward_launches(_problem(query, value, options), device(), gamma is not None)
    gradients = {"dquery_ptr": query, "dkey_ptr": key, "dvalue_ptr": value}
    wide = dict(zip(gradients, plan.backward_partials(launches), strict=True))
    tiles = wide["dvalue_ptr"]
    delta, made = None, {}
    for step in launches:
        first, last = step.constants["FIRST"], step.constants["LAST"]
        pointers = {}
        for name, like in gradients.items():
            partial_name = f"partial_{name}"
            dtype = jnp.dtype(jnp.float32) if wide[name] else like.dtype
            in_place = not first and last and dtype == like.dtype
            if first:
                needed = tiles or not last
                pointers[partial_name] = Written(like.shape, dtype) if needed else _unused(like)
            else:
                so_far = made[partial_name]
                pointers[partial_name] = so_far if in_place or (last and not tiles) else Updated(so_far)
            over = partial_name if in_place else None
            pointers[name] = Written(like.shape, like.dtype, over) if last else _unused(like)
        made = launch(
            line_backward_kernel,
            {
                "query_ptr": query,
                "key_ptr": key,
                "value_ptr": value,
                "out_ptr": out,
                "stats_ptr": stats,
                "grad_ptr": grad,
                "gamma_ptr": gamma,
                "delta_ptr": Written((*query.shape[:-1], 1), jnp.float32) if first else delta,
                **pointers,
                **strides,
                "length": step.length,
                "inner": step.inner,
                "scale": options.scale,
            },
            step.constants,
            grid=step.grid,
            num_warps=step.num_warps,
            num_stages=step.num_stages,
            capability=device().capability,
        )
        delta = made.get("delta_ptr", delta)
    return [*(made[name] for name in gradients), delta]


def _unused(like: Array) -> Any:
    """One element for a pointer that the kernel moves, but neither reads nor writes."""
    from .jax_binding import Written

    return Written((1,), like.dtype)


def _problem(query: Array, value: Array, options: Options) -> plan.Problem:
    batch, *spatial, query_channels = query.shape
    channels = value.shape[-1]
    return plan.Problem(
        batch, tuple(spatial), options.axes, query_channels, channels, str(query.dtype), options.precision,
        max(query_channels, channels),
    )  # fmt: skip


@cache
def device() -> plan.Device:
    """What the plan needs to know of the GPU; a machine without one lowers for an H200."""
    try:
        gpu = jax.devices("cuda")[0]
    except RuntimeError:
        return plan.Device("NVIDIA H200", (9, 0), 132, 232448)
    major, minor = map(int, gpu.compute_capability.split("."))
    # JAX does not tell the shared memory, on which no tile depends.
    return plan.Device(gpu.device_kind, (major, minor), gpu.core_count, 0)


def _obstacle() -> str | None:
    """Why the kernels cannot run on the machine's CUDA devices, and None if they can."""
    import triton

    if triton.knobs.runtime.interpret:
        return "Triton is its interpreter (TRITON_INTERPRET=1)"
    from .jax_binding import triton_library

    try:
        triton_library()
    except ValueError as error:
        return str(error)
    if device().capability < plan.MIN_CAPABILITY:
        least, has = (".".join(map(str, pair)) for pair in (plan.MIN_CAPABILITY, device().capability))
        return f"the GPU has compute capability {has}, below {least}"
    return None


def _for_cuda(kernels, plain):
    """The kernels where they can run, and the plain path elsewhere, which refuses backend "triton"."""

    def function(*arrays, options, **parameters):
        obstacle = _obstacle()
        if obstacle is None:
            return kernels(*arrays, options=options, **parameters)
        if options.backend == "triton":
            raise ValueError(f"backend='triton' cannot take this call: {obstacle}; use backend='reference'")
        log_once(obstacle)
        return plain(*arrays, options=options, **parameters)

    return function


# ---- vmap: the batch of a batch is one batch


def _fold(array: Array, axis: int | None, size: int) -> Array:
    array = jnp.broadcast_to(array, (size, *array.shape)) if axis is None else jnp.moveaxis(array, axis, 0)
    return array.reshape(-1, *array.shape[2:])


def _batch_rule(arrays, axes, *, primitive, count, **parameters):
    """``count`` of the arrays have the batch in front; a gamma may follow, of which the kernels take one."""
    size = next(array.shape[axis] for array, axis in zip(arrays, axes, strict=True) if axis is not None)
    images = [_fold(array, axis, size) for array, axis in zip(arrays[:count], axes[:count], strict=True)]
    if len(arrays) == count or axes[count] is None:
        made = primitive.bind(*images, *arrays[count:], **parameters)
    else:
        gamma = _fold(arrays[count], axes[count], size)  # (size,)
        gamma = jnp.repeat(gamma, images[0].shape[0] // size).reshape(-1, *[1] * (images[0].ndim - 1))
        made = _with_gamma[primitive](*images, gamma=gamma, **parameters)
    return [array.reshape(size, -1, *array.shape[1:]) for array in made], [0] * len(made)


def _forward_with_gamma(query, key, value, residual, *, gamma, options, save_out):
    out, stats = _forward_p.bind(query, key, value, options=options, save_out=True)
    result = (gamma * out + residual).astype(residual.dtype)
    return [result, out, stats] if save_out else [result]


def _backward_with_gamma(*arrays, gamma, options):
    *gradients, delta = _backward_p.bind(*arrays, options=options)
    return [*((gamma * gradient).astype(gradient.dtype) for gradient in gradients), delta]


_with_gamma = {_forward_p: _forward_with_gamma, _backward_p: _backward_with_gamma}


def _batch_forward(arrays, axes, **parameters):
    return _batch_rule(arrays, axes, primitive=_forward_p, count=min(len(arrays), 4), **parameters)


def _batch_backward(arrays, axes, **parameters):
    return _batch_rule(arrays, axes, primitive=_backward_p, count=6, **parameters)


# ---- registration


@cache
def _compiled(primitive, **parameters):
    return jax.jit(partial(primitive.bind, **parameters))


def _twice(*_, **__):
    raise ValueError("the criss-cross attention can be differentiated once: for more use backend='reference'")


for _primitive, _shapes, _kernels, _plain, _batch in (
    (_forward_p, _forward_shapes, _forward_kernels, _forward_plain, _batch_forward),
    (_backward_p, _backward_shapes, _backward_kernels, _backward_plain, _batch_backward),
):
    _primitive.multiple_results = True
    _primitive.def_abstract_eval(_shapes)
    _primitive.def_impl(
        lambda *arrays, _primitive=_primitive, **parameters: _compiled(_primitive, **parameters)(*arrays)
    )
    ad.primitive_jvps[_primitive] = _twice
    batching.primitive_batchers[_primitive] = _batch
    mlir.register_lowering(_primitive, mlir.lower_fun(_plain, multiple_results=True))
    mlir.register_lowering(
        _primitive, mlir.lower_fun(_for_cuda(_kernels, _plain), multiple_results=True), platform="cuda"
    )
