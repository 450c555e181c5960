"""Where a checkpoint or a tower is: a folder, a packaged base, an asset, or on the hub."""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import HfApi, constants, get_session, snapshot_download
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError
from safetensors import SafetensorError

from crome.assets import packages
from crome.errors import InputError, JobError

SMALL_FILES = ["*.json", "*.txt"]
HUB_FILES = [*SMALL_FILES, "*.safetensors"]
PACKAGED = Path(__file__).parent.parent / "weights"
"""Trained bridges that ship with the package, a folder each."""


def locate(
    name: str | os.PathLike[str],
    revision: str | None = None,
    check: Callable[[Path], object] | None = None,
    **hub: Any,
) -> Path:
    """The folder of a checkpoint: a local one, a preset that has weights, or a hub id.

    Args:
        name: One of the three.
        revision: Revision of a repository on the hub.
        check: Looks at the folder of a repository while it has only its small files, before any
            weights are fetched.
        hub: Further keywords of `snapshot_download`.

    Raises:
        InputError: None of the three, or the check refuses it.
    """
    if (folder := Path(name)).is_dir():
        return folder
    if (packaged := PACKAGED / str(name)).is_dir():
        return packaged
    if folder.is_file():
        raise InputError(
            f"{name} is a file; a checkpoint is the folder that holds config.json and the weights. "
            "(A language model in a .gguf file goes into --language_model of `crome train`.)"
        )
    wanted = {"revision": revision, **hub}
    try:
        if check is not None:
            check(Path(snapshot_download(str(name), allow_patterns=SMALL_FILES, **wanted)))
        return Path(snapshot_download(str(name), allow_patterns=HUB_FILES, **wanted))
    except InputError:
        raise
    except (HFValidationError, HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        absent = isinstance(error, HFValidationError | HfHubHTTPError)
        known = ", ".join(sorted(p.name for p in PACKAGED.glob("*"))) or "none"
        raise InputError(
            f"no checkpoint {str(name)!r}: not a folder, not a packaged base ({known}), and "
            f"{'not on the hub' if absent else 'the hub cannot be reached'}."
        ) from error


def upload_folder(folder: Path, repository: bool | str) -> None:
    """Puts a folder on the hub, in a repository that is made if absent.

    Args:
        folder: What to upload.
        repository: Its id; True for the folder's name.

    Raises:
        JobError: The hub cannot be reached, or refuses.
    """
    name = folder.name if repository is True else str(repository)
    try:
        api = HfApi()
        api.create_repo(name, exist_ok=True)
        api.upload_folder(repo_id=name, folder_path=folder)
    except (HfHubHTTPError, HFValidationError, OSError, ValueError) as error:
        reason = " ".join(str(error).split())[:200]
        raise JobError(
            f"{folder} is written, and not on the hub as {name!r}: {reason}. Log in with "
            "`hf auth login` and try `hf upload`."
        ) from error


def whole_name(name: str) -> str:
    """A name as it holds in any working folder: the whole path of a folder, any other as it is."""
    return str(Path(name).resolve()) if name and os.path.exists(name) else name


def tower_path(name: str) -> str:
    """Resolves an `asset:` name to its folder; other names are left to transformers."""
    return str(packages.resolve(name.removeprefix("asset:"))) if name.startswith("asset:") else name


@contextmanager
def named(part: str, name: str) -> Iterator[None]:
    """Says which part it was that a library could not load."""
    try:
        yield
    except InputError:
        raise
    except torch.OutOfMemoryError:
        raise
    # The last three are how transformers fails over a description that is no object.
    except (OSError, ValueError, ImportError, SafetensorError, RuntimeError,
            AttributeError, KeyError, TypeError) as error:  # fmt: skip
        reason = str(error).strip().split("\n")[0][:300].rstrip(".")
        remedy = "Expected a whole folder, or a hub id that can be reached."
        if "custom code" in reason:
            reason = "it needs code of its own, and code out of a checkpoint is never run here"
            remedy = "Take a version of it that transformers itself has a class for."
        elif "ignore_mismatched_sizes" in reason:
            reason = "its weights have other shapes than its config.json says"
            remedy = "Copy the folder anew."
        raise InputError(f"the {part} {name!r} cannot be loaded: {reason}. {remedy}") from error


@cache
def reach_hub() -> None:
    """Asks the hub once; without a connection, names on it mean what is cached of them.

    Only a failure to connect counts (no such name, no route, no server). Whatever is slow or fails
    later is tried again by the libraries as usual.
    """
    if constants.is_offline_mode():
        return
    try:
        get_session().head(constants.ENDPOINT, timeout=constants.HF_HUB_ETAG_TIMEOUT)
    except Exception as error:  # of whichever HTTP client the library has
        if type(error).__name__ in ("ConnectError", "ConnectTimeout", "ProxyError"):
            constants.HF_HUB_OFFLINE = True
