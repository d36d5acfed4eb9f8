"""Weights & Biases logging that never prompts: online for users who are logged in, offline for all others."""

import netrc
import os
import secrets
import subprocess
import sys
import threading
from collections.abc import Generator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from shlex import quote
from typing import Any
from urllib.parse import urlparse

import numpy as np
import wandb
from pydantic import ValidationError  # raised by W&B's settings
from wandb.errors import CommError, UsageError
from wandb.sdk import wandb_setup

from ..runtime.lost_workers import lost_worker
from ..runtime.overrides import in_sweep

_ONLINE = ("online", "run", "shared")  # modes in which W&B asks for an API key if it finds none
_STARTED: set[str] = set()  # ids of the W&B runs of this process
_PATIENCE = 60.0  # seconds, in addition to `timeout`, that W&B's process may take for a request; it starts within 30


class WandbRun:
    """One W&B run.

    Training steps never block on W&B; only startup and shutdown wait, for up to `timeout`. If W&B cannot start, fails
    or stops responding, training continues without it.

    Args:
        folder: the run's folder; W&B stores its files in a subfolder.
        name: the display name of the run.
        config: the run's configuration, as plain Python values.
        project: the W&B project.
        entity: the W&B user or team; None for the default.
        group: the W&B group of the run.
        mode: one of W&B's own modes, "online", "offline" or "disabled", or "auto". "auto" uses the environment variable
            ``WANDB_MODE`` or W&B's own settings files if they set a mode; otherwise, it is "online" if W&B finds an API
            key, and "offline" if not.
        timeout: seconds to wait for a connection at the start, after which the run continues offline, and for uploads
            to finish at the end; data not uploaded by then remain in the run's folder.
        run_id: the id of the W&B run to continue, if any.

    Raises:
        ValueError: `mode` or ``WANDB_MODE`` is "online", but W&B has no API key; or W&B rejects a setting, or `timeout`
            is negative.

    Attributes:
        run: the W&B run; None once W&B has failed.
        run_id: the id to pass to a later :class:`WandbRun` to continue this run; None if it has none.
    """

    def __init__(
        self,
        folder: Path,
        *,
        name: str,
        config: dict[str, Any],
        project: str,
        entity: str | None = None,
        group: str | None = None,
        mode: str = "auto",
        timeout: float = 20,
        run_id: str | None = None,
    ):
        if timeout < 0:
            raise ValueError(f"logger.timeout is {timeout}: set a number of seconds of at least 0")
        # W&B reports its own errors over the network, which hangs and prints warnings if there is no connection.
        os.environ.setdefault("WANDB_ERROR_REPORTING", "false")
        self._limit = timeout + _PATIENCE
        self.run: wandb.Run | None = None
        self.run_id: str | None = run_id
        try:
            with _time_limit(self._limit):
                run = self._start(
                    _prompt_free(mode),
                    timeout,
                    dir=folder,
                    name=name,
                    config=config,
                    project=project,
                    entity=entity,
                    group=group,
                )
        except ValidationError as error:
            raise ValueError(_rejected(error)) from error
        except UsageError as error:
            raise ValueError(f"W&B: {error}") from error
        except ValueError:  # the mode requires a key
            raise
        except Exception as error:  # its process did not start, for which there are many kinds of errors
            if lost_worker(error):
                raise
            self._give_up(error)
            return
        if not run.offline and run.url:
            print(f"W&B: {run.url}")
        self.run_id = run.id
        _STARTED.add(self.run_id)

    def _start(self, mode: Any, timeout: float, **arguments: Any) -> wandb.Run:
        """Start the W&B run, or continue it, in one of W&B's own modes; offline if W&B fails to do so online."""
        own_id = self.run_id or _new_id()

        def start(mode: Any) -> wandb.Run:
            """Start a silent run that records neither code nor git remote; the program's other runs are left alone."""
            return wandb.init(
                **arguments,
                mode=mode,
                id=own_id,
                reinit="create_new",  # the program may have a W&B run of its own, which stays as it is
                resume="allow" if self.run_id and mode != "offline" else None,  # in offline mode, the id is enough
                settings=wandb.Settings(
                    silent=True,
                    console="off",
                    init_timeout=timeout,
                    finish_timeout=timeout,
                    # The URL of a git remote may contain a token, and a diff may contain anything.
                    disable_git=True,
                    disable_code=True,
                ),
            )

        try:
            self.run = start(mode)
        except UsageError:
            raise
        except wandb.Error as error:
            self.run = start("offline")
            problem = "could not be reached" if isinstance(error, CommError) else "did not accept the run"
            reason = (str(error) or type(error).__name__).splitlines()[0]
            self._say(f"W&B {problem}, so this run is logged offline: {reason}")
        return self.run

    def scalars(self, iteration: int, values: dict[str, float]) -> None:
        """Log scalars by name."""
        with self._expendable() as run:
            if run:
                run.log(values, step=iteration)

    def validation(
        self,
        iteration: int,
        header: Sequence[str],
        rows: Sequence[Sequence[Any]],
        panels: Sequence[tuple[np.ndarray, dict[str, Any]]],
    ) -> None:
        """Log the per-class table and the panels, each an RGB uint8 image and further arguments of ``wandb.Image``."""
        with self._expendable() as run:
            if not run:
                return
            try:
                images = [wandb.Image(pixels, **drawn) for pixels, drawn in panels]
                table = wandb.Table(columns=list(header), data=[list(row) for row in rows])
                run.log({"val/classes": table, "val/predictions": images}, step=iteration)
            except ConnectionError:
                raise
            except Exception as error:  # tables are uploaded and images stored at once, which can fail in many ways
                if lost_worker(error):
                    raise
                self._say(f"W&B did not accept the table of iteration {iteration}: {error or type(error).__name__}")

    def close(self, failed: bool) -> None:
        """Finish the W&B run, because a sweep starts the next one in the same process."""
        with self._expendable() as run:
            if run:
                run.finish(exit_code=int(failed))

    @contextmanager
    def _expendable(self) -> Generator[wandb.Run | None]:
        """Yield the run, and continue without W&B if the block fails.

        W&B's process may have died, as after a signal to all processes of a job. One that does not respond is ended.
        """
        try:
            with _time_limit(self._limit):
                yield self.run
        except Exception as error:
            if lost_worker(error):
                raise
            self._give_up(error)

    def _give_up(self, error: Exception) -> None:
        self._say(f"This run continues without W&B: {str(error) or type(error).__name__}")
        self.run = None
        if _has_ended(_process()):
            with suppress(Exception):
                wandb.teardown()  # otherwise, the next run of a sweep would try to use the dead process

    def _say(self, text: str) -> None:
        stored = f". To upload it later: wandb sync {quote(str(Path(self.run.dir).parent))}" if self.run else ""
        print(f"{text}{stored}", file=sys.stderr)


