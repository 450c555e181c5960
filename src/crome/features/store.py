"""Frozen features on disk: safetensors shards of fixed-shape rows, found by key.

A shard is written under a temporary name and moved into place when it is whole. Its header names
its rows and their checksums. The index is read from these headers, so there is no index file that
two writers could damage or a killed one leave half done. A truncated shard counts as absent: its
rows are computed again, and the next writer removes it. A row that fails its checksum is refused
with the name of its shard.
"""

import json
import logging
import shutil
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
from crome.storage import ABANDONED, folder_bytes, mark_used, remove_leftovers, replaced, write_json

IDENTITY = "identity.json"
SHARD_BYTES = 64 << 20
DISK_RESERVE = 1 << 30
"""Bytes of the disk that are never filled."""

logger = logging.getLogger(__name__)


class FeatureStore:
    """Rows of tensors by key, on disk.

    Safe under any number of writers and readers: a row written twice is stored twice and read once.
    A reader sees the shards that were whole when it opened the folder or last called `refresh`.

    Args:
        folder: Where the shards are, or will be.
        identity: What the rows depend on (weights, preprocessing, type), as JSON; None to take
            what the folder says.

    Attributes:
        damaged: Shards that are not whole.

    Raises:
        InputError: The folder holds rows of another identity.
    """

    def __init__(self, folder: Path, identity: Mapping[str, Any] | None = None) -> None:
        self.folder = folder
        found = self._found_identity()
        self.identity: dict[str, Any] = (
            found or {} if identity is None else json.loads(json.dumps(identity))
        )
        self._check_identity(found)
        self.damaged: set[Path] = set()
        self._places: dict[str, tuple[Path, int]] = {}
        self._sums: dict[Path, dict[str, list[int]]] = {}
        self._checked: set[tuple[Path, str, int]] = set()
        self._read: set[Path] = set()
        self._open: dict[Path, dict[str, Tensor]] = {}
        self.refresh()
        if identity is not None:
            mark_used(self.folder)

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
        """Finds the shards that were finished meanwhile."""
        for path in sorted(self.folder.glob("*.safetensors")):
            if path in self._read or path in self.damaged:
                continue
            try:
                keys, self._sums[path] = self._header(path)
            except FileNotFoundError:
                continue  # removed meanwhile
            except InputError:
                raise
            # safetensors' own error, or any error over a header that this class did not write
            except (
                SafetensorError, OSError, ValueError, TypeError, KeyError, AttributeError,
                RecursionError,
            ) as error:  # fmt: skip
                self.damaged.add(path)
                logger.warning(
                    "%s is no whole shard of features (%s); its rows are computed anew", path, error
                )
                continue
            for row, key in enumerate(keys):
                self._places.setdefault(key, (path, row))
            self._read.add(path)

    def rows(self, keys: Sequence[str], names: Sequence[str] | None = None) -> dict[str, Tensor]:
        """Reads rows.

        Args:
            keys: All of them present; a missing one is a KeyError.
            names: The tensors wanted, where a row has them; None for all.

        Returns:
            For each name a tensor (len(keys), …).

        Raises:
            InputError: A row fails its checksum.
        """
        places = [self._places[key] for key in keys]
        found = [(self._shard(path), path, row) for path, row in places]
        return {
            name: torch.stack([self._row(name, *place) for place in found])
            for name in (found[0][0] if found else ())
            if names is None or name in names
        }

    def _row(self, name: str, shard: dict[str, Tensor], path: Path, row: int) -> Tensor:
        """One row, compared with its checksum when it is first read; older shards have none."""
        tensor = shard[name][row]
        written = self._sums[path].get(name)
        if written is None or (path, name, row) in self._checked:
            return tensor
        if checksum(tensor) != written[row]:
            raise InputError(
                f"{path} is damaged: {name} of a row are not what was written. Remove the file; "
                "its rows are computed anew."
            )
        self._checked.add((path, name, row))
        return tensor

    @contextmanager
    def writer(self, limit: int | None = None) -> Iterator["Writer"]:
        """A writer that flushes its rows when the block ends well.

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
        """The identity that the folder names; None where its file is absent or damaged."""
        try:
            found = json.loads((self.folder / IDENTITY).read_text(encoding="utf-8"))
        except (OSError, ValueError, RecursionError):
            return None
        return found if isinstance(found, dict) else None

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

    def _header(self, path: Path) -> tuple[list[str], dict[str, list[int]]]:
        """Keys of a shard's rows, and the checksums of each of its tensors."""
        with safe_open(path, "pt") as shard:
            metadata = shard.metadata() or {}
            sizes = {shard.get_slice(name).get_shape()[0] for name in shard.keys()}
        keys = json.loads(metadata["keys"])
        sums = json.loads(metadata.get("checksums", "{}"))
        if sizes != {len(keys)} or any(len(each) != len(keys) for each in sums.values()):
            raise ValueError("its header and its rows disagree")
        if self.identity and metadata["identity"] != json.dumps(self.identity, sort_keys=True):
            raise InputError(
                f"{path} holds features of something else than its folder says; remove it."
            )
        return [str(key) for key in keys], sums

    def _shard(self, path: Path) -> dict[str, Tensor]:
        """A shard's tensors, mapped and not read."""
        if path not in self._open:
            try:
                with safe_open(path, "pt") as shard:
                    self._open[path] = {name: shard.get_tensor(name) for name in shard.keys()}
            except (OSError, SafetensorError) as error:
                raise InputError(
                    f"{path} is gone or damaged since this run began ({error}); start again, and "
                    "its rows are computed anew."
                ) from error
        return self._open[path]


