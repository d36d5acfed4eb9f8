"""Networks without initial weights, for weights that are loaded afterwards."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch.overrides import TorchFunctionMode

_DRAWS = ("kaiming_uniform_", "normal_", "trunc_normal_", "uniform_")  # of torch.nn.init, and of tensors


class Uninitialised(TorchFunctionMode):
    """Build networks in this context without drawing random weights, which takes most of the time of building them.

    The weights are whatever their memory contains.
    """

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        if func.__name__ in _DRAWS:
            return (*args, *(kwargs or {}).values())[0]  # torch.nn.init names the tensor
        return func(*args, **(kwargs or {}))
