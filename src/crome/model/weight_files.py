"""Some tensors of a large checkpoint: only the files that hold them are fetched and read."""

from pathlib import Path

from safetensors import safe_open
from torch import Tensor
from transformers.utils.hub import cached_file

from crome.errors import InputError
from crome.storage import read_object


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
        shards = read_index(Path(index))
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


def read_index(path: Path) -> dict[str, str]:
    """The file of each tensor, as an index of shards names them.

    Raises:
        InputError: The index is damaged.
    """
    try:
        shards = read_object(path)["weight_map"]
        if not all(isinstance(file, str) for file in shards.values()):
            raise ValueError("a file's name is no text")
    except (OSError, ValueError, KeyError, AttributeError) as error:
        raise InputError(
            f"{path} does not say which file holds which weights ({error}); copy the folder anew."
        ) from error
    return dict(shards)


def fetch(source: str, name: str, revision: str | None) -> str | None:
    """Path of a file of a folder or of a repository on the hub; None where it has none such."""
    try:
        return cached_file(
            source, name, revision=revision, _raise_exceptions_for_missing_entries=False
        )
    except OSError as error:
        reason = str(error).strip().split("\n")[0].rstrip(".")
        raise InputError(f"{source} cannot be read: {reason}.") from error
