"""The training loss, a weighted sum of terms."""

import math
from collections.abc import Iterable, Mapping
from functools import reduce
from operator import add
from typing import Any

from .torch_and_jax import Array, Module, ModuleDict, stop_gradient


class WeightedSum(Module):
    """A weighted sum of loss terms that also reports each term.

    Args:
        terms: name -> module that maps (network output, labels) to a scalar, or to a NamedTuple whose ``total`` is
            added to the loss and whose other fields are only reported. Its attribute ``output``, if it has one, names
            the output that it reads.
        weights: name -> weight. A term with weight 0 is not computed.
        ramp: name -> iterations over which the weight of a term rises linearly from 0; 0 or no entry disables the ramp.

    Raises:
        ValueError: terms and weights have different names, a ramp names an unknown term, a weight or a ramp is
            negative, infinite or NaN, or every weight is 0.
    """

    def __init__(
        self, terms: Mapping[str, Module], weights: Mapping[str, float], ramp: Mapping[str, int] | None = None
    ):
        super().__init__()
        if set(terms) != set(weights):
            raise ValueError(f"loss terms {sorted(terms)} need one weight each, got {sorted(weights)}")
        if not any(weights.values()) or not all(0 <= weight < math.inf for weight in weights.values()):
            raise ValueError(
                f"loss.weights is {dict(weights)}: set finite numbers of at least 0, and one or more above 0"
            )
        if unknown := sorted(set(ramp or {}) - set(terms)):
            raise ValueError(f"loss.ramp names {unknown}, but the loss terms are {sorted(terms)}")
        if invalid := {name: length for name, length in (ramp or {}).items() if not 0 <= length < math.inf}:
            raise ValueError(f"loss.ramp is {invalid}: set a number of iterations, or 0 to disable it")
        self.ramp = {name: length for name, length in (ramp or {}).items() if length}
        self.terms = ModuleDict({name: term for name, term in terms.items() if weights[name]})
        self.weights = {name: float(weights[name]) for name in self.terms}

    def check_outputs(self, names: Iterable[str]) -> None:
        """Raise ValueError if the ``output`` of a term is not among `names`, those of a network's training outputs."""
        for name, term in self.terms.items():
            wanted = getattr(term, "output", None)
            if wanted not in (None, *names):
                raise ValueError(_missing(name, repr(wanted), names))

    def forward(self, output: dict[str, Array], labels: Array, iteration: Any = None) -> tuple[Array, dict[str, Array]]:
        """Return the loss for labels (N, H, W), and the unweighted, detached terms by name.

        Args:
            output: the network's outputs by name.
            labels: (N, H, W).
            iteration: the number of completed iterations, a whole number or a JAX scalar; None uses the full weights.

        Raises:
            ValueError: a term reads an output that the network does not return.
        """
        report: dict[str, Array] = {}
        weighted: list[Array] = []
        for name, term in self.terms.items():
            try:
                value = term(output, labels)
            except KeyError as error:
                raise ValueError(_missing(name, str(error), output)) from error
            parts: dict[str, Array] = value._asdict() if hasattr(value, "_asdict") else {"total": value}
            total = parts.pop("total")
            weighted.append(self._weight(name, iteration) * total)
            report[name] = stop_gradient(total)
            report |= {f"{name}/{part}": stop_gradient(array) for part, array in parts.items()}
        return reduce(add, weighted), report

    def _weight(self, name: str, iteration: Any) -> Any:
        """Return the weight of a term at an iteration, a number or a JAX scalar."""
        if iteration is None or name not in self.ramp:
            return self.weights[name]
        share = iteration / self.ramp[name]
        return self.weights[name] * (min(share, 1.0) if isinstance(share, float) else share.clip(max=1.0))


def _missing(name: str, wanted: str, returned: Iterable[str]) -> str:
    return (
        f"the loss term {name!r} reads the output {wanted}, which this network does not return: it returns "
        f"{', '.join(returned)}. Set loss.weights.{name}=0, or choose a network that returns it"
    )
