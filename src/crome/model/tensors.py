"""Tensors in safetensors files, some of a large checkpoint's, and a hash of many."""

import hashlib
from collections.abc import Iterable
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers.utils.hub import cached_file

from crome.errors import InputError, JobError
from crome.storage import read_object, replaced

QUANTISED = ("Linear4bit", "Linear8bitLt")
"""Layers of bitsandbytes, a package that not everyone has."""


def save_tensors(tensors: dict[str, Tensor], path: Path, metadata: dict[str, str]) -> None:
    """Writes safetensors whole or not at all."""
    contiguous = {k: v.detach().cpu().contiguous() for k, v in tensors.items()}
    try:
        with replaced(path) as temporary:
            save_file(contiguous, temporary, {"format": "pt", **metadata})
    except SafetensorError as error:
        raise JobError(
            f"could not write {path}: {error}. What was there before is intact."
        ) from error


def load_tensors(path: Path) -> dict[str, Tensor]:
    """Reads a safetensors file, with one clear error when it is absent or damaged."""
    try:
        return load_file(path)
    except FileNotFoundError as error:
        raise InputError(f"{path} does not exist; is {path.parent} a checkpoint folder?") from error
    except (SafetensorError, OSError) as error:
        raise InputError(
            f"{path} cannot be read ({error}); it is damaged or was cut off while copying."
        ) from error


def load_strictly(
    module: nn.Module, tensors: dict[str, Tensor], expected: dict[str, Tensor], source: Path
) -> None:
    """Copies `tensors` into a module after checking names and shapes against `expected`.

    Raises:
        InputError: They do not fit, or hold numbers that are not finite, with which every answer
            would fail.
    """
    problems = [f"missing {name}" for name in expected.keys() - tensors.keys()]
    problems += [f"unexpected {name}" for name in tensors.keys() - expected.keys()]
    problems += [
        f"{name} is {tuple(tensors[name].shape)}, expected {tuple(expected[name].shape)}"
        for name in expected.keys() & tensors.keys()
        if tensors[name].shape != expected[name].shape
    ]
    if problems:
        shown = "; ".join(sorted(problems)[:5]) + (" …" if len(problems) > 5 else "")
        raise InputError(f"{source} does not fit this model: {shown}.")
    for name, tensor in tensors.items():
        if not is_finite(tensor):
            raise InputError(f"{source}: {name} holds numbers that are not finite; train it anew.")
    module.load_state_dict(tensors, strict=False)


def is_finite(tensor: Tensor) -> bool:
    """Whether a tensor holds neither NaN nor infinite values; of eight bits it is not asked."""
    wide = tensor.is_floating_point() and tensor.element_size() > 1
    if not wide or not tensor.numel() or tensor.is_meta:
        return True
    return all(bool(end.isfinite()) for end in tensor.detach().aminmax())


def require_sound(model: nn.Module, missing: Iterable[str]) -> None:
    """Refuses what transformers has loaded although it is no model that can answer.

    Args:
        model: As loaded.
        missing: Names of tensors that the files lack, for which values were drawn at random.

    Raises:
        OSError: A tensor is missing, or holds numbers that are not finite, or weights that are
            called quantised are not.
    """
    if lacking := sorted(missing):
        raise OSError(f"it lacks {lacking[0]}")
    for name, module in model.named_modules():
        if type(module).__name__ in QUANTISED and module.weight.is_floating_point():
            raise OSError(
                f"its config.json calls {name} quantised, which it is not; take "
                "quantization_config out of it"
            )
    for name, parameter in model.named_parameters():
        if not is_finite(parameter):
            raise OSError(f"its {name} holds numbers that are not finite")


def fingerprint(state: dict[str, Tensor]) -> str:
    """A short hash of tensor names, shapes and sampled values, the same in float32 and bfloat16.

    At most 64 values of a tensor are read, so that 13 B parameters take a moment; they are rounded
    to bfloat16, because a tower may be loaded in either type.
    """
    digest = hashlib.sha256()
    for name in sorted(state):
        tensor = state[name].detach()
        digest.update(f"{name}{tuple(tensor.shape)}".encode())
        if tensor.is_floating_point() and tensor.numel():
            flat = tensor.reshape(-1)
            samples = min(64, flat.numel())
            picks = torch.arange(samples) * (flat.numel() - 1) // max(1, samples - 1)
            sample = flat[picks.to(flat.device)].to(torch.bfloat16).cpu().float()
            digest.update(sample.numpy().tobytes())
    return digest.hexdigest()[:16]


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
