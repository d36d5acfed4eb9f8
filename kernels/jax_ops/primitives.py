"""The passes as JAX primitives: their shapes, ``vmap`` rules, derivatives, partitioning and registration.

    forward:  query, key, value                               -> out, stats
              query, key, value, residual, gamma              -> result; with ``save_out`` result, out, stats
    backward: query, key, value, out, stats, grad[, gamma]    -> dquery, dkey, dvalue, delta
    tangent:  query, key, value, out, stats and the tangents of query, key and value                  -> that of out
              the same, followed by the tangents of residual and gamma, and by gamma                  -> that of result

Shapes: query (N, *S, D), value (N, *S, C), out, grad, residual and result like value, stats (N, *S, 2), delta
(N, *S, 1), gamma (1,).

The kernels compute forward and backward. Tangents, which only forward mode computes, and derivatives of these passes,
which only higher derivatives need, use the reference on every platform.
"""

from collections.abc import Callable, Sequence
from functools import cache, partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir

from ..call import Options, dtype_name
from ..launches import plan
from . import lowering
from .partitioning import needs_devices, partitioned
from .promotion import usual_promotion
from .targets import running_on

forward_p = Primitive("criss_cross_forward")
backward_p = Primitive("criss_cross_backward")
tangent_p = Primitive("criss_cross_tangent")


def forward(*arrays: Array, options: Options, save_out: bool) -> list[Array]:
    """Apply the forward primitive."""
    return forward_p.bind(*arrays, options=options, save_out=save_out)


def backward(*arrays: Array, options: Options) -> list[Array]:
    """Apply the backward primitive."""
    return backward_p.bind(*arrays, options=options)


def tangent(*arrays: Array, options: Options) -> list[Array]:
    """Apply the tangent primitive."""
    return tangent_p.bind(*arrays, options=options)


# ---- shapes: derived from the input types, so that other properties, such as shard_map axes, carry over


def _forward_shapes(
    query: Any, key: Any, value: Any, residual: Any = None, gamma: Any = None, *, options: Options, save_out: bool
) -> list[Any]:
    stats = query.update(shape=(*query.shape[:-1], 2), dtype=jnp.dtype(jnp.float32))
    out = value.update(dtype=jnp.dtype(plan.kept_dtype(dtype_name(value))))
    if residual is None:
        return [out, stats]
    return [residual, out, stats] if save_out else [residual]


def _backward_shapes(
    query: Any, key: Any, value: Any, out: Any, stats: Any, grad: Any, gamma: Any = None, *, options: Options
) -> list[Any]:
    return [query, key, value, stats.update(shape=(*query.shape[:-1], 1))]


def _tangent_shapes(query: Any, key: Any, value: Any, *others: Any, options: Options) -> list[Any]:
    return [others[5] if len(others) > 5 else value]  # typed like the residual or the value


def _forward_kinds(count: int, *, save_out: bool) -> tuple[Sequence[str], Sequence[str]]:
    array_kinds = ("query", "query", "value", "value", "gamma")[:count]
    if count == 3:
        return array_kinds, ("value", "stats")
    return array_kinds, ("value", "value", "stats") if save_out else ("value",)


def _backward_kinds(count: int) -> tuple[Sequence[str], Sequence[str]]:
    array_kinds = ("query", "query", "value", "value", "stats", "value", "gamma")[:count]
    return array_kinds, ("query", "query", "value", "delta")


def _tangent_kinds(count: int) -> tuple[Sequence[str], Sequence[str]]:
    arrays, stats = ("query", "query", "value"), ("value", "stats")
    return (*arrays, *stats, *arrays, "value", "gamma", "gamma")[:count], ("value",)


# ---- vmap: fold the mapped axis into the batch axis


@usual_promotion()
def _batch_forward(
    arrays: Sequence[Array], axes: Sequence[int | None], *, options: Options, save_out: bool
) -> tuple[list[Array], list[int]]:
    size = _batch_size(arrays, axes)
    images = _fold_all(arrays[:4], axes[:4], size)
    if len(arrays) == 5 and axes[4] is not None:  # the kernels take one gamma for all images
        query, key, value, residual = images
        out, stats = forward(query, key, value, options=options, save_out=True)
        gamma = _gamma_per_image(arrays[4], axes[4], residual, size)
        result = (gamma * out + residual).astype(residual.dtype)
        results = [result, out, stats] if save_out else [result]
    else:
        results = forward(*images, *arrays[4:], options=options, save_out=save_out)
    return _unfold_all(results, size)


@usual_promotion()
def _batch_backward(
    arrays: Sequence[Array], axes: Sequence[int | None], *, options: Options
) -> tuple[list[Array], list[int]]:
    size = _batch_size(arrays, axes)
    images = _fold_all(arrays[:6], axes[:6], size)
    if len(arrays) == 7 and axes[6] is not None:
        *gradients, delta = backward(*images, options=options)
        gamma = _gamma_per_image(arrays[6], axes[6], images[0], size)
        results = [*((gamma * gradient).astype(gradient.dtype) for gradient in gradients), delta]
    else:
        results = backward(*images, *arrays[6:], options=options)
    return _unfold_all(results, size)


@usual_promotion()
def _batch_tangent(
    arrays: Sequence[Array], axes: Sequence[int | None], *, options: Options
) -> tuple[list[Array], list[int]]:
    size = _batch_size(arrays, axes)
    images = _fold_all(arrays[:9], axes[:9], size)
    if any(axis is not None for axis in axes[9:]):
        (change,) = tangent(*images[:8], options=options)
        out, dresidual = images[3], images[8]
        dgamma, gamma = (_gamma_per_image(arrays[i], axes[i], out, size) for i in (9, 10))
        results = [(gamma * change + dgamma * out + dresidual).astype(dresidual.dtype)]
    else:
        results = tangent(*images, *arrays[9:], options=options)
    return _unfold_all(results, size)


