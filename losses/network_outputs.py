"""Select what a loss reads from the outputs of a network."""

from typing import Any

from .torch_and_jax import Array


def output_named(outputs: Any, name: str) -> Array:
    """Return the output ``name`` of a network.

    Args:
        outputs: a mapping of names to arrays.
        name: the name of the output.

    Raises:
        TypeError: ``outputs`` is an array, as some networks return.
        KeyError: there is no output of this name.
    """
    if hasattr(outputs, "shape"):
        raise TypeError(
            f"expected a network's outputs by name, got an array {tuple(outputs.shape)}: pass {{{name!r}: array}}, "
            "or call a function of ccnet.losses, such as cross_entropy, instead of a module"
        )
    return outputs[name]
