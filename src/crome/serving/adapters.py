"""Names that clients know → adapters in the model; added and removed while it serves."""

import itertools
import re
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from crome.errors import InputError
from crome.model.adapter_files import ADAPTER_CONFIG
from crome.serving.engine.protocol import Engine
from crome.serving.errors import TakenError, UnknownError
from crome.storage import read_object

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")


@dataclass(frozen=True)
class Served:
    """A loaded adapter.

    Attributes:
        name: What clients call it.
        key: Its place in the model, never used twice: a prefix that was cached for an adapter
            cannot be met again by another of the same name.
        created: Seconds since the epoch.
        about: What its `adapter_config.json` says besides shapes and base.
    """

    name: str
    key: str | None
    created: int = field(default_factory=lambda: int(time.time()))
    about: dict[str, Any] = field(default_factory=dict)


class Adapters:
    """The base and its adapters by name.

    Args:
        engine: Its model holds them.
        base: Name of the base itself.
        roots: Folders from which adapters may be added at run time.
    """

    def __init__(self, engine: Engine, base: str, roots: Sequence[Path] = ()) -> None:
        self.engine = engine
        self.base = base
        self.roots = [root.resolve() for root in roots]
        self._served: dict[str, Served] = {base: Served(base, None)}
        self._numbers = itertools.count()
        self._lock = threading.Lock()

    def __iter__(self) -> Any:
        return iter(list(self._served.values()))

    def __len__(self) -> int:
        return len(self._served)

    def find(self, name: str) -> Served:
        """The base or an adapter.

        Raises:
            UnknownError: There is none of that name.
        """
        if name not in self._served:
            raise UnknownError(f"the model {name[:100]!r} does not exist.")
        return self._served[name]

    def add(self, name: str, folder: Path) -> Served:
        """Loads an adapter; requests may name it from then on.

        Raises:
            InputError: The name is unfit or taken, or the adapter belongs to another base.
        """
        if not NAME.fullmatch(name):
            raise InputError(
                f"the name {name[:100]!r} is unfit; expected letters, digits and . _ - up to 64."
            )
        if name in self._served:
            raise TakenError(f"the name {name!r} is taken; remove what has it first.")
        key = f"adapter-{next(self._numbers)}"
        self.engine.add_adapter(key, folder)
        served = Served(name, key, about=_about(folder))
        with self._lock:  # another may have come first while this one was read
            if name in self._served:
                self.engine.remove_adapter(key)
                raise TakenError(f"the name {name!r} is taken; remove what has it first.")
            self._served[name] = served
        return served

    def inside_roots(self, path: str) -> Path:
        """A folder that may be loaded at run time, links followed.

        Raises:
            InputError: It is not inside an allowed folder.
        """
        for root in self.roots:
            try:
                folder = (root / path).resolve()
                if folder.is_relative_to(root) and folder.is_dir():
                    return folder
            except (OSError, ValueError, RuntimeError):  # too long a name, NUL, a loop of links
                continue
        raise InputError("the path is no folder inside those that adapters are loaded from.")

    def remove(self, name: str) -> None:
        """Forgets an adapter; requests that were taken before are still answered with it.

        Raises:
            UnknownError: There is none of that name.
            InputError: It is the base.
        """
        served = self.find(name)
        if served.key is None:
            raise InputError(f"{name!r} is the base; it stays.")
        with self._lock:
            if self._served.pop(name, None) is None:
                raise UnknownError(f"the model {name[:100]!r} does not exist.")
        self.engine.remove_adapter(served.key)


def _about(folder: Path) -> dict[str, Any]:
    saved = read_object(folder / ADAPTER_CONFIG)  # which was read before, and is sound
    return {k: v for k, v in saved.items() if k not in ("base", "adapter", "shapes")}