def _batch_size(arrays: Sequence[Array], axes: Sequence[int | None]) -> int:
    return next(array.shape[axis] for array, axis in zip(arrays, axes, strict=True) if axis is not None)


def _fold_all(arrays: Sequence[Array], axes: Sequence[int | None], size: int) -> list[Array]:
    return [_fold(array, axis, size) for array, axis in zip(arrays, axes, strict=True)]


def _fold(array: Array, axis: int | None, size: int) -> Array:
    """Fold the mapped ``axis`` of length ``size`` into the batch axis, repeating the array if ``axis`` is None."""
    array = jnp.broadcast_to(array, (size, *array.shape)) if axis is None else jnp.moveaxis(array, axis, 0)
    return array.reshape(array.shape[0] * array.shape[1], *array.shape[2:])


def _unfold_all(results: Sequence[Array], size: int) -> tuple[list[Array], list[int]]:
    # A mapped axis of length 0 leaves no images; the number per element is then arbitrary.
    unfolded = [array.reshape(size, _images_per_element(array, size), *array.shape[1:]) for array in results]
    return unfolded, [0] * len(results)


def _images_per_element(folded: Array, size: int) -> int:
    return folded.shape[0] // max(size, 1)


def _gamma_per_image(gamma: Array, axis: int | None, images: Array, size: int) -> Array:
    """Repeat each gamma for its images, in a shape that broadcasts over them."""
    gammas = jnp.repeat(_fold(gamma, axis, size), _images_per_element(images, size))
    return gammas.reshape(-1, *[1] * (images.ndim - 1))


# ---- derivatives


def _transpose_tangent(cotangents: Sequence[Any], *arrays: Any, options: Options) -> list[Array | None]:
    """Return the gradients by the tangents, from the backward pass, and None for the other arrays."""
    (grad,) = cotangents
    if isinstance(grad, ad.Zero):
        return [None] * len(arrays)
    query, key, value, out, stats, *tangents = arrays
    gamma = tangents[5:]
    *gradients, delta = backward(query, key, value, out, stats, grad.astype(value.dtype), *gamma, options=options)
    if gamma:
        gradients += [grad, delta.sum().astype(gamma[0].dtype).reshape(1), None]
    with_gradients = zip(arrays, [*[None] * 5, *gradients], strict=True)
    return [gradient if ad.is_undefined_primal(array) else None for array, gradient in with_gradients]


def _derivative_of(reference: Callable[..., list[Array]]) -> Callable[..., tuple[list[Array], list[Array]]]:
    """Return the rule that differentiates a primitive as its reference."""

    def rule(
        arrays: Sequence[Array], tangents: Sequence[Any], *, options: Options, **parameters: Any
    ) -> tuple[list[Array], list[Array]]:
        formula = partial(reference, options=options._replace(backend="auto"), **parameters)
        with usual_promotion():
            return jax.jvp(formula, tuple(arrays), tuple(map(ad.instantiate_zeros, tangents)))

    return rule


# ---- registration


def _register(
    primitive: Primitive,
    shapes: Callable[..., list[Any]],
    kinds: Callable[..., tuple[Sequence[str], Sequence[str]]],
    batch: Callable[..., tuple[list[Array], list[int]]],
    reference: Callable[..., list[Array]],
    cuda: Callable[..., list[Array]],
) -> None:
    """Register how JAX types, runs, batches, differentiates and lowers a primitive.

    It is lowered to ``cuda`` on CUDA, to ``reference`` elsewhere.
    """

    @cache
    def jitted(**parameters: Any) -> Callable[..., list[Array]]:
        return jax.jit(partial(primitive.bind, **parameters))

    def run_eagerly(*arrays: Array, **parameters: Any) -> list[Array]:
        with jax.disable_jit(False):  # under a user's disable_jit(), binding the primitive would recurse endlessly
            return jitted(**parameters)(*arrays)

    primitive.multiple_results = True
    primitive.def_abstract_eval(shapes)
    primitive.def_impl(run_eagerly)
    ad.primitive_jvps[primitive] = _derivative_of(reference)
    batching.primitive_batchers[primitive] = batch
    needs_devices(primitive)
    for platform, function in ((None, reference), ("cuda", cuda), ("rocm", lowering.on_rocm(reference))):
        mlir.register_lowering(primitive, _lower_for_its_device(partitioned(function, kinds)), platform=platform)


def _lower_for_its_device(function: Callable[..., list[Array]]) -> Callable[..., Any]:
    """Return a lowering rule that tells ``function`` which device will run the program."""
    lower = mlir.lower_fun(function, multiple_results=True)

    def rule(ctx: Any, *values: Any, **parameters: Any) -> Any:
        axis_context = ctx.module_context.axis_context
        devices = getattr(axis_context, "device_assignment", None) or getattr(
            getattr(axis_context, "mesh", None), "_flat_devices_tuple", None
        )
        with running_on(devices[0] if devices else None), usual_promotion():
            return lower(ctx, *values, **parameters)

    return rule


_register(
    forward_p, _forward_shapes, _forward_kinds, _batch_forward, lowering.forward_reference, lowering.forward_on_cuda
)
_register(
    backward_p,
    _backward_shapes,
    _backward_kinds,
    _batch_backward,
    lowering.backward_reference,
    lowering.backward_on_cuda,
)
_register(
    tangent_p,
    _tangent_shapes,
    _tangent_kinds,
    _batch_tangent,
    lowering.tangent_reference,
    lowering.tangent_reference,
)
ad.primitive_transposes[tangent_p] = _transpose_tangent
