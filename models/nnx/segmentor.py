"""Flax NNX counterparts of the heads and of the semantic segmentation network."""

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array, export

from ...kernels.jax_ops.promotion import usual_promotion
from .context import CrissCrossAttention
from .layers import Modal, Twin, dropout2d
from .resampling import resize
from .torch_arrays import statistic


class ContextHead(nnx.Module):
    """Counterpart of ``ccnet.models.heads.context.ContextHead``."""

    def __init__(self, head: Any, twin: Twin):
        self.reduce, self.context, self.project = twin(head.reduce), twin(head.context), twin(head.project)
        self.bottleneck, self.classify = twin(head.bottleneck), twin(head.classify)
        self.recurrence, self.dropout = head.recurrence, head.dropout.p

    def __call__(
        self, features: Array, frames: int | None = None, train: bool = False, key: Array | None = None
    ) -> tuple[Array, Array]:
        """Map (N, h, w, in_channels) to logits (N, h, w, K) and context features (N, h, w, channels).

        For clips of ``frames`` frames each, the batch axis holds all frames, clip by clip.
        """
        context = self.reduce(features, train)
        shape = context.shape
        if frames and isinstance(self.context, CrissCrossAttention):
            context = context.reshape(-1, frames, *shape[1:])
        for _ in range(self.recurrence):
            context = self.context(context, train)
        context = context.reshape(shape)
        fused = self.bottleneck(jnp.concatenate([features, self.project(context, train)], axis=-1), train)
        return self.classify(dropout2d(fused, self.dropout, key) if train else fused), context


class FCNHead(nnx.Module):
    """Counterpart of ``ccnet.models.heads.fcn.FCNHead``."""

    def __init__(self, head: Any, twin: Twin):
        self.hidden, self.classify = twin(head.hidden), twin(head.classify)
        self.dropout = head.dropout.p

    def __call__(self, features: Array, train: bool = False, key: Array | None = None) -> Array:
        """Classify the features: (N, h, w, in_channels) -> logits (N, h, w, K)."""
        hidden = self.hidden(features, train)
        return self.classify(dropout2d(hidden, self.dropout, key) if train else hidden)


class Segmentor(Modal):
    """Channels-last counterpart of ``ccnet.models.segmentor.Segmentor``."""

    def __init__(self, network: Any, twin: Twin):
        super().__init__()
        self.mean, self.std = statistic(network.mean), statistic(network.std)
        self.backbone, self.head = twin(network.backbone), twin(network.head)
        self.aux_head = None if network.aux_head is None else twin(network.aux_head)
        self.embed = None if network.embed is None else twin(network.embed)
        self.align_corners = network.align_corners

    @usual_promotion()
    def __call__(
        self, image: Array, *, train: bool | None = None, key: Array | None = None, dtype: jnp.dtype = jnp.float32
    ) -> dict[str, Array]:
        """Segment images in [0, 1]: (N, H, W, C) -> {"out": logits (N, H, W, K)}.

        Args:
            image: images (N, H, W, C), RGB by default, or clips (N, T, H, W, C), whose outputs also have T as their
                second axis.
            train: use the batch statistics and update the running ones, apply dropout, and also return "aux" (shaped
                like "out") and "embedding" (N, h, w, E) if the network has these modules. None for the mode set by
                ``train()`` or ``eval()``.
            key: random key for dropout in training.
            dtype: dtype of the convolutions, such as bfloat16; the logits are float32.

        Raises:
            ValueError: the shape or dtype is wrong, the image is smaller than the output stride, or dropout needs a
                key.
        """
        train = self.trains(train)
        size, stride = image.shape[-3:-1], self.backbone.output_stride
        if any(map(export.is_symbolic_dim, size)):
            raise ValueError(f"expected a known height and width, got {size}: only the batch may be symbolic")
        number = self.mean.shape[1]
        if image.ndim not in (4, 5) or image.shape[-1] != number or min(size) < stride:
            kind = "RGB images" if number == 3 else "images"
            raise ValueError(
                f"expected {kind} (N, H, W, {number}) or clips (N, T, H, W, {number}) of at least {stride}x{stride} "
                f"pixels (the output stride), got {tuple(image.shape)}"
            )
        if not jnp.issubdtype(image.dtype, jnp.floating):
            raise ValueError(f"expected floating-point images in [0, 1], got {image.dtype}: convert them first")
        frames = image.shape[1] if image.ndim == 5 else None
        batch = image.shape[:-3]
        image = image.reshape(-1, *image.shape[-3:])
        keys = (None, None) if key is None else jax.random.split(key)
        features = self.backbone(((image - self.mean[0, :, 0, 0]) / self.std[0, :, 0, 0]).astype(dtype), train)
        logits, context = self.head(features[-1], frames, train, keys[0])
        output = {"out": resize(logits, size, self.align_corners)}
        if train and self.aux_head is not None:
            output["aux"] = resize(self.aux_head(features[0], train, keys[1]), size, self.align_corners)
        if train and self.embed is not None:
            output["embedding"] = self.embed(context)
        return {name: array.reshape(*batch, *array.shape[1:]) for name, array in output.items()}