@contextmanager
def _time_limit(seconds: float) -> Generator[None]:
    """End W&B's process if the block takes longer: W&B would wait for it for ever, but raises an error once it ends."""
    timer = threading.Timer(seconds, _end_service)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


def _end_service() -> None:
    if process := _process():
        print("W&B's process does not respond and is ended", file=sys.stderr)
        process.kill()


def _process() -> subprocess.Popen | None:
    """Return the process that W&B has started; None if there is none. W&B itself has no function for this."""
    setup: Any = wandb_setup
    with suppress(AttributeError):  # W&B has started none, or another version stores it elsewhere
        return setup.singleton()._connection._proc._process
    return None


def _has_ended(process: subprocess.Popen | None) -> bool:
    """Return True if a process has ended, or is ending: it closes its connections first."""
    try:
        return process is not None and process.wait(1) is not None
    except subprocess.TimeoutExpired:
        return False


def _new_id() -> str | None:
    """Return the id of a new W&B run; None if W&B chooses it, which uses the environment variable ``WANDB_RUN_ID``.

    That variable identifies a single run, so it is ignored in a sweep and after the first run of a program.
    """
    run_id = os.environ.get("WANDB_RUN_ID")
    return secrets.token_hex(4) if run_id and (in_sweep() or run_id in _STARTED) else None


def _prompt_free(mode: str) -> str:
    """Return the mode of W&B for the option ``logger.mode``, such that W&B does not prompt for an API key.

    Raises:
        ValueError: the mode requires an API key that W&B does not have.
    """
    requested = os.environ.get("WANDB_MODE") if mode == "auto" else mode
    if requested and requested not in _ONLINE:
        return requested
    settings = wandb_setup.singleton().settings  # wandb.setup would also start W&B's process, and deadlock if it cannot
    chosen = requested or settings.mode
    if chosen not in _ONLINE or _logged_in(settings.base_url):
        return chosen
    if requested:
        option = "WANDB_MODE" if mode == "auto" else "logger.mode"
        raise ValueError(f"{option}={requested}, but W&B has no API key: run wandb login or set WANDB_API_KEY")
    return "offline"


def _rejected(error: ValidationError) -> str:
    """Return the message for a setting that W&B rejects, without its value, which may be secret."""
    first = error.errors()[0]
    name = ".".join(map(str, first["loc"]))
    return (
        f"W&B rejects its setting {name}: {first['msg']}. Correct the environment variable WANDB_{name.upper()}, the "
        "options of logger or W&B's settings files, or set logger=none"
    )


def _logged_in(server: str) -> bool:
    """Return True if there is a key or token for `server` in the environment or in a netrc file."""
    if os.environ.get("WANDB_API_KEY") or os.environ.get("WANDB_IDENTITY_TOKEN_FILE"):
        return True
    host = urlparse(server).hostname or ""
    for path in (os.environ.get("NETRC"), "~/.netrc", "~/_netrc"):
        if path and os.path.isfile(path := os.path.expanduser(path)):
            try:
                return netrc.netrc(path).authenticators(host) is not None
            except (netrc.NetrcParseError, OSError):
                return False
    return False
