"""Weight files of a backbone: the state dict of a timm model, or the checkpoint of a run that contains one."""

from pathlib import Path
from typing import Any

from timm.models import adapt_input_conv
from torch import Tensor, nn

from . import tensor_files
from .checksums import HEADER

_COUNTER = "num_batches_tracked"  # unused batch norm buffer; frozen layers and older files lack it


def read_weights(name: str, path: Path) -> dict[str, Tensor]:
    """Return the tensors of a weight file, keyed by timm's names with underscores in place of dots.

    Args:
        name: timm's name of the model, for the errors.
        path: a state dict or the checkpoint of a run. The result of a run also has its image statistics, "mean" and
            "std".

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is damaged, or contains something other than tensors.
    """
    try:
        path = path if path.is_file() else tensor_files.find(path)
    except FileNotFoundError as error:
        raise FileNotFoundError(
            f"backbone.weights={path} is neither a state dict of timm's {name} nor the checkpoint of a run: {error}"
        ) from error
    try:
        file = tensor_files.read(path)
        state = file.content
        if HEADER in file.metadata or "weights" in state:
            if not file.checksums_match:
                raise ValueError("its content does not match its checksum")
            state = state.get("weights", state)
        state = {_timm_name(key): tensor for key, tensor in state.get("state_dict", state).items()}
        if not all(tensor_files.is_plain(tensor) for tensor in state.values()):
            raise ValueError("it contains something other than plain, complete tensors")
    except Exception as error:  # each format raises its own errors for a damaged file
        raise ValueError(f"{path} is not a state dict that can be read safely: {error}") from error
    return state


def load_weights(net: nn.Module, name: str, path: str | Path, state: dict[str, Tensor]) -> None:
    """Load all weights of a timm feature network; those of its first layer are adapted to its image channels.

    Args:
        net: the network.
        name, path: timm's name of the model and the weight file, for the errors.
        state: the tensors, as :func:`read_weights` returns them.

    Raises:
        ValueError: ``state`` does not match the network, which is then unchanged.
    """
    own = net.state_dict()
    first = _first_weight(net)
    expected = {_timm_name(key): tensor for key, tensor in own.items()}.get(first)
    stored = state.get(first)
    if expected is not None and stored is not None and stored.ndim == 4:
        channels, has = expected.shape[1], stored.shape[1]
        if has == 3:
            state |= {first: adapt_input_conv(channels, stored)}
        elif has != channels:
            raise ValueError(
                f"{path} has weights for images of {has} channels, but backbone.in_channels={channels}: set "
                f"backbone.in_channels={has}, or choose other weights"
            )
    found = {key: state.get(_timm_name(key)) for key in own}
    lacking = [
        f"{key} {tuple(tensor.shape)}"
        for key, tensor in own.items()
        if not key.endswith(_COUNTER) and ((stored := found[key]) is None or stored.shape != tensor.shape)
    ]
    if lacking:
        raise ValueError(
            f"{path} does not contain the weights of timm's {name}: {len(lacking)} of {len(own)} tensors are "
            f"missing or have another shape, starting with {', '.join(lacking[:3])}"
        )
    net.load_state_dict({key: tensor if found[key] is None else found[key] for key, tensor in own.items()})


def _first_weight(net: Any) -> str:
    """Return the key in :func:`read_weights` of the first convolution's weight."""
    first = net.pretrained_cfg["first_conv"]
    return _timm_name(f"{first if isinstance(first, str) else first[0]}.weight")


def _timm_name(key: str) -> str:
    """Return the key of a tensor in :func:`read_weights`.

    timm's feature networks rename "stages.0" to "stages_0", or wrap the network as "model".
    """
    for prefix in ("backbone.net.", "backbone.body.", "model."):  # in a Segmentor or Parser, and in a Mask R-CNN
        key = key.removeprefix(prefix)
    return key.replace(".", "_")
