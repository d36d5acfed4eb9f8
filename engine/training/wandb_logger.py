"""Weights & Biases: online for who is logged in, offline for everybody else, and never a question."""

import netrc
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any
from urllib.parse import urlparse

import numpy as np
import wandb

from ..runtime.lost_workers import lost_worker


class WandbRun:
    """One W&B run. A run does not wait for W&B, nor does it end because W&B does.

    Args:
        folder: of the run; W&B keeps its files in a folder in it.
        name: shown in the run list.
        config: of the run, plain.
        project, entity: where the run goes.
        group: of runs that are shown together.
        mode: "auto", or one of W&B's own: "online", "offline", "disabled".
        timeout: seconds; where W&B cannot be reached within them, the run goes on offline, and what has not been
            uploaded by so long after its end stays in its folder.
        run_id: of the run to continue, if any.

    Attributes:
        run_id: what :class:`WandbRun` needs to continue this run.
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
        if mode == "auto":
            mode = os.environ.get("WANDB_MODE") or ("online" if _logged_in() else "offline")
        elif mode == "online" and not _logged_in():  # where there is a terminal, W&B would ask
            raise ValueError("logger.mode=online, but there is no key: wandb login, or WANDB_API_KEY, gives W&B one")
        # W&B's reports of its own errors need the network too: without one they wait, and complain.
        os.environ.setdefault("WANDB_ERROR_REPORTING", "false")

        def start(mode: str) -> wandb.Run:
            return wandb.init(
                dir=folder,
                name=name,
                config=config,
                project=project,
                entity=entity,
                group=group,
                mode=mode,
                id=run_id,
                resume="allow" if run_id and mode != "offline" else None,  # offline the id alone does it
                settings=wandb.Settings(
                    silent=True,
                    console="off",
                    init_timeout=timeout,
                    finish_timeout=timeout,
                    # A remote's address may hold a token, and changed files anything.
                    disable_git=True,
                    disable_code=True,
                ),
            )

        try:
            self.run = start(mode)
        except wandb.errors.CommError as error:
            self.run = start("offline")
            self._say(f"W&B could not be reached, so this run is logged offline: {str(error).splitlines()[0]}")
        if not self.run.offline and self.run.url:
            print(f"W&B: {self.run.url}")
        self.run_id: str = self.run.id

    def scalars(self, iteration: int, values: dict[str, float]) -> None:
        """Log numbers by name."""
        with self._expendable():
            self.run.log(values, step=iteration)

    def validation(
        self,
        iteration: int,
        header: Sequence[str],
        rows: Sequence[Sequence[Any]],
        panels: Sequence[tuple[np.ndarray, dict[str, Any]]],
    ) -> None:
        """Log the table by class and the panels, which W&B draws: RGB uint8 and arguments of ``wandb.Image``."""
        with self._expendable():
            images = [wandb.Image(pixels, **drawn) for pixels, drawn in panels]
            table = wandb.Table(columns=list(header), data=[list(row) for row in rows])
            try:
                self.run.log({"val/classes": table, "val/predictions": images}, step=iteration)
            except ConnectionError:
                raise
            except Exception as error:  # a table is sent at once, and W&B's errors are of many kinds
                if lost_worker(error):
                    raise
                self._say(f"W&B has not taken the table of iteration {iteration}: {error or type(error).__name__}")

    def close(self, failed: bool) -> None:
        """End the run; a sweep starts the next one in the same process."""
        with self._expendable(Exception):
            self.run.finish(exit_code=int(failed))

    @contextmanager
    def _expendable(self, errors: type[Exception] = ConnectionError) -> Iterator[None]:
        """Go on without W&B when its process is gone: a signal to all processes of a job ends it."""
        try:
            yield
        except errors as error:
            self._say(f"This run goes on without W&B: {str(error) or type(error).__name__}")
            with suppress(Exception):
                wandb.teardown()  # or the next run of a sweep would look for the one that is gone
            self.run = wandb.init(mode="disabled")

    def _say(self, text: str) -> None:
        print(f"{text}. Later: wandb sync {Path(self.run.dir).parent}", file=sys.stderr)


def _logged_in() -> bool:
    """Whether W&B would find a key or a token without asking: in the environment or in a netrc file."""
    if os.environ.get("WANDB_API_KEY") or os.environ.get("WANDB_IDENTITY_TOKEN_FILE"):
        return True
    host = urlparse(os.environ.get("WANDB_BASE_URL") or "https://api.wandb.ai").hostname
    for path in (os.environ.get("NETRC"), "~/.netrc", "~/_netrc"):
        if path and Path(path).expanduser().is_file():
            try:
                return netrc.netrc(Path(path).expanduser()).authenticators(host) is not None
            except (netrc.NetrcParseError, OSError):
                return False
    return False
