"""Rows → a predictions file: answers, or losses of candidates, resumable to the byte."""

from collections import Counter
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

from PIL import Image
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from crome.errors import InputError
from crome.evaluation.predictions import Prediction, PredictionWriter, read_predictions
from crome.features.verbs import once, prepare
from crome.images import load_image
from crome.model.answering import answer, rank
from crome.model.identity import base_identity, fingerprint
from crome.model.modeling import CromeForConditionalGeneration
from crome.model.processing import CromeProcessor
from crome.rows import Row

console = Console(stderr=True)
BLANK = (127, 127, 127)

Sight = Literal["shown", "blank", "none"]
"""What a model sees of the images: them, grey ones of their size, or a prompt without any."""

Said = tuple[str, tuple[float, ...] | None]


def predict(
    model: CromeForConditionalGeneration,
    processor: CromeProcessor,
    rows: Sequence[Row],
    path: Path,
    *,
    batch_size: int = 32,
    max_new_tokens: int = 32,
    num_beams: int = 1,
    sight: Sight = "shown",
    ranked: bool = False,
    per_token: bool = False,
    note: Mapping[str, Any] | None = None,
    title: str = "answering",
) -> dict[str, str]:
    """Answers rows into a predictions file that an interrupted run resumes.

    The same batches are computed whether a run was interrupted or not, so the file is the same to
    the byte also in bfloat16, where a row's answer may hang on its neighbours' lengths.

    Args:
        model: In eval mode.
        processor: Of the model.
        rows: With unique ids; with `choices` where candidates are ranked.
        path: The predictions file.
        batch_size: Questions answered together, those on one image side by side.
        max_new_tokens: Longest answer.
        num_beams: Beams; 1 is greedy.
        sight: What is shown of the images.
        ranked: Whether each row's `choices` are ranked by their loss instead of generating.
        per_token: Whether a ranked candidate's loss is the mean over its tokens, not the sum.
        note: Further settings to keep in the file, which a resumed run must share: what the rows
            are, so that a file is not resumed with others that have the same ids.
        title: Of the progress bar.

    Returns:
        Response by row id.

    Raises:
        InputError: Two rows share an id, or the file was made with other weights or settings.
    """
    repeated = [name for name, n in Counter(row.id for row in rows).items() if n > 1]
    if repeated:
        raise InputError(f"{len(repeated)} ids stand on several rows, such as {repeated[0]!r}.")
    generation: dict[str, Any] = {"images": sight}
    if ranked:
        generation |= {"ranked": True, "length_normalised": per_token}
    else:
        generation |= {"do_sample": False, "max_new_tokens": max_new_tokens}
    if num_beams > 1:
        generation["num_beams"] = num_beams
    generation |= note or {}
    weights = weights_of(model)

    def speak(batch: Sequence[Row]) -> list[Said]:
        if ranked:
            options = [row.choices or () for row in batch]
            losses = rank(model, processor, batch, options, per_token=per_token)
            best = [of.index(min(of)) for of in losses]  # the first of equals
            return [(o[b], of) for o, b, of in zip(options, best, losses, strict=True)]
        beams: dict[str, Any] = {"num_beams": num_beams} if num_beams > 1 else {}
        said = answer(model, processor, batch, max_new_tokens=max_new_tokens, **beams)
        return [(text, None) for text in said]

    shown = {row.id: SIGHTS[sight](row) for row in rows}
    alike = gathered(rows, [asked(shown[row.id]) for row in rows])  # answered once
    prepare(model, processor, shown.values())
    with PredictionWriter(path) as writer, progress() as bar:
        writer.expect(weights, generation)
        task = bar.add_task(title, total=len(rows))
        for batch in batches([same[0] for same in alike.values()], batch_size):
            seen = [shown[row.id] for row in batch]
            groups = [alike[asked(row)] for row in seen]
            if any(row.id not in writer.done for same in groups for row in same):
                for one, same, (text, losses) in zip(seen, groups, speak(seen), strict=True):
                    prompt = processor.render(one.question, bool(one.images), one.history)
                    for name in (row.id for row in same if row.id not in writer.done):
                        writer.write(Prediction(name, prompt, text, losses, generation, weights))
            bar.advance(task, sum(map(len, groups)))
    return {p.id: p.response for p in read_predictions(path)}


def answers(
    model: CromeForConditionalGeneration,
    processor: CromeProcessor,
    rows: Sequence[Row],
    batch_size: int = 64,
    max_new_tokens: int = 8,
) -> list[str]:
    """Greedy answers in the order of rows, without a file: for runs that are short."""
    prepare(model, processor, rows)
    alike = gathered(rows, map(asked, rows))
    said: dict[Hashable, str] = {}
    for batch in batches([same[0] for same in alike.values()], batch_size):
        replies = answer(model, processor, batch, max_new_tokens=max_new_tokens)
        said |= zip(map(asked, batch), replies, strict=True)
    return [said[asked(row)] for row in rows]


def gathered(rows: Iterable[Row], keys: Iterable[Hashable]) -> dict[Hashable, list[Row]]:
    """Rows by key, in order."""
    groups: dict[Hashable, list[Row]] = {}
    for row, key in zip(rows, keys, strict=True):
        groups.setdefault(key, []).append(row)
    return groups


def asked(row: Row) -> Hashable:
    """Equal for rows that put the same question on the same pictures."""
    return once(row), row.history, row.choices


WEIGHTS = ("bridge_fingerprint", "model_fingerprint")
"""Of a CROME base, and of a vision-language model with an attached adapter."""


def weights_of(model: CromeForConditionalGeneration) -> str:
    """A fingerprint of the bridge and of the adapter in use."""
    adapter = model.get_adapter(model.active_adapter)
    used = "no adapter" if adapter is None else fingerprint(adapter.state_dict())
    prints = [v for k, v in base_identity(model).items() if k in WEIGHTS]
    return f"{prints[0]}/{used}"


def batches(rows: Sequence[Row], size: int) -> Iterator[list[Row]]:
    """Batches with the rows of an image side by side, and short questions apart from long ones."""
    order = sorted(rows, key=lambda row: (len(row.question) // 64, str(row.images)))
    for start in range(0, len(order), size):
        yield order[start : start + size]


def progress() -> Progress:
    """A progress bar with counts and the time left, on stderr."""
    return Progress(
        TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn(),
        console=console, transient=True,
    )  # fmt: skip


def blank(row: Row) -> Row:
    """The row with grey images of the same sizes."""
    return replace(row, images=tuple(grey(load_image(image).size) for image in row.images))


@lru_cache(maxsize=256)
def grey(size: tuple[int, int]) -> Image.Image:
    """A grey image; the same object for the same size, so that rows can share its encoding."""
    return Image.new("RGB", size, BLANK)


SIGHTS: Mapping[Sight, Callable[[Row], Row]] = {
    "shown": lambda row: row,
    "blank": blank,
    "none": lambda row: replace(row, images=()),
}
