"""Reads a mixture's YAML file, and reports every mistake in it.

root: ../data                  # paths below start here, and this from the file's own folder
balance: square-root           # shares by square roots of sizes; or "size", every row once
max_questions_per_image: 4     # over all sources ("cap: source" counts in each alone)
same_image: content            # the same bytes, wherever they lie; or "name"
sources:
  vqav2:
    layout: vqa                # one of `layouts.py`, and its own arguments beside it
    questions: vqa/v2_OpenEnded_mscoco_train2014_questions.json
    annotations: vqa/v2_mscoco_train2014_annotations.json
    images: coco/train2014
    templates: short-answer    # a packaged pool, or `ask` and `target` (`templates.py`)
"""

import difflib
import inspect
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, get_args, get_type_hints

from crome.config_file import read_config
from crome.data.mixture.layouts import LAYOUTS, Entries
from crome.data.mixture.templates import Pool, read_pool
from crome.data.problems import instead, unknown_keys
from crome.errors import InputError

SUFFIXES = (".yaml", ".yml")
"""Of data files that are mixtures."""

BALANCES = ("square-root", "size")


@dataclass(frozen=True)
class Source:
    """One data set of a mixture.

    Attributes:
        name: In the mixture.
        layout: Key of `LAYOUTS`.
        arguments: Arguments of the layout's reader, paths absolute.
        images: Folder of the images.
        templates: Instructions; None for the rows as they are.
        weight: Factor on the source's share.
        expected_rows: How many rows the file has that is meant; the report tells another number.
    """

    name: str
    layout: str
    arguments: dict[str, Any]
    images: Path
    templates: Pool | None = None
    weight: float = 1.0
    expected_rows: int | None = None

    def entries(self) -> Entries:
        """(place, entry) of the source, as its layout reads them."""
        return LAYOUTS[self.layout](**self.arguments)

    @property
    def paths(self) -> list[Path]:
        """Files and folders the entries are read from."""
        return [value for value in self.arguments.values() if isinstance(value, Path)]


@dataclass(frozen=True)
class Settings:
    """A mixture as its file describes it.

    Attributes:
        sources: The data sets.
        balance: "square-root" or "size".
        max_questions_per_image: Most rows on one image; None for all.
        cap: Whether that counts over the whole "mixture" or in each "source".
        same_image: Whether images are the same by "name" or by "content".
        keep_duplicates: Whether rows stay whose image and text are those of another.
        seed: Seed of the choice of rows that the cap keeps.
    """

    sources: tuple[Source, ...]
    balance: str = "square-root"
    max_questions_per_image: int | None = None
    cap: str = "mixture"
    same_image: str = "name"
    keep_duplicates: bool = False
    seed: int = 0


CHOICES = {"balance": BALANCES, "cap": ("mixture", "source"), "same_image": ("name", "content")}
OWN_KEYS = ("layout", "images", "templates", "weight", "expected_rows")


def read_settings(path: Path, root: Path | None = None) -> Settings:
    """Reads a mixture and checks all that can be checked without reading data.

    Args:
        path: The YAML file.
        root: Where its paths start; None for its own `root`, or its folder.

    Raises:
        InputError: The message names every key, value and file that is wrong.
    """
    if not path.is_file():
        raise InputError(f"no mixture {path}; expected a YAML file.")
    given = read_config(path)
    if not isinstance(given.get("sources"), dict):
        keys = given if "sources" not in given else ()
        near = difflib.get_close_matches("sources", map(str, keys), 1)
        meant = f"found {near[0]!r}; " if near else ""
        raise InputError(f"{path}: {meant}expected `sources:` with a name for each data set.")
    if not given["sources"]:
        raise InputError(f"{path}: no source under `sources:`; give at least one.")
    start = root or path.parent / str(given.pop("root", "."))
    given.pop("root", None)
    problems = unknown_keys(given, [field.name for field in fields(Settings)])
    sources = []
    for name, entry in given.pop("sources").items():
        try:
            sources.append(read_source(str(name), entry, start))
        except InputError as error:
            problems.append(str(error))
    problems += wrong_values(given)
    if problems:
        raise InputError(f"{path}: {'; '.join(line.removesuffix('.') for line in problems)}.")
    return Settings(tuple(sources), **given)


