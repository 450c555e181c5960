"""Frozen features on disk: safetensors shards of fixed-shape rows, found by key.

A shard is written under a temporary name and moved into place when it is whole, and its header
names the rows it holds. There is no index file that two writers could tear or a killed one leave
behind half done: the index is read from the headers.
"""

import json
import os
import shutil
import time
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from crome.errors import InputError, JobError

IDENTITY = "identity.json"
PART = ".part-"
SHARD_BYTES = 64 << 20
DISK_RESERVE = 1 << 30
"""Bytes of the disk that are never filled."""


class FeatureStore:
    """Rows of tensors by key, on disk.

    Safe under any number of writers and readers: the same row written twice is held twice and read
    once. A reader sees what was whole when it opened the folder or last called `refresh`.

    Args:
        folder: Where the shards are, or will be.
        identity: What the rows depend on (weights, preprocessing, type), as JSON; None for what
            the folder says.

    Raises:
        InputError: The folder holds rows of another identity, or a shard is damaged.
    """

    def __init__(self, folder: Path, identity: Mapping[str, Any] | None = None) -> None:
        self.folder = folder
        found = self._found_identity()
        self.identity: dict[str, Any] = (
            found or {} if identity is None else json.loads(json.dumps(identity))
        )
        self._check_identity(found)
        self._places: dict[str, tuple[Path, int]] = {}
        self._read: set[Path] = set()
        self._open: dict[Path, dict[str, Tensor]] = {}
        self.refresh()

    def __len__(self) -> int:
        return len(self._places)

    def __contains__(self, key: str) -> bool:
        return key in self._places

    def __getstate__(self) -> dict[str, Any]:
        # Mapped shards do not cross into loader processes; each maps them anew.
        return self.__dict__ | {"_open": {}}

    def keys(self) -> list[str]:
        """All keys, in the order of shards."""
        return list(self._places)

    def refresh(self) -> None:
        """Takes up the shards that were finished since."""
        for path in sorted(self.folder.glob("*.safetensors")):
            if path not in self._read:
                for row, key in enumerate(self._header(path)):
                    self._places.setdefault(key, (path, row))
                self._read.add(path)

    def rows(self, keys: Sequence[str], names: Sequence[str] | None = None) -> dict[str, Tensor]:
        """Reads rows.

        Args:
            keys: All of them present; a missing one is a KeyError.
            names: Of the tensors that are wanted, where a row has them; None for all.

        Returns:
            Name → (len(keys), …).
        """
        found = [(self._shard(path), row) for path, row in map(self._places.__getitem__, keys)]
        return {
            name: torch.stack([shard[name][row] for shard, row in found])
            for name in (found[0][0] if found else ())
            if names is None or name in names
        }

    @contextmanager
    def writer(self, limit: int | None = None) -> Iterator["Writer"]:
        """A writer that flushes what it holds when the block ends well.

        Args:
            limit: Bytes that this folder and those beside it may take together; None for no limit
                but the disk.
        """
        writer = Writer(self, limit)
        yield writer
        writer.flush()
        self.refresh()

    # ------------------------------------------------------------------ files

    def _found_identity(self) -> dict[str, Any] | None:
        path = self.folder / IDENTITY
        try:
            return json.loads(path.read_text()) if path.exists() else None
        except (OSError, ValueError) as error:
            raise InputError(f"{path} cannot be read ({error}); remove {self.folder}.") from error

    def _check_identity(self, found: dict[str, Any] | None) -> None:
        if found is None:
            return
        differ = [
            f"{name} is {found.get(name)!r} there and {self.identity.get(name)!r} here"
            for name in sorted(found.keys() | self.identity.keys())
            if found.get(name) != self.identity.get(name)
        ]
        if differ:
            raise InputError(
                f"{self.folder} holds features of something else: {'; '.join(differ)}. Name "
                "another folder, or remove this one."
            )

    def _header(self, path: Path) -> list[str]:
        try:
            with safe_open(path, "pt") as shard:
                metadata = shard.metadata() or {}
        except (SafetensorError, OSError) as error:
            raise InputError(
                f"{path} is no whole shard of features ({error}); remove it, and its rows are "
                "computed anew."
            ) from error
        if metadata.get("identity") != json.dumps(self.identity, sort_keys=True):
            raise InputError(
                f"{path} holds features of something else than its folder says; remove it."
            )
        return list(json.loads(metadata["keys"]))

    def _shard(self, path: Path) -> dict[str, Tensor]:
        """A shard's tensors, mapped and not read."""
        if path not in self._open:
            with safe_open(path, "pt") as shard:
                self._open[path] = {name: shard.get_tensor(name) for name in shard.keys()}
        return self._open[path]


