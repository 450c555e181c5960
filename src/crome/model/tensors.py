"""Tensors in safetensors files: written whole or not at all, read with one clear error."""

from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from crome.errors import InputError, JobError
from crome.storage import replaced


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
    """Copies `tensors` into a module after checking names and shapes against `expected`."""
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
    module.load_state_dict(tensors, strict=False)
