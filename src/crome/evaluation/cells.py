"""What the cells of a benchmark's table hold, checked before anything is made of them.

The same record reaches a user as JSON, CSV, Parquet or a spreadsheet, so that a list may come as
its source text, a whole number as 1.0 and a missing value as NaN. These functions take all of
these forms and refuse what is none of them; nothing is guessed.
"""

import ast
import base64
import binascii
import json
import math
import re
import unicodedata
from collections.abc import Iterable, Mapping
from typing import Any

from crome.errors import InputError

LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
PICTURE_COLUMNS = (
    "image", "images", "image_path", "image_paths", "img", "img_path", "image_file", "image_name",
    "img_name", "image_filename", "file_name", "filename", "picture", "pictures", "picture_path",
    "photo", "photo_path", "decoded_image",
)  # fmt: skip
YES = frozenset({"yes", "true", "1"})
NO = frozenset({"no", "false", "0"})
# A list of strings as numpy prints it has spaces where Python has commas.
_NUMPY_GAP = re.compile(r"""(?<=['"])\s+(?=['"])""")


def absent(value: Any) -> bool:
    """Whether a cell holds nothing: None, NaN, an empty text, or `nan` as tables write it."""
    if isinstance(value, str):
        return value.strip() in ("", "nan", "NaN")
    return value is None or (isinstance(value, float) and math.isnan(value))


def text(value: Any) -> str:
    """A cell as text, empty where it holds nothing; 3.0 is "3".

    Raises:
        InputError: The cell holds a list or an object.
    """
    if absent(value):
        return ""
    if isinstance(value, str):
        return value
    if isinstance(value, bool):
        return str(value)
    if isinstance(value, int | float) or hasattr(value, "item"):
        number = value.item() if hasattr(value, "item") else value
        whole_number = isinstance(number, float) and number.is_integer()
        return str(int(number)) if whole_number else str(number)
    raise InputError(f"expected a text, found {quoted(value)}.")


def filled(value: Any) -> str:
    """A cell as text.

    Raises:
        InputError: It holds nothing.
    """
    if found := text(value).strip():
        return found
    raise InputError(f"expected a text, found {quoted(value)}.")


def texts(value: Any) -> list[str]:
    """The texts of a cell that may hold several: a list, a list's source text, or one text.

    Elements may be objects with an `answer`, `text` or `caption`; those that hold nothing are left
    out.

    Raises:
        InputError: The cell or an element holds something else.
    """
    if isinstance(value, str):
        value = literal(value)
    if isinstance(value, Mapping):
        value = _inner(value, "answer", "answers", "text", "caption")
    if absent(value):
        return []
    if isinstance(value, str) or not isinstance(value, Iterable):
        return [text(value)]
    elements = (
        _inner(element, "answer", "text", "caption") if isinstance(element, Mapping) else element
        for element in value
    )
    return [text(element) for element in elements if not absent(element)]


def options(value: Any) -> dict[str, str]:
    """Letter → text of a cell with options: a list, an object by letter, or the source of either.

    An option that holds nothing keeps its place: the others keep their letters.

    Raises:
        InputError: The cell holds something else.
    """
    found = literal(value) if isinstance(value, str) else value
    if isinstance(found, Mapping) and {"text", "label"} <= found.keys():
        found = dict(zip(texts(found["label"]), texts(found["text"]), strict=True))
    if isinstance(found, Mapping):
        by_letter = {str(key).strip().upper(): cell for key, cell in found.items()}
        unknown = [key for key in by_letter if key not in LETTERS or len(key) != 1]
        if unknown:
            raise InputError(f"options are keyed by letters, found {quoted(unknown[0])}.")
        return {
            key: text(by_letter[key]) for key in sorted(by_letter) if not absent(by_letter[key])
        }
    if absent(found) or isinstance(found, str) or not isinstance(found, Iterable):
        raise InputError(f"expected a list of options, found {quoted(value)}.")
    cells = list(found)
    if len(cells) > len(LETTERS):
        raise InputError(f"expected at most {len(LETTERS)} options, found {len(cells)}.")
    return {
        letter: text(cell) for letter, cell in zip(LETTERS, cells, strict=False) if not absent(cell)
    }


def first(row: Mapping[str, Any], *names: str) -> Any:
    """The cell of the first of these columns that a row has.

    Raises:
        KeyError: It has none of them.
    """
    for name in names:
        if name in row:
            return row[name]
    raise KeyError(" or ".join(names))


def gold(value: Any) -> str | None:
    """A right answer as text; None where a test split hides it, empty or behind a question mark."""
    answer = text(value)
    return None if answer.strip() in ("", "?") else answer