def read_source(name: str, entry: Any, root: Path) -> Source:
    """One source of a mixture.

    Raises:
        InputError: The message says everything that is wrong.
    """
    if not isinstance(entry, dict):
        raise InputError(f"{name}: found {entry!r}; expected keys such as `file: rows.jsonl`")
    layout = entry.get("layout", "rows")
    if layout not in LAYOUTS:
        raise InputError(f"{name}: no layout {layout!r}{instead(str(layout), LAYOUTS)}")
    given = {key: value for key, value in entry.items() if key not in OWN_KEYS}
    arguments, problems = read_arguments(layout, given, root)
    weight, expected = entry.get("weight", 1.0), entry.get("expected_rows")
    if isinstance(weight, bool) or not isinstance(weight, int | float) or not weight > 0:
        problems.append(f"weight: found {weight!r}; expected a number above 0")
    if expected is not None and not isinstance(expected, int):
        problems.append(f"expected_rows: found {expected!r}; expected a whole number")
    images = (root / str(entry.get("images", "."))).resolve()
    if not images.is_dir():
        problems.append(f"images: no folder {images}")
    pool = None
    try:
        pool = read_pool(name, entry["templates"]) if "templates" in entry else None
    except InputError as error:
        problems.append(str(error).removesuffix("."))
    if problems:
        raise InputError(f"{name}: {'; '.join(problems)}")
    return Source(name, layout, arguments, images, pool, float(weight), expected)


def read_arguments(
    layout: str, given: dict[str, Any], root: Path
) -> tuple[dict[str, Any], list[str]]:
    """Arguments of a layout's reader, and what is wrong with them."""
    reader = LAYOUTS[layout]
    parameters, hints = inspect.signature(reader).parameters, get_type_hints(reader)
    problems = unknown_keys(given, [*parameters, *OWN_KEYS])
    arguments = {}
    for key, parameter in parameters.items():
        if key in given:
            try:
                arguments[key] = argument(given[key], hints[key], root)
            except InputError as error:
                problems.append(f"{key}: {error}")
        elif parameter.default is inspect.Parameter.empty:
            problems.append(f"{key} is absent, which the layout {layout} needs")
    return arguments, problems


def argument(value: Any, hint: Any, root: Path) -> Any:
    """A value of a layout's argument, a path made absolute.

    Raises:
        InputError: It is of another type, or there is no such file.
    """
    kinds = get_args(hint) or (hint,)
    if Path in kinds:
        if value is None and type(None) in kinds:
            return None
        path = (root / str(value)).resolve()
        if not path.exists():
            raise InputError(f"no file {path}")
        return path
    literals = [kind for kind in kinds if isinstance(kind, str)]
    if literals and value not in literals:
        raise InputError(f"found {value!r}; expected one of {', '.join(literals)}")
    types = tuple(kind for kind in kinds if isinstance(kind, type))
    if types and not isinstance(value, types):
        expected = " or ".join("nothing" if t is type(None) else t.__name__ for t in types)
        raise InputError(f"found {value!r}; expected {expected}")
    return value


def wrong_values(given: dict[str, Any]) -> list[str]:
    """What is wrong with the values of a mixture's own keys."""
    problems = []
    for key, choices in CHOICES.items():
        if key in given and given[key] not in choices:
            problems.append(f"{key}: found {given[key]!r}; expected one of {', '.join(choices)}")
    cap = given.get("max_questions_per_image")
    if cap is not None and (isinstance(cap, bool) or not isinstance(cap, int) or cap < 1):
        problems.append(f"max_questions_per_image: found {cap!r}; expected 1 or more, or nothing")
    if not isinstance(given.get("keep_duplicates", False), bool):
        problems.append(
            f"keep_duplicates: found {given['keep_duplicates']!r}; expected true or false"
        )
    if isinstance(seed := given.get("seed", 0), bool) or not isinstance(seed, int):
        problems.append(f"seed: found {seed!r}; expected a whole number")
    return problems
