"""What is said in an entry: texts and messages in parts, and the media between the words."""

import difflib
import unicodedata
from collections import Counter
from collections.abc import Callable
from functools import lru_cache
from typing import Any

from crome.data.forms import ABSENT, CAPTION, Exchange, Text
from crome.data.media import Finder, encodable
from crome.data.problems import show
from crome.data.tags import Mark, take_out
from crome.rows import Medium, laid_out

MAX_CHARACTERS = 1_000_000  # of one text; more is a file pasted into a field, not a question
# Letters and symbols to Unicode, and blank to people.
BLANK = frozenset("\u115f\u1160\u2800\u3164\uffa0")
UNSEEN = frozenset(("Cc", "Cf", "Cn", "Cs", "Mn", "Me", "Zs", "Zl", "Zp"))

PARTS: dict[str, Medium] = {
    "image": "image",
    "image_url": "image",
    "input_image": "image",
    "video": "video",
    "video_url": "video",
    "audio": "audio",
    "audio_url": "audio",
    "input_audio": "audio",
}
"""Types of the parts of a message that are not text."""

Report = Callable[[str, str, str], None]


class Texts:
    """Reads the texts of entries.

    Args:
        finder: Finder of files that parts of messages name.
        report: Takes up what is wrong.

    Attributes:
        keys: Keys of the entry that is read, for a message about one that is absent.
    """

    def __init__(self, finder: Finder, report: Report) -> None:
        self.finder, self.report = finder, report
        self.keys: tuple[str, ...] = ()

    def question(self, given: Text) -> tuple[str, list[Mark]]:
        """A question without its marks, and what they stand for."""
        if given.parts and isinstance(given.value, list):
            return self._parts(given)
        if not isinstance(given.value, str) or len(given.value) > MAX_CHARACTERS:
            return self.text(given), []
        text, marks = take_out(given.value)
        if not text and marks:
            return CAPTION, self._found(marks)  # a picture and its caption, without a question
        return self.text(given._replace(value=text)), self._found(marks)

    def answer(self, exchange: Exchange, shown: set[Medium]) -> tuple[str, tuple[str, ...]]:
        """The answer to learn, and the other right ones.

        Of several the most frequent is learnt, and of equally frequent ones the first.

        Args:
            exchange: As the entry has it.
            shown: Media of the entry, of which an answer must have none.
        """
        given = exchange.answer
        if given.parts and isinstance(given.value, list):
            text, marks = self._parts(given)
            if marks:
                self.report(given.field, f"{a(marks[0].medium)} in an answer", "text alone")
            return text, ()
        right = self._several(given)
        others = [] if exchange.others is None else self._several(exchange.others)
        for text in right:
            self._no_media(given.field, text, shown)
        if not right:
            return "", ()
        best = Counter(right).most_common(1)[0][0]
        rest = dict.fromkeys([*right, *others])
        return best, tuple(text for text in rest if text != best)

    def choices(self, value: Any) -> tuple[str, ...] | None:
        """The options of a question; None where it has none."""
        if value is None:
            return None
        if not isinstance(value, list) or len(value) < 2:
            self.report("choices", show(value), "a list of at least two texts")
            return None
        return tuple(
            self.text(Text(f"choices[{number}]", choice)) for number, choice in enumerate(value)
        )

    def system(self, given: Text) -> str:
        """A system message, of text alone."""
        if not isinstance(given.value, list):
            return self.text(given)
        text, marks = self._parts(given)
        if marks:
            self.report(given.field, f"{a(marks[0].medium)} in a system message", "text alone")
        return text

    def text(self, given: Text) -> str:
        """A text without white space around it; an empty one, and a report, where it is bad."""
        text, field = given.value, given.field
        if text is ABSENT:
            near = near_key(field, self.keys)
            found, expected = "nothing", "a text"
            if near is not None:
                found, expected = f"the key {show(near)}", f"the key {field!r}"
            self.report(field, found, expected)
        elif not isinstance(text, str):
            self.report(field, show(text), "a text (numbers too are written in quotes)")
        elif len(text) > MAX_CHARACTERS:
            found = f"{len(text):,} characters"
            self.report(field, found, f"at most {MAX_CHARACTERS:,} characters")
        elif not encodable(text):
            self.report(field, "half of a surrogate pair", "valid Unicode")
        elif not visible(text):
            found = "an empty text" if not text.strip() else f"nothing to see ({show(text)})"
            self.report(field, found, "a text that is not empty")
        else:
            return text.strip()
        return ""

    # ------------------------------------------------------------------ parts

    def _parts(self, given: Text) -> tuple[str, list[Mark]]:
        """The words of a message in parts, and its media."""
        pieces: list[str | None] = []
        marked: list[list[Mark]] = []
        for number, part in enumerate(given.value):
            field = f"{given.field}[{number}]"
            kind, content = kind_of(part)
            if kind == "text":
                text = self.text(Text(f"{field}.text", content)) if content != "" else ""
                bare, inner = take_out(text)
                lead, _, tail = content.partition(text) if text else ("", "", "")
                pieces.append(lead + bare + tail)
                marked.append(self._found(inner))
            elif kind in PARTS and (found := self._medium(field, part, PARTS[kind])):
                pieces.append(None)
                marked.append([found])
            elif kind not in PARTS:
                self.report(field, show(part), "a part of type text, image, video or audio")
        text, starts = laid_out(pieces)
        marks = [
            mark._replace(offset=start + mark.offset)
            for start, here in zip(starts, marked, strict=True)
            for mark in here
        ]
        if not text and marks:
            return CAPTION, [mark._replace(offset=0) for mark in marks]
        if not text:
            self.report(given.field, "an empty text", "a text that is not empty")
        return text, marks

    def _medium(self, field: str, part: dict[str, Any], medium: Medium) -> Mark | None:
        """The mark of a part that is not text; of one that names nothing the entry has the file."""
        keys = (*(key for key, kind in PARTS.items() if kind == medium), "url", "path", "source")
        source = next((part[key] for key in keys if part.get(key) is not None), None)
        if isinstance(source, dict) and "data" in source:  # as chat APIs send recordings
            source = f"data:{medium}/{source.get('format', '')};base64,{source['data']}"
        if source is None and str(part.get("type")) != medium:
            self.report(field, show(part), f"a part of type {medium} with its file")
            return None
        if source is None:
            return Mark(medium, 0)
        found = self.finder.one(medium, source)
        return None if found is None else Mark(medium, 0, found)

    def _found(self, marks: list[Mark]) -> list[Mark]:
        """Marks whose names are now files; without those that are none."""
        read = [
            mark if mark.source is None else mark._replace(source=self.finder.one(*mark[::2]))
            for mark in marks
        ]
        return [new for new, old in zip(read, marks, strict=True) if new.source or not old.source]

    # ------------------------------------------------------------------ answers

    def _several(self, given: Text) -> list[str]:
        """The texts of an answer, or of a list of them (VQA writes each as `{"answer": …}`)."""
        if not isinstance(given.value, list):
            return [text] if (text := self.text(given)) else []
        if not given.value:
            self.report(given.field, "an empty list", "a text or several")
        values = [v.get("answer") if isinstance(v, dict) else v for v in given.value]
        texts = [self.text(Text(f"{given.field}[{n}]", value)) for n, value in enumerate(values)]
        return [text for text in texts if text]

    def _no_media(self, field: str, text: str, shown: set[Medium]) -> None:
        for mark in take_out(text)[1]:
            if "<image>" in text or mark.medium in shown:
                self.report(field, f"{a(mark.medium)} in an answer", "text alone")
                return


def kind_of(part: Any) -> tuple[str, Any]:
    """Type of a part of a message, and its text."""
    if isinstance(part, str):
        return "text", part
    if not isinstance(part, dict):
        return "", None
    kind = part.get("type")
    if kind is None:  # Qwen's form names the type by the key alone
        kind = next((key for key in ("text", *PARTS) if part.get(key) is not None), "")
    return ("text" if kind in ("input_text", "output_text") else str(kind)), part.get("text")


def visible(text: str) -> bool:
    """Whether a text has anything to see: not white space, control and format characters alone."""
    text = text.strip()
    if text[:1].isascii() and text[:1].isprintable() and text:  # nearly all texts
        return True
    return any(
        character not in BLANK and unicodedata.category(character) not in UNSEEN
        for character in text
    )


def a(medium: str) -> str:
    """A medium with its article."""
    return f"an {medium}" if medium[0] in "aeiou" else f"a {medium}"


@lru_cache
def near_key(field: str, keys: tuple[str, ...]) -> str | None:
    """The key most like a field, if it is very like: entries of a file have the same keys."""
    lower = {str(key).lower(): key for key in keys}
    near = difflib.get_close_matches(field, lower, 1, cutoff=0.8)
    return lower[near[0]] if near else None
