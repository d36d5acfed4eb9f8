"""Weights & Biases: online for who is logged in, offline for everybody else, and never a question."""

import netrc
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from urllib.parse import urlparse

import numpy as np
import wandb


class WandbRun:
    """One W&B run.

    Args:
        folder: of the run; W&B keeps its files in a folder in it.
        name: shown in the run list.
        config: of the run, plain.
        project, entity: where the run goes.
        mode: "auto", or one of W&B's own: "online", "offline", "disabled".
        run_id: of the run to continue, if any.
    """

    def __init__(
        self,
        folder: Path,
        *,
        name: str,
        config: dict[str, Any],
        project: str,
        entity: str | None = None,
        mode: str = "auto",
        run_id: str | None = None,
    ):
        if mode == "auto":
            mode = os.environ.get("WANDB_MODE") or ("online" if _logged_in() else "offline")
        self.run = wandb.init(
            dir=folder,
            name=name,
            config=config,
            project=project,
            entity=entity,
            mode=mode,
            id=run_id,
            resume="allow" if run_id else None,
            # A remote's address may hold a token, and changed files anything.
            settings=wandb.Settings(silent=mode != "online", console="off", disable_git=True, disable_code=True),
        )

    @property
    def run_id(self) -> str:
        """What :class:`WandbRun` needs to continue this run."""
        return self.run.id

    def scalars(self, iteration: int, values: dict[str, float]) -> None:
        """Log numbers by name."""
        self.run.log(values, step=iteration)

    def validation(
        self,
        iteration: int,
        header: Sequence[str],
        rows: Sequence[Sequence[Any]],
        panels: Sequence[tuple[np.ndarray, dict[str, Any]]],
    ) -> None:
        """Log the table by class and the panels, which W&B draws: RGB uint8 and arguments of ``wandb.Image``."""
        images = [wandb.Image(pixels, **drawn) for pixels, drawn in panels]
        table = wandb.Table(columns=list(header), data=[list(row) for row in rows])
        self.run.log({"val/classes": table, "val/predictions": images}, step=iteration)

    def close(self, failed: bool) -> None:
        """End the run; a sweep starts the next one in the same process."""
        self.run.finish(exit_code=int(failed))


def _logged_in() -> bool:
    """Whether W&B would find a key without asking: in the environment or in a netrc file."""
    if os.environ.get("WANDB_API_KEY"):
        return True
    host = urlparse(os.environ.get("WANDB_BASE_URL") or "https://api.wandb.ai").hostname
    for path in (os.environ.get("NETRC"), "~/.netrc", "~/_netrc"):
        if path and Path(path).expanduser().is_file():
            try:
                return netrc.netrc(Path(path).expanduser()).authenticators(host) is not None
            except (netrc.NetrcParseError, OSError):
                return False
    return False