class Writer:
    """Collects rows and writes them in shards.

    Args:
        store: Where the shards go.
        limit: See `FeatureStore.writer`.

    Attributes:
        held: Bytes collected and not written yet.
    """

    def __init__(self, store: FeatureStore, limit: int | None) -> None:
        self.store = store
        self.limit = limit
        self._keys: list[str] = []
        self._blocks: list[dict[str, Tensor]] = []
        self.held = 0

    def add(self, keys: Sequence[str], tensors: Mapping[str, Tensor]) -> None:
        """Collects rows.

        Args:
            keys: A name for each row.
            tensors: For each name a tensor (len(keys), …), of the same shapes in every call.

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
        """Writes all rows collected so far as one shard."""
        if not self._keys:
            return
        store = self.store
        tensors = {n: torch.cat([b[n] for b in self._blocks]) for n in self._blocks[0]}
        metadata = {
            "identity": json.dumps(store.identity, sort_keys=True),
            "keys": json.dumps(self._keys),
            "checksums": json.dumps({name: [*map(checksum, t)] for name, t in tensors.items()}),
        }
        try:
            store.folder.mkdir(parents=True, exist_ok=True)
            self._check_room(store.folder)
            remove_leftovers(store.folder, age=ABANDONED)
            for path in store.damaged:
                if path.is_file():
                    path.unlink(missing_ok=True)
            write_json(store.folder / IDENTITY, store.identity)
            with replaced(store.folder / f"{uuid.uuid4().hex}.safetensors") as part:
                save_file(tensors, part, metadata)
        except (OSError, SafetensorError) as error:
            raise JobError(f"could not write features to {store.folder}: {error}.") from error
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


def checksum(row: Tensor) -> int:
    """A number that any single damaged bit of a row changes: the sum of its machine words."""
    flat = row.reshape(-1).view(torch.uint8)
    word = next(t for t in (torch.int64, torch.int32, torch.int16, torch.uint8)
                if len(flat) % t.itemsize == 0)  # fmt: skip
    return int(flat.view(word).sum(dtype=torch.int64))


def over(folder: Path, limit: int) -> str:
    """The message where a limit is reached."""
    return (
        f"{folder} would grow over its limit of {gigabytes(limit)}: raise it (limit_gb), remove "
        "old caches (`crome cache info` lists them), or go without."
    )


def gigabytes(size: float) -> str:
    """A number of bytes for people."""
    return f"{size / 1e9:.1f} GB"
