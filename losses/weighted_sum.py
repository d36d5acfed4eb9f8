"""The loss of a run: several terms, one number."""

from collections.abc import Mapping

from .torch_and_jax import Array, Module, ModuleDict, constant


class WeightedSum(Module):
    """Sum of weighted terms that reports every term.

    Args:
        terms: name -> module of (network output, labels), giving a scalar, or a NamedTuple whose ``total``
            counts and whose other fields are reported too.
        weights: name -> factor. A term whose weight is 0 is not computed.

    Raises:
        ValueError: terms and weights that do not name the same things.
    """

    def __init__(self, terms: Mapping[str, Module], weights: Mapping[str, float]):
        super().__init__()
        if set(terms) != set(weights):
            raise ValueError(f"loss terms {sorted(terms)} need one weight each, got {sorted(weights)}")
        if not any(weights.values()):
            raise ValueError("every loss weight is 0: give at least one term a weight")
        self.terms = ModuleDict({name: term for name, term in terms.items() if weights[name]})
        self.weights = {name: float(weights[name]) for name in self.terms}

    def forward(self, output: dict[str, Array], labels: Array) -> tuple[Array, dict[str, Array]]:
        """Network output, labels (N, H, W) -> the sum, and each term by name, unweighted and detached."""
        total = 0
        report = {}
        for name, term in self.terms.items():
            try:
                value = term(output, labels)
            except KeyError as error:
                raise ValueError(
                    f"the loss term {name!r} reads the output {error}, which this network does not give: it "
                    f"gives {', '.join(output)}. Set loss.weights.{name}=0, or choose a network that has it"
                ) from error
            parts = value._asdict() if hasattr(value, "_asdict") else {"total": value}
            value = parts.pop("total")
            report[name] = constant(value)
            report |= {f"{name}/{part}": constant(array) for part, array in parts.items()}
            total = total + self.weights[name] * value
        return total, report
