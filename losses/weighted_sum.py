"""The training loss, a weighted sum of terms."""

from collections.abc import Mapping
from functools import reduce
from operator import add

from .torch_and_jax import Array, Module, ModuleDict, stop_gradient


class WeightedSum(Module):
    """A weighted sum of loss terms that also reports each term.

    Args:
        terms: name -> module that maps (network output, labels) to a scalar, or to a NamedTuple whose ``total`` is
            added to the loss and whose other fields are only reported.
        weights: name -> weight. A term with weight 0 is not computed.

    Raises:
        ValueError: terms and weights have different names, or every weight is 0.
    """

    def __init__(self, terms: Mapping[str, Module], weights: Mapping[str, float]):
        super().__init__()
        if set(terms) != set(weights):
            raise ValueError(f"loss terms {sorted(terms)} need one weight each, got {sorted(weights)}")
        if not any(weights.values()):
            raise ValueError("every loss weight is 0: set at least one to a nonzero value")
        self.terms = ModuleDict({name: term for name, term in terms.items() if weights[name]})
        self.weights = {name: float(weights[name]) for name in self.terms}

    def forward(self, output: dict[str, Array], labels: Array) -> tuple[Array, dict[str, Array]]:
        """Return the loss for labels (N, H, W), and the unweighted, detached terms by name.

        Raises:
            ValueError: a term reads an output that the network does not return.
        """
        report: dict[str, Array] = {}
        weighted: list[Array] = []
        for name, term in self.terms.items():
            try:
                value = term(output, labels)
            except KeyError as error:
                raise ValueError(
                    f"the loss term {name!r} reads the output {error}, which this network does not return: it "
                    f"returns {', '.join(output)}. Set loss.weights.{name}=0, or choose a network that returns it"
                ) from error
            parts: dict[str, Array] = value._asdict() if hasattr(value, "_asdict") else {"total": value}
            total = parts.pop("total")
            weighted.append(self.weights[name] * total)
            report[name] = stop_gradient(total)
            report |= {f"{name}/{part}": stop_gradient(array) for part, array in parts.items()}
        return reduce(add, weighted), report
