"""Where a checkpoint or a tower is: a folder, a packaged base, an asset, or on the hub."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path

from huggingface_hub import constants, get_session, snapshot_download
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError
from safetensors import SafetensorError

from crome.assets import packages
from crome.errors import InputError

HUB_FILES = ["*.json", "*.safetensors", "*.txt"]
PACKAGED = Path(__file__).parent.parent / "weights"
"""Trained bridges that ship with the package, a folder each."""


def locate(name: str | os.PathLike[str], revision: str | None = None) -> Path:
    """The folder of a checkpoint: a local one, a preset that has weights, or a hub id.

    Raises:
        InputError: None of the three.
    """
    if (folder := Path(name)).is_dir():
        return folder
    if (packaged := PACKAGED / str(name)).is_dir():
        return packaged
    try:
        return Path(snapshot_download(str(name), revision=revision, allow_patterns=HUB_FILES))
    except (HFValidationError, HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        absent = isinstance(error, HFValidationError | HfHubHTTPError)
        known = ", ".join(sorted(p.name for p in PACKAGED.glob("*"))) or "none"
        raise InputError(
            f"no checkpoint {str(name)!r}: not a folder, not a packaged base ({known}), and "
            f"{'not on the hub' if absent else 'the hub cannot be reached'}."
        ) from error


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
    except (OSError, ValueError, ImportError, SafetensorError) as error:
        reason = str(error).strip().split("\n")[0][:300].rstrip(".")
        raise InputError(
            f"the {part} {name!r} cannot be loaded: {reason}. Expected a whole folder, or a hub id "
            "that can be reached."
        ) from error


@cache
def reach_hub() -> None:
    """Asks the hub once; without a connection, names on it mean what is cached of them.

    Only a connection that cannot be made counts (no such name, no route, nobody there): what is
    slow or fails later is asked again by the libraries, as ever.
    """
    if constants.is_offline_mode():
        return
    try:
        get_session().head(constants.ENDPOINT, timeout=constants.HF_HUB_ETAG_TIMEOUT)
    except Exception as error:  # of whichever HTTP client the library has
        if type(error).__name__ in ("ConnectError", "ConnectTimeout", "ProxyError"):
            constants.HF_HUB_OFFLINE = True
