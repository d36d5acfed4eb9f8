"""Recognise the errors that torch raises when a data-loading worker process dies."""

import traceback


def lost_worker(error: BaseException) -> bool:
    """Return True if `error` means that a data-loading worker has died.

    Either torch's signal handler raises it at an arbitrary point in this process, or reading the worker's data fails.
    """
    if isinstance(error, RuntimeError):
        return str(error).startswith("DataLoader worker (pid")
    places = traceback.extract_tb(error.__traceback__)
    return isinstance(error, ConnectionError | EOFError) and any("torch/utils/data" in at.filename for at in places)
