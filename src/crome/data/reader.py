"""One row schema for training and evaluation data, and its readers.

A file is JSON lines, one JSON list or Parquet, or a folder of `Dataset.save_to_disk`; each entry is
one of

* a row: `{"image": "a.png" | ["a.png", "b.png"] | absent, "question": …, "answer": …}` and, where
  wanted, `"id"`, `"choices"` and `"kind"`;
* a conversation, of which every answered turn becomes a row: LLaVA's `{"image": …,
  "conversations": [{"from": "human" | "gpt", "value": …}]}`, or that of chat APIs and TRL,
  `{"images": …, "messages": [{"role": "user" | "assistant", "content": …}]}`;
* a LAVIS triple: `{"image", "text_input", "text_output"}`.

Pictures that stand in the file itself (`{"bytes": …}`, as `datasets` writes them) are put into the
user's cache folder under a name that stands for their content, and are files from then on.

All that is wrong with the entries is collected, so that a user sees every bad row at once: line,
field, what was found and what was expected.
"""

import base64
import difflib
import logging
import os
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from hashlib import blake2b
from itertools import cycle
from pathlib import Path
from typing import Any, Literal, NamedTuple

from rich.console import Console
from rich.progress import track

from crome.data.entries import Problem, Problems, entries, show
from crome.errors import InputError
from crome.images import load_image
from crome.rows import Row
from crome.storage import cache_folder, replaced

MAX_CHARACTERS = 1_000_000  # of one text; more is a file pasted into a field, not a question
logger = logging.getLogger(__name__)


class Form(NamedTuple):
    """How a conversation writes its turns: the keys, and the names of who asks and who answers."""

    speaker: str
    text: str
    asks: str
    answers: str


LLAVA = Form("from", "value", "human", "gpt")
CHAT = Form("role", "content", "user", "assistant")


def read_rows(
    path: Path,
    image_root: Path | None = None,
    on_bad_row: Literal["raise", "skip"] = "raise",
    check_images: bool = False,
    look: bool = True,
) -> list[Row]:
    """Read a file of rows, conversations or triples.

    Args:
        path: JSON lines or a JSON list.
        image_root: Folder that image paths start from; None for the file's own.
        on_bad_row: Whether a bad row is an error, or is left out and counted in the log.
        check_images: Whether a row is bad, too, whose picture exists and does not decode.
        look: Whether a row is bad whose picture does not exist; scoring needs none.

    Returns:
        The rows, in the file's order.

    Raises:
        InputError: The file cannot be read, a row is bad (unless told to skip), or none is left.
    """
    reader = RowReader(path, image_root, look=look)
    placed = list(reader)
    problems = [str(problem) for problem in reader.problems.first]
    reasons = reader.problems.reasons
    broken = undecodable(first_uses(placed)) if check_images else {}
    bad_pictures = {place for place, row in placed if not broken.keys().isdisjoint(row.images)}
    problems += broken.values()
    reasons += Counter({"image is not decodable": len(bad_pictures)})
    bad = count(reader.bad + len(bad_pictures), "bad row")
    if problems and on_bad_row == "raise":
        raise InputError(
            f"{path}: {bad} of {reader.entries}, first {problems[0].removesuffix('.')}. "
            f"`crome validate {path}` lists them all; --on_bad_row skip leaves them out."
        )
    if problems:
        told = "; ".join(f"{number} × {reason}" for reason, number in reasons.most_common())
        logger.warning("%s: skipped %s of %d: %s", path, bad, reader.entries, told)
    rows = [row for place, row in placed if place not in bad_pictures]
    if not rows:
        raise InputError(f"{path} has no usable rows; expected at least one.")
    return rows


def first_uses(placed: Sequence[tuple[str, Row]]) -> dict[Path, str]:
    """Each picture file with the place of the first row that uses it."""
    uses: dict[Path, str] = {}
    for place, row in placed:
        for image in row.images:
            if isinstance(image, Path):
                uses.setdefault(image, place)
    return uses


def undecodable(first_use: dict[Path, str]) -> dict[Path, str]:
    """Decode each picture once, a few at a time, and say what does not decode.

    Args:
        first_use: Place of the first row that uses each picture.

    Returns:
        The pictures that do not, each with a line about it.
    """

    def failure(path: Path) -> str | None:
        try:
            load_image(path)
        except InputError as error:
            return f"{first_use[path]}, image: {error}"
        return None

    console = Console(stderr=True)
    with ThreadPoolExecutor() as pool:  # the pixels are dropped inside the worker
        failures = track(
            pool.map(failure, first_use),
            description="decoding pictures",
            total=len(first_use),
            console=console,
            transient=True,
            disable=not console.is_terminal,
        )
        return {path: found for path, found in zip(first_use, failures, strict=True) if found}


