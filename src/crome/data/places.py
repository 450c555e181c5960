"""Which of an entry's media stands at which mark of its turns."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from crome.data.problems import count
from crome.data.tags import Mark
from crome.data.texts import a
from crome.rows import Medium, Place

Turn = tuple[str, list[Mark]]
"""Field of a question, and its marks."""


def in_place(
    media: Mapping[Medium, Sequence[Any]],
    turns: Sequence[Turn],
    report: Callable[[str, str, str], None],
) -> list[list[Mark]]:
    """The marks of each turn with what stands there.

    What an entry names goes to the marks that name nothing, in order or by their numbers, and in
    front of the first turn where there are no such marks and no mark names the same. Any other
    number of marks is a problem: some picture would be lost, or shown where it does not belong.

    Args:
        media: What the entry names.
        turns: The field and the marks of each question.
        report: Takes up what is wrong.
    """
    rest: dict[Medium, Iterator[Any]] = {}
    front: list[Mark] = []
    for medium, named in media.items():
        marked = [(f, mark) for f, marks in turns for mark in marks if mark.medium == medium]
        fields = [f for f, mark in marked if mark.source is None]
        order = list(range(len(named)))
        if not fields:
            also = [mark.source for _, mark in marked]
            front += [Mark(medium, 0, source) for source in named if source not in also]
        elif not named:
            tag = a(medium).replace(medium, f"<{medium}>")
            report(fields[0], f"{tag} tag in a row without {medium}", a(medium))
        elif len(fields) != len(named):
            found = f"{count(len(named), medium)} for {count(len(fields), 'place')}"
            report(f"{medium}s", found, f"{a(medium)} for each place in the text")
        else:
            order = numbered([mark.number for _, mark in marked if mark.source is None])
            if not order:
                report(
                    fields[0], f"numbers of {medium}s that are not 1 to {len(named)}", "each once"
                )
                order = list(range(len(named)))
        rest[medium] = iter([named[place] for place in order])
    placed = [
        [
            m if m.source is not None else m._replace(source=next(rest[m.medium], None))
            for m in marks
        ]
        for _, marks in turns
    ]
    placed[0] = [*front, *placed[0]]
    return placed


def numbered(numbers: Sequence[int | None]) -> list[int]:
    """Which of the media stands at each mark; none where the marks have other numbers than theirs.

    Marks count from 1 or from 0, and without numbers they are in order.
    """
    if None in numbers:
        return list(range(len(numbers)))
    known = [number for number in numbers if number is not None]
    places = [number - min(1, *known) for number in known]
    return places if sorted(places) == list(range(len(numbers))) else []


def media_of(turns: Sequence[Sequence[Mark]], number: int) -> dict[str, Any]:
    """The media of a row, as its fields: those of its question and of all before it."""
    seen = [(turn, mark) for turn in range(number + 1) for mark in turns[turn]]
    fields: dict[str, Any] = {
        f"{medium}s": tuple(mark.source for _, mark in seen if mark.medium == medium)
        for medium in ("image", "video", "audio")
    }
    order = [mark.medium for _, mark in seen]
    in_front = all(turn == 0 and mark.offset == 0 for turn, mark in seen)
    if in_front and order == sorted(order, key=("image", "video", "audio").index):
        return fields  # where media without a place stand anyway
    places = tuple(Place(mark.medium, turn, mark.offset) for turn, mark in seen)
    return fields | {"places": places}
