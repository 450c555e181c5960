"""YAML files of options, read so that no content can hang or crash a command."""

from pathlib import Path
from typing import Any

import yaml

from crome.errors import InputError

LARGEST = 2**20
"""Bytes of the largest file that is read: a file of options has a few hundred."""
MOST_VALUES = 100_000
"""Values that a file may hold after its aliases are followed, which can multiply without end."""


class OptionLoader(yaml.SafeLoader):
    """YAML's safe loader, which also refuses a key that is given twice."""

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
        """A mapping of a document."""
        keys = [key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode)]
        if twice := [key for key in keys if keys.count(key) > 1 and key != "<<"]:
            raise yaml.constructor.ConstructorError(
                None, None, f"{twice[0]} is given twice", node.start_mark
            )
        return super().construct_mapping(node, deep)


def read_config(path: Path) -> dict[str, Any]:
    """The options in a YAML file.

    Args:
        path: A file that holds one mapping.

    Raises:
        InputError: The file is missing, too large, not text, not YAML, or holds something else.
    """
    try:
        size = path.stat().st_size
        if size > LARGEST:
            raise InputError(f"{path} has {size:,} bytes; expected a YAML file of options.")
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not text"
        raise InputError(f"{path} cannot be read ({reason}); expected a YAML file.") from error
    options = parse(text, str(path))
    if options is None:
        return {}
    if not isinstance(options, dict) or not all(isinstance(key, str) for key in options):
        raise InputError(f"{path} holds {type(options).__name__}; expected options, as `seed: 1`.")
    return options


def parse(text: str, name: str) -> Any:
    """The value of a YAML document.

    Args:
        text: The document.
        name: The file or option that it comes from, for messages.

    Raises:
        InputError: It is not YAML, nested too deeply, or grows without bound when aliases are
            followed.
    """
    try:
        value = yaml.load(text, OptionLoader)
        bounded(value)
    except RecursionError as error:
        raise InputError(
            f"{name} is nested too deeply; expected a YAML file of options."
        ) from error
    except (yaml.YAMLError, ValueError) as error:
        reason = " ".join(str(error).split())[:300]
        raise InputError(f"{name} does not parse as YAML: {reason}") from error
    return value


def bounded(value: Any) -> None:
    """Follows a document with its aliases up to the largest size that is allowed.

    Raises:
        ValueError: It is larger, or contains itself.
    """
    waiting, seen = [value], 0
    while waiting:
        seen += 1
        if seen > MOST_VALUES:
            raise ValueError(f"it holds more than {MOST_VALUES:,} values")
        here = waiting.pop()
        if isinstance(here, dict):
            waiting += [*here.keys(), *here.values()]
        elif isinstance(here, list | tuple | set):
            waiting += here
