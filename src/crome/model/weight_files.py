"""Some tensors of a large checkpoint: only the files that hold them are fetched and read."""

import json
from collections.abc import Mapping
from pathlib import Path

from safetensors import safe_open
from torch import Tensor
from transformers.utils.hub import cached_file

from crome.errors import InputError


def by_prefix(
    source: str, prefixes: tuple[str, ...], revision: str | None = None
) -> tuple[dict[str, Tensor], list[str]]:
    """Tensors whose names begin in one of some ways, and the names of all there are.

    Only the files that hold any of them are fetched, and only they are read.

    Args:
        source: Hub id or folder.
        prefixes: Beginnings of names.
        revision: On the hub.
    """
    index = fetch(source, "model.safetensors.index.json", revision)
    if index is None:
        if (single := fetch(source, "model.safetensors", revision)) is None:
            raise InputError(
                f"{source} has neither model.safetensors nor its index; expected a hub id "
                "that can be reached, or a folder, with weights in safetensors."
            )
        with safe_open(single, "pt") as file:
            files = dict.fromkeys(file.keys(), single)
    else:
        shards: Mapping[str, str] = json.loads(Path(index).read_text())["weight_map"]
        wanted = {shards[name] for name in shards if name.startswith(prefixes)}
        paths = {shard: fetch(source, shard, revision) for shard in sorted(wanted)}
        if missing := [shard for shard, path in paths.items() if path is None]:
            raise InputError(f"{source} lacks {missing[0]}, which its index names.")
        files = {name: str(paths.get(shard) or "") for name, shard in shards.items()}
    chosen = [name for name in files if name.startswith(prefixes)]
    tensors: dict[str, Tensor] = {}
    for path in sorted({files[name] for name in chosen}):
        with safe_open(path, "pt") as file:
            here = set(file.keys())
            tensors |= {n: file.get_tensor(n) for n in chosen if files[n] == path and n in here}
    return tensors, list(files)


def fetch(source: str, name: str, revision: str | None) -> str | None:
    """Path of a file of a folder or of a repository on the hub; None where it has none such."""
    try:
        return cached_file(
            source, name, revision=revision, _raise_exceptions_for_missing_entries=False
        )
    except OSError as error:
        reason = str(error).strip().split("\n")[0].rstrip(".")
        raise InputError(f"{source} cannot be read: {reason}.") from error
