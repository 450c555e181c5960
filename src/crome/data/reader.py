"""Data files → rows, and all that is wrong with their entries.

`entries` says which files are read, `forms` which forms their entries may have, `texts` what is
said in them, `media` how pictures and other files are named, `tags` how their places in a text are
marked, and `places` which picture stands where.

Every problem is collected, so that a user sees all bad rows at once: line, field, what was found
and what was expected. Nothing is dropped in silence: an entry whose pictures and marks disagree, or
that speaks of a picture and has none, is a bad row.
"""

import logging
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, Literal

from crome.data.entries import entries
from crome.data.forms import Draft, Text, draft
from crome.data.media import Finder, media_key
from crome.data.pictures import files, first_uses, medium_of, undecodable
from crome.data.places import in_place, media_of
from crome.data.problems import Problem, Problems, count, show
from crome.data.texts import Texts, near_key
from crome.errors import InputError
from crome.rows import Medium, Row

MEDIA: tuple[Medium, ...] = ("image", "video", "audio")
logger = logging.getLogger(__name__)


def read_rows(
    path: Path,
    image_root: Path | None = None,
    on_bad_row: Literal["raise", "skip"] = "raise",
    check_images: bool = False,
    look: bool = True,
) -> list[Row]:
    """Read a data file.

    Args:
        path: JSON lines, a JSON list, CSV, Parquet, a saved dataset, or the id of a hub data set.
        image_root: Folder that image paths start from; None for the file's own.
        on_bad_row: Whether a bad row is an error, or is left out and counted in the log.
        check_images: Whether a row is bad, too, whose picture or recording does not decode.
        look: Whether a row is bad whose picture does not exist; scoring needs none.

    Returns:
        The rows, in the file's order.

    Raises:
        InputError: The file cannot be read, a row is bad (unless they are to be skipped), or none
            is left.
    """
    reader = RowReader(path, image_root, look=look)
    placed = list(reader)
    problems = [str(problem) for problem in reader.problems.first]
    reasons = reader.problems.reasons
    broken = undecodable(first_uses(placed)) if check_images else {}
    bad = {place: medium_of(f) for place, row in placed for f in files(row) if f in broken}
    problems += broken.values()
    reasons += Counter(f"{medium} is not decodable" for medium in bad.values())
    bad_rows = count(reader.bad + len(bad), "bad row")
    if problems and on_bad_row == "raise":
        raise InputError(
            f"{path}: {bad_rows} of {reader.entries}, first {problems[0].removesuffix('.')}. "
            f"`crome validate {path}` lists them all; --on_bad_row skip leaves them out."
        )
    if problems:
        summary = "; ".join(f"{number} × {reason}" for reason, number in reasons.most_common())
        logger.warning("%s: skipped %s of %d: %s", path, bad_rows, reader.entries, summary)
    rows = [row for place, row in placed if place not in bad]
    if not rows:
        raise InputError(f"{path} has no usable rows; expected at least one.")
    return rows


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
        folder = self.path.parent if image_root is None else Path(image_root)
        self.found = entries(self.path) if found is None else found
        self.problems = Problems() if problems is None else problems
        self.entries = 0
        self.bad = 0
        self._finder = Finder(folder, look, self._report)
        self._texts = Texts(self._finder, self._report)
        self._once = unique
        self._place = ""
        self._ids: set[str] = set()
        self._warned: set[str] = set()  # messages that are given once

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
        made = draft(entry, self._report)
        return [] if made is None else self._drafted(entry, made)

    def _drafted(self, entry: dict[str, Any], made: Draft) -> list[Row]:
        """The rows of a draft: one of each exchange that is learnt."""
        self._texts.keys = tuple(entry)
        media = {medium: self._listed(entry, medium) for medium in MEDIA}
        turns = [(e.question.field, *self._texts.question(e.question)) for e in made.exchanges]
        marks = in_place(media, [(field, marks) for field, _, marks in turns], self._report)
        media_shown = {mark.medium for turn in marks for mark in turn}
        self._look_for_media(entry, made, media_shown)
        answers = [self._texts.answer(exchange, media_shown) for exchange in made.exchanges]
        history = [(turn[1], answer) for turn, (answer, _) in zip(turns, answers, strict=True)]
        name = self._id(entry, made.strict)
        several = made.dialogue and len(history) > 1
        common: dict[str, Any] = {
            "choices": self._texts.choices(entry.get("choices")),
            "kind": self._kind(entry),
            "system": self._system(made.system),
        }
        return [
            Row(
                question=history[number][0],
                answer=history[number][1],
                id=f"{name}/{number}" if several else name,
                history=tuple(history[:number]),
                answers=answers[number][1],
                **common,
                **media_of(marks, number),
            )
            for number, exchange in enumerate(made.exchanges)
            if exchange.learnt
        ]

    def _listed(self, entry: dict[str, Any], medium: Medium) -> list[Any]:
        """What an entry names under the keys of a medium, as `image` or `images`."""
        one, several = (self._finder.all(medium, entry.get(key)) for key in (medium, f"{medium}s"))
        if one and several and one != several:
            self._report(medium, f"other files than {medium}s has", "one of the two keys")
        return one or several

    def _look_for_media(self, entry: dict[str, Any], made: Draft, known: set[Medium]) -> None:
        """Refuses an entry that speaks of a picture and has none, and says which keys are idle.

        Without its picture the row would be learnt as one of text alone.
        """
        for key in entry.keys() - made.known:
            medium = media_key(str(key), entry[key])
            if medium is None and entry[key] and near_key(str(key).lower(), MEDIA):
                medium = "image"
            if medium is not None and str(key)[-1:].isdigit() and media_key(str(key), "x"):
                self._report(medium, f"the key {show(key)}", f"all in one list under {medium}s")
            elif medium is not None and medium not in known and entry.get(medium) is None:
                self._report(medium, f"the key {show(key)}", f"the key {medium!r}")
            else:
                self._say(str(key), "the key %s is not used (known: %s)", show(key),
                          ", ".join(sorted(made.known)))  # fmt: skip

    def _system(self, given: Text | None) -> str | None:
        return None if given is None else self._texts.system(given)

    def _kind(self, entry: dict[str, Any]) -> str | None:
        kind = entry.get("kind")
        return None if kind is None else self._texts.text(Text("kind", kind))

    def _id(self, entry: dict[str, Any], strict: bool) -> str:
        """The entry's id, by default its position in the file, counted from 0.

        Ids of conversations and the like often are those of their pictures: a repeated one gets the
        position behind it. A repeated id of a row of this package is a problem.
        """
        name = entry.get("id")
        if name is None:
            name = str(self.entries - 1)
        elif isinstance(name, bool) or not isinstance(name, str | int):
            self._report("id", show(name), "a text or a whole number")
        name = str(name)
        if name in self._ids and strict:
            self._report("id", show(name), "an id that no earlier row has")
        elif name in self._ids:
            name = f"{name}@{self.entries - 1}"
        if self._once:
            self._ids.add(name)
        return name

    def _report(self, field: str, found: str, expected: str) -> None:
        self.problems.add(Problem(self._place, field, found, expected))

    def _say(self, topic: str, message: str, *values: object) -> None:
        """Logs something once a file."""
        if topic not in self._warned:
            self._warned.add(topic)
            logger.warning(f"%s, %s: {message}; said once", self.path, self._place, *values)