class Writer:
    """Collects rows and writes them in shards.

    Args:
        store: Where they go.
        limit: See `FeatureStore.writer`.

    Attributes:
        held: Bytes taken over and not written yet.
    """

    def __init__(self, store: FeatureStore, limit: int | None) -> None:
        self.store = store
        self.limit = limit
        self._keys: list[str] = []
        self._blocks: list[dict[str, Tensor]] = []
        self.held = 0

    def add(self, keys: Sequence[str], tensors: Mapping[str, Tensor]) -> None:
        """Takes rows over.

        Args:
            keys: A name for each row.
            tensors: Name → (len(keys), …), the same shapes in every call.

        Raises:
            JobError: The disk is full or the limit reached; what was written before stays.
        """
        if not keys:
            return
        block = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
        self._keys += keys
        self._blocks.append(block)
        self.held += sum(tensor.nbytes for tensor in block.values())
        if self.held >= SHARD_BYTES:
            self.flush()

    def flush(self) -> None:
        """Writes what is held as one shard."""
        if not self._keys:
            return
        store = self.store
        tensors = {n: torch.cat([b[n] for b in self._blocks]) for n in self._blocks[0]}
        identity = json.dumps(store.identity, sort_keys=True)
        metadata = {"identity": identity, "keys": json.dumps(self._keys)}
        part = store.folder / f"{PART}{uuid.uuid4().hex}"
        try:
            store.folder.mkdir(parents=True, exist_ok=True)
            self._check_room(store.folder)
            remove_stale_parts(store.folder)
            part.write_text(json.dumps(store.identity, indent=2, sort_keys=True) + "\n")
            os.replace(part, store.folder / IDENTITY)
            save_file(tensors, part, metadata)
            os.replace(part, store.folder / f"{part.name.removeprefix(PART)}.safetensors")
        except (OSError, SafetensorError) as error:
            raise JobError(f"could not write features to {store.folder}: {error}.") from error
        finally:
            part.unlink(missing_ok=True)
        self._keys, self._blocks, self.held = [], [], 0

    def _check_room(self, folder: Path) -> None:
        free = shutil.disk_usage(folder).free - DISK_RESERVE
        if self.held > free:
            raise JobError(
                f"the disk of {folder} is full but for a reserve of {gigabytes(DISK_RESERVE)}; "
                "free some space, or go without the cache."
            )
        if self.limit is not None and folder_bytes(folder.parent) + self.held > self.limit:
            raise JobError(over(folder.parent, self.limit))


def folder_bytes(folder: Path) -> int:
    """Size of all files below a folder; one that vanishes meanwhile counts nothing."""
    total = 0
    for path in folder.rglob("*"):
        try:
            total += path.stat().st_size if path.is_file() else 0
        except FileNotFoundError:
            continue
    return total


def remove_stale_parts(folder: Path, age: float = 24 * 3600) -> None:
    """Removes what killed writers left; a living one finishes a shard within `age` seconds."""
    for part in folder.glob(f"{PART}*"):
        try:
            if time.time() - part.stat().st_mtime > age:
                part.unlink()
        except FileNotFoundError:
            continue


def over(folder: Path, limit: int) -> str:
    """What to say where a limit is reached."""
    return (
        f"{folder} would grow over its limit of {gigabytes(limit)}: raise it (limit_gb), remove "
        "old caches (`crome cache info` lists them), or go without."
    )


def gigabytes(size: float) -> str:
    """A number of bytes for people."""
    return f"{size / 1e9:.1f} GB"