class RowReader:
    """Iterates over (place, row) of the good rows of a file and collects what is wrong elsewhere.

    Args:
        path: The file.
        image_root: Folder that image paths start from; None for the file's own.
        found: (place, entry) pairs to read instead of those of the file.
        problems: Where to put what is wrong.
        unique: Whether to refuse repeated ids: they cost a hundred bytes of memory a row.
        look: Whether to refuse pictures that do not exist.

    Attributes:
        problems: What was wrong, complete once the iteration has ended.
        entries: How many entries were read.
        bad: How many of them were bad.
    """

    def __init__(
        self,
        path: Path,
        image_root: Path | None = None,
        found: Iterable[tuple[str, object]] | None = None,
        problems: Problems | None = None,
        unique: bool = True,
        look: bool = True,
    ):
        self.path = Path(path)
        self.folder = self.path.parent if image_root is None else Path(image_root)
        self.found = entries(self.path) if found is None else found
        self.problems = Problems() if problems is None else problems
        self.entries = 0
        self.bad = 0
        self._once, self._look = unique, look
        self._place = ""
        self._ids: set[str] = set()
        self._path = lru_cache(maxsize=2**16)(self._existing)  # rows on one picture are neighbours
        self._unknown: set[str] = set()
        self._system: str | None = None

    def __iter__(self) -> Iterator[tuple[str, Row]]:
        for place, entry in self.found:
            self._place = place
            self.entries += 1
            before = len(self.problems)
            rows = self._rows(entry)
            if len(self.problems) > before:
                self.bad += 1
                continue
            for row in rows:
                yield place, row

    def _rows(self, entry: object) -> list[Row]:
        if isinstance(entry, Problem):
            self.problems.add(entry)
            return []
        if not isinstance(entry, dict):
            self._report("row", show(entry), "a JSON object")
            return []
        if "messages" in entry or "conversations" in entry:
            return self._conversation(entry)
        if "text_input" in entry or "text_output" in entry:
            return self._triple(entry)
        return self._plain(entry)

    def _plain(self, entry: dict[str, Any]) -> list[Row]:
        self._warn_unknown(entry, {"image", "question", "answer", "id", "choices", "kind"})
        name = self._id(entry)
        if name in self._ids:
            self._report("id", show(name), "an id that no earlier row has")
        if self._once:
            self._ids.add(name)
        return [
            Row(
                images=self._image_paths(entry),
                question=self._text(entry, "question"),
                answer=self._text(entry, "answer"),
                id=name,
                choices=self._choices(entry),
                kind=self._text(entry, "kind") if entry.get("kind") is not None else None,
            )
        ]

    def _triple(self, entry: dict[str, Any]) -> list[Row]:
        self._warn_unknown(entry, {"image", "text_input", "text_output", "id", "image_id"})
        return [
            Row(
                images=self._image_paths(entry),
                question=self._text(entry, "text_input"),
                answer=self._text(entry, "text_output"),
                id=self._unique(self._id(entry)),
            )
        ]

    def _conversation(self, entry: dict[str, Any]) -> list[Row]:
        """A row for each answered turn, with the pictures that were shown until then."""
        key = "messages" if "messages" in entry else "conversations"
        pictures = "images" if "images" in entry else "image"
        self._warn_unknown(entry, {pictures, "id", key})
        images = self._image_paths(entry, pictures)
        turns = list(enumerate(entry[key])) if isinstance(entry[key], list) else []
        form = CHAT if turns and isinstance(turns[0][1], dict) and "role" in turns[0][1] else LLAVA
        if turns and speaks(turns[0][1], form) in ("system", "developer"):
            self._one_system(turns.pop(0)[1].get(form.text), f"{key}[0].{form.text}")
        if len(turns) > 2 and speaks(turns[0][1], form) == form.answers:
            turns.pop(0)  # ShareGPT has dialogues that begin with an answer
        if len(turns) < 2:
            self._report(key, show(entry[key]), "a list of at least two turns")
            return []
        read = [
            self._turn(f"{key}[{number}]", turn, form, speaker, bool(images))
            for (number, turn), speaker in zip(turns, cycle((form.asks, form.answers)))
        ]
        shown = self._in_place(images, [places for _, places in read], form is CHAT)
        texts = [text for text, _ in read]
        pairs = list(zip(texts[::2], texts[1::2], strict=False))  # a last, unanswered turn is left
        name = self._unique(self._id(entry))
        return [
            Row(
                images=tuple(path for turn in shown[: 2 * number + 1] for path in turn),
                question=question,
                answer=answer,
                id=name if len(pairs) == 1 else f"{name}/{number}",
                history=tuple(pairs[:number]),
            )
            for number, (question, answer) in enumerate(pairs)
            if not is_context(turns[2 * number + 1][1])
        ]

    def _turn(
        self, field: str, turn: object, form: Form, speaker: str, has_image: bool
    ) -> tuple[str, list[Path | None]]:
        """Text of one turn without its image tags, and its pictures; None for one of the entry's.

        Asking and answering take turns, and who asks shows the pictures.
        """
        if not isinstance(turn, dict) or speaks(turn, form) != speaker:
            expected = f'a turn {{"{form.speaker}": "{speaker}", "{form.text}": …}}'
            self._report(field, show(turn), expected)
            return "", []
        if turn.get("tool_calls") or turn.get("function_call"):
            self._report(field, "a call of a tool", "text alone")
        value = turn.get(form.text)
        places: list[Path | None] = []
        field = f"{field}.{form.text}"
        if form is CHAT and isinstance(value, list):
            value, places = self._parts(field, value)
        if isinstance(value, str) and "<image>" in value:
            places += [None] * value.count("<image>")
            value = value.replace("<image>", "")
        if None in places and not has_image:
            self._report(field, "an <image> tag in a row without image", "an image")
        if places and form is CHAT and speaker == form.answers:
            self._report(field, "an image in an answer", "text alone")
        return self._text({"value": value}, "value", field), places

    def _parts(self, field: str, parts: list[Any]) -> tuple[str, list[Path | None]]:
        """The words of a message in parts, and its pictures; None for one of the entry's."""
        texts: list[str] = []
        places: list[Path | None] = []
        for number, part in enumerate(parts):
            kind = part.get("type") if isinstance(part, dict) else None
            if kind == "text":
                texts.append(self._text(part, "text", f"{field}[{number}].text"))
            elif kind in ("image", "image_url"):
                given = (part.get(key) for key in ("image_url", "image", "url", "path"))
                source = next((found for found in given if found is not None), None)
                if isinstance(source, dict) and "url" in source:
                    source = source["url"]
                if source is not None or kind == "image_url":
                    path = self._image_path(source)
                    places += [path] if path else []
                else:
                    places.append(None)
            else:
                self._report(f"{field}[{number}]", show(part), "a part of type text or image")
        return "\n".join(texts), places

    def _in_place(
        self, images: tuple[Path, ...], places: list[list[Path | None]], strict: bool
    ) -> list[list[Path]]:
        """The pictures of each turn: the entry's where they have their places, else in the first.

        Args:
            images: Those of the entry.
            places: Of each turn; None for the next of the entry's.
            strict: Whether their numbers must agree where there are places.
        """
        wanted = sum(turn.count(None) for turn in places)
        rest = iter(images)
        if wanted == len(images):
            return [[next(rest) if path is None else path for path in turn] for turn in places]
        if wanted and images and strict:
            found = f"{count(len(images), 'image')} for {count(wanted, 'place')}"
            self._report("images", found, "an image for each place in the messages")
        own = [[path for path in turn if path is not None] for turn in places]
        return [[*images, *own[0]], *own[1:]]

    def _one_system(self, content: object, field: str) -> None:
        """Leaves out the system message that all entries have; another would be lost."""
        if isinstance(content, list):
            content, _ = self._parts(field, content)
        text = self._text({"content": content}, "content", field)
        if self._system is None:
            self._system = text
            logger.warning(
                "%s, %s: the system message %s is left out: a model has one for all rows, "
                "system_prompt in its config.json; said once",
                self.path, self._place, show(text),
            )  # fmt: skip
        elif text != self._system:
            self._report(
                field,
                f"another system message ({show(text)}) than before",
                "one for the whole file; put into the question what differs",
            )

    def _text(self, entry: dict[str, Any], key: str, field: str | None = None) -> str:
        """The text under a key, without white space around it; an empty text where it is bad."""
        field = field or key
        if key not in entry:
            found = misspelt(key, entry)
            self._report(field, found or "nothing", f"the key {key!r}" if found else "a text")
            return ""
        text = entry[key]
        if not isinstance(text, str):
            self._report(field, show(text), "a text (numbers too are written in quotes)")
        elif not text.strip():
            self._report(field, "an empty text", "a text that is not empty")
        elif len(text) > MAX_CHARACTERS:
            found = f"{len(text):,} characters"
            self._report(field, found, f"at most {MAX_CHARACTERS:,} characters")
        elif not encodable(text):
            self._report(field, "half of a surrogate pair", "valid Unicode")
        else:
            return text.strip()
        return ""

    def _choices(self, entry: dict[str, Any]) -> tuple[str, ...] | None:
        choices = entry.get("choices")
        if choices is None:
            return None
        if not isinstance(choices, list) or len(choices) < 2:
            self._report("choices", show(choices), "a list of at least two texts")
            return None
        return tuple(
            self._text({"choice": choice}, "choice", f"choices[{number}]")
            for number, choice in enumerate(choices)
        )

    def _id(self, entry: dict[str, Any]) -> str:
        """The entry's id, by default its position in the file, counted from 0."""
        name = entry.get("id")
        if name is None:
            return str(self.entries - 1)
        if isinstance(name, bool) or not isinstance(name, str | int):
            self._report("id", show(name), "a text or a whole number")
        return str(name)

    def _unique(self, name: str) -> str:
        """Tell conversations and triples apart whose id is that of their picture."""
        if name in self._ids:
            name = f"{name}@{self.entries - 1}"
        if self._once:
            self._ids.add(name)
        return name

    def _image_paths(self, entry: dict[str, Any], key: str = "image") -> tuple[Path, ...]:
        names = entry.get(key)
        if names is None:
            found = None if key in entry else misspelt(key, entry)
            if found:  # else the row would be one of text alone
                self._report("image", found, "the key 'image'")
            return ()
        names = names if isinstance(names, list) else [names]
        paths = (self._image_path(name) for name in names)
        return tuple(path for path in paths if path is not None)

    def _image_path(self, name: object) -> Path | None:
        if isinstance(name, dict) and name.keys() <= {"bytes", "path"}:
            if isinstance(content := name.get("bytes"), bytes):
                return unpacked(content)
            name = name.get("path")
        if isinstance(name, str) and name.startswith("data:"):
            return self._inline(name)
        if not isinstance(name, str) or not name or not encodable(name):
            self._report("image", show(name), "a file name or a list of them")
            return None
        found = self._path(name)
        if found is None and "://" in name:
            self._report("image", f"the address {show(name)}", "a file: fetch it first")
        elif found is None:
            self._report("image", f"no file {show(str(self.folder / name))}", "an existing file")
        return found

    def _inline(self, address: str) -> Path | None:
        """The file of a picture that is written out in the entry, as chat APIs take it."""
        head, _, content = address.partition(",")
        try:
            if head.endswith(";base64"):
                return unpacked(base64.b64decode(content, validate=True))
        except ValueError:
            pass
        self._report("image", show(address), "data:image/…;base64, and a picture in base64")
        return None

    def _existing(self, name: str) -> Path | None:
        path = self.folder / name
        return path if not self._look or os.path.isfile(path) else None  # no for absurd names too

    def _report(self, field: str, found: str, expected: str) -> None:
        self.problems.add(Problem(self._place, field, found, expected))

    def _warn_unknown(self, entry: dict[str, Any], known: set[str]) -> None:
        for key in entry.keys() - known - self._unknown:
            self._unknown.add(key)
            logger.warning(
                "%s, %s: the key %s is not used (known: %s); said once",
                self.path,
                self._place,
                show(key),
                ", ".join(sorted(known)),
            )


