"""Find pretrained networks in the package and in Hugging Face repositories."""

import re
from pathlib import Path
from typing import Any

from ...conf import CONF
from .folders import CONFIG, WEIGHTS

DEFAULT = "ccnet_mobilenetv2_camvid"
DOWNLOAD_OPTIONS = ("revision", "token", "cache_dir", "local_files_only", "force_download")
PACKAGED = (DEFAULT,)  # names; each is a folder in models/pretrained
_FOLDER = CONF.parent / "models" / "pretrained"
_REPOSITORY = re.compile(r"[\w-][\w.-]*/[\w-][\w.-]*")


def packaged_file(name: str) -> Path:
    """Return the path of a packaged network's weights; never accesses the internet.

    Raises:
        FileNotFoundError: the file is missing from this installation.
    """
    path = _FOLDER / name / WEIGHTS
    if not path.is_file():
        raise FileNotFoundError(
            f"the pretrained network {name} is missing from this installation ({path} does not exist): install a "
            "release that contains it, or train a network and pass its run, as in checkpoint=RUN"
        )
    return path


def download(repository: str, **options: Any) -> Path:
    """Download config.json and model.safetensors, and no other file, of a Hugging Face repository; return their folder.

    Args:
        repository: the repository's id, "OWNER/NAME".
        **options: the ``DOWNLOAD_OPTIONS`` of ``huggingface_hub.snapshot_download``.

    Raises:
        FileNotFoundError: `repository` is not an id, or there is no such repository.
        OSError: the download failed, or the repository lacks one of the files.
    """
    if not _REPOSITORY.fullmatch(repository):
        raise FileNotFoundError(
            f"there is no pretrained network {repository}: pass one of {', '.join(PACKAGED)}, a folder with {CONFIG} "
            f"and {WEIGHTS}, the folder of a run, or a Hugging Face repository OWNER/NAME"
        )
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import RepositoryNotFoundError

    try:
        folder = Path(snapshot_download(repository, allow_patterns=[CONFIG, WEIGHTS], **options))
    except RepositoryNotFoundError as error:
        raise FileNotFoundError(
            f"there is neither a folder {repository} nor a Hugging Face repository of this name that you can read"
        ) from error
    except Exception as error:  # the hub raises its own errors and those of its HTTP client and of the file system
        raise OSError(
            f"there is no folder {repository}, and the Hugging Face repository of this name cannot be downloaded: "
            f"{error}"
        ) from error
    missing = [name for name in (CONFIG, WEIGHTS) if not (folder / name).is_file()]
    if missing:
        raise OSError(f"the Hugging Face repository {repository} lacks {' and '.join(missing)}")
    return folder
