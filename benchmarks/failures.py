"""Continue a benchmark after a part of it has failed."""

from collections.abc import Generator
from contextlib import contextmanager

from tqdm import tqdm


@contextmanager
def tolerated(what: str, failures: list[str]) -> Generator[None]:
    """Report an error in the block, append it to ``failures`` and continue after the block.

    Measure in the block, and write the result after it: an error in writing should end the benchmark, not be repeated.
    """
    try:
        yield
    except Exception as error:  # compilers and drivers raise many exception types
        failures.append(f"{what}: not measured. {first_line(error)}")
        tqdm.write(failures[-1])


def first_line(error: BaseException) -> str:
    """Return the type of an error and the first line of its message."""
    return f"{type(error).__name__}: {(str(error).strip().splitlines() or ['no message'])[0]}"


def require_none(failures: list[str], measured: str) -> None:
    """Print what was measured and raise ValueError if anything failed."""
    if failures:
        print(measured)
        raise ValueError("\n".join(failures))