def misspelt(field: str, entry: dict[str, Any]) -> str | None:
    """The key of an entry that seems to mean an absent field, for a message."""
    near = near_key(field, tuple(entry))
    return None if near is None else f"the key {show(near)}"


@lru_cache
def near_key(field: str, keys: tuple[str, ...]) -> str | None:
    """The key most like a field, if it is very like: entries of a file have the same keys."""
    lower = {str(key).lower(): key for key in keys}
    near = difflib.get_close_matches(field, lower, 1, cutoff=0.8)
    return lower[near[0]] if near else None


def unpacked(content: bytes) -> Path:
    """The file in the user's cache folder that holds a picture of a data file."""
    name = blake2b(content, digest_size=16).hexdigest()
    path = cache_folder() / "pictures" / name[:2] / name
    if not path.is_file():
        with replaced(path) as temporary:
            temporary.write_bytes(content)
    return path


def speaks(turn: object, form: Form) -> object:
    """Who speaks in a turn of a conversation."""
    return turn.get(form.speaker) if isinstance(turn, dict) else None


def is_context(turn: object) -> bool:
    """Whether an answer is to be read and not learnt: OpenAI's weight 0."""
    return isinstance(turn, dict) and turn.get("weight") == 0


def encodable(text: str) -> bool:
    """Whether a text is valid Unicode: JSON escapes can write halves of surrogate pairs."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def count(number: int, noun: str, plural: str | None = None) -> str:
    """A number with its noun: "1 row", "2,000 rows"."""
    return f"{number:,} {noun if number == 1 else plural or noun + 's'}"