def gold_letter(value: Any, choices: Mapping[str, str], *, index: bool = True) -> str:
    """The letter that a gold answer names: a letter, an option's text, or a place counted from 0.

    Args:
        value: The cell.
        choices: Letter → text.
        index: Whether a whole number is a place; an option's text otherwise.

    Raises:
        InputError: It names none of the options.
    """
    letters, given = list(choices), text(value).strip()
    if given in choices:
        return given
    if index and re.fullmatch(r"\d+(\.0+)?", given) and not isinstance(value, bool):
        # Places count the letters of the alphabet, so that an empty option shifts no other.
        number = int(float(given))
        place = LETTERS[number] if number < len(LETTERS) else ""
        if place in choices:
            return place
    by_text = {option: letter for letter, option in choices.items()}
    if given in by_text:
        return by_text[given]
    bare = given.strip("().: ").upper()
    if bare in choices:
        return bare
    raise InputError(
        f"the answer {quoted(value)} is none of the options {', '.join(letters) or '(none given)'}."
    )


def yes_no(value: Any) -> str:
    """A gold answer to a yes/no question: yes, true and 1 in any form, or no, false and 0.

    Raises:
        InputError: It is neither; no value stands for "anything else".
    """
    word = text(value).strip().rstrip(".").casefold()
    if word in YES:
        return "yes"
    if word in NO:
        return "no"
    raise InputError(f"expected yes or no (or 1 or 0) as the gold answer, found {quoted(value)}.")


def whole(value: Any) -> int:
    """A whole number: 5, 5.0 or "5".

    Raises:
        InputError: It is none.
    """
    try:
        number = float(text(value))
    except ValueError:
        number = math.nan
    if isinstance(value, bool) or not number.is_integer():
        raise InputError(f"expected a whole number, found {quoted(value)}.")
    return int(number)


def identity(value: Any) -> str:
    """An id as text: whole numbers without a fraction, composed Unicode, no outer space.

    Raises:
        InputError: The cell holds nothing, a list or an object.
    """
    if absent(value):
        raise InputError(f"expected an id, found {quoted(value)}.")
    return unicodedata.normalize("NFC", text(value).strip())


def images_in(*cells: Any) -> tuple[str | bytes, ...]:
    """The images of cells: paths, or the encoded files that Parquet rows carry."""
    images: list[str | bytes] = []
    for cell in cells:
        found = literal(cell) if isinstance(cell, str) else cell
        if isinstance(found, Mapping):
            images += images_in(found.get("bytes") or found.get("path"))
        elif isinstance(found, bytes):
            images += [found] if found else []
        elif isinstance(found, str):
            images += [] if absent(found) else [found.strip()]
        elif not absent(found) and isinstance(found, Iterable):
            images += images_in(*found)
    return tuple(images)


def file_named(cell: Any, pattern: str) -> tuple[str, ...]:
    """The image whose path a pattern such as "{}.jpg" makes of a cell; none for an empty cell."""
    name = text(cell)
    return (pattern.format(name),) if name else ()


def decoded(cell: Any) -> Any:
    """The encoded image that a table's cell holds as base64; anything else, as a path, as it is."""
    if not isinstance(cell, str) or "." in cell or absent(cell):
        return cell
    try:
        return base64.b64decode(cell, validate=True)
    except binascii.Error:
        return cell


def pictures(row: Mapping[str, Any], *first: str) -> tuple[str | bytes, ...]:
    """The images of a row, under whichever of the usual names its table has.

    Args:
        row: The record as its file has it.
        first: Columns that the benchmark's own release uses; names may be in capitals, too.

    Returns:
        Those of the first column that holds any.
    """
    by_small = {str(name).lower(): cell for name, cell in row.items() if not absent(cell)}
    for name in (*first, *PICTURE_COLUMNS):
        if found := images_in(row.get(name, by_small.get(name))):
            return found
    return ()


def literal(value: str) -> Any:
    """The list or object that a cell holds as JSON or as Python's source, else the text itself."""
    stripped = value.strip()
    if stripped[:1] + stripped[-1:] not in ("[]", "{}"):
        return value
    for parse, source in (
        (json.loads, stripped),
        (ast.literal_eval, _NUMPY_GAP.sub(", ", stripped)),
    ):
        try:
            found = parse(source)
        except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
            continue
        if isinstance(found, list | dict):
            return found
    return value


def quoted(value: Any) -> str:
    """A cell as it stands in a message."""
    written = ascii(value) if isinstance(value, str) and not value.isprintable() else repr(value)
    return written if len(written) <= 60 else f"{written[:57]}…"


def _inner(cell: Mapping[str, Any], *names: str) -> Any:
    try:
        return first(cell, *names)
    except KeyError as error:
        raise InputError(f"expected {error.args[0]} in {quoted(dict(cell))}.") from None
