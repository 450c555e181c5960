"""Rows → a predictions file: answers, or losses of candidates, resumable to the byte."""

import glob
import hashlib
import json
from collections import Counter
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from functools import lru_cache, partial
from pathlib import Path
from typing import Any, Literal

from PIL import ExifTags, Image
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from crome.errors import InputError
from crome.evaluation.predictions import (
    Prediction,
    PredictionWriter,
    drop_cut_line,
    lock_of,
    read_predictions,
)
from crome.evaluation.processes import ALONE, Share
from crome.features.verbs import caches, once, prepare
from crome.images import View, load_image
from crome.model.answering import answer, rank
from crome.model.modeling import CromeForConditionalGeneration
from crome.model.processing import CromeProcessor
from crome.model.slots import records
from crome.model.tensors import fingerprint
from crome.rows import Row

console = Console(stderr=True, markup=False)  # names and paths may hold brackets
BLANK = (127, 127, 127)
DECODERS = 4  # threads; decoders let go of the interpreter while they work
SIDEWAYS = (5, 6, 7, 8)  # EXIF orientations that swap width and height

Sight = Literal["shown", "blank", "none"]
"""What a model sees: the images, grey ones of their size, or a prompt without images."""

Reply = tuple[str, tuple[float, ...] | None]


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
    share: Share = ALONE,
) -> dict[str, str]:
    """Answers rows into a predictions file that an interrupted run resumes.

    The same batches are computed whether a run was interrupted or not, so the file is the same to
    the byte also in bfloat16, where a row's answer may depend on the lengths of its neighbours.

    Args:
        model: In eval mode.
        processor: The model's own.
        rows: Rows with unique ids, and with `choices` where candidates are ranked.
        path: The predictions file.
        batch_size: Questions answered together, those on one image side by side.
        max_new_tokens: Longest answer.
        num_beams: Beams; 1 is greedy.
        sight: What is shown of the images.
        ranked: Whether each row's `choices` are ranked by their loss instead of generating.
        per_token: Whether a ranked candidate's loss is the mean over its tokens, not the sum.
        note: Further settings to keep in the file, which a resumed run must share: what the rows
            are, so that a file is not resumed with others that have the same ids.
        title: Title of the progress bar.
        share: This process's place among several that answer together, each with all rows.

    Returns:
        Response by row id.

    Raises:
        InputError: Two rows share an id, or the file was made with other weights or settings.
    """
    repeated = [name for name, n in Counter(row.id for row in rows).items() if n > 1]
    if repeated:
        raise InputError(f"{len(repeated)} ids stand on several rows, such as {repeated[0]!r}.")
    beams = {"num_beams": num_beams} if num_beams > 1 else {}
    how: dict[str, Any] = {"max_new_tokens": max_new_tokens} | beams
    decoding = {"do_sample": False} | how
    if ranked:
        how = {"per_token": per_token}
        decoding = {"ranked": True, "length_normalised": per_token} | beams
    generation: dict[str, Any] = {"images": sight, "batch_size": batch_size} | decoding
    generation |= settings_of(model, processor) | dict(note or {})
    weights = weights_of(model)
    reply: Callable[[Sequence[Row]], list[Reply]] = partial(
        ranked_replies if ranked else generated_replies, model, processor, **how
    )
    key = partial(question_key, sight=sight)
    alike = gathered(rows, map(key, rows))  # rows that put the same question are answered once
    if sight == "shown":
        prepare(model, processor, rows)
    made = list(batches([same[0] for same in alike.values()], batch_size))
    finished = begin(path, share)
    with PredictionWriter(part_of(path, share)) as writer, progress(share.first) as bar:
        writer.expect(weights, generation)

        def is_open(name: str) -> bool:
            return name not in finished and name not in writer.done

        task = bar.add_task(title, total=sum(len(alike[key(row)]) for b in made for row in b))
        mine: list[list[Row]] = []
        for batch in made:
            groups = [alike[key(row)] for row in batch]
            if any(is_open(row.id) for same in groups for row in same):
                mine.append(batch)
            else:
                bar.advance(task, sum(map(len, groups)))
        mine = mine[share.rank :: share.size]
        ahead = sight == "shown" and not caches(processor)
        for batch, seen in zip(mine, decoded(mine, SIGHTS[sight], ahead), strict=True):
            groups = [alike[key(row)] for row in batch]
            for row, same, (text, losses) in zip(seen, groups, reply(seen), strict=True):
                prompt = processor.render(row.question, bool(row.images), row.history)
                answered = Prediction(
                    row.id, prompt, text, losses, generation, weights, len(row.images)
                )
                for name in (other.id for other in same if is_open(other.id)):
                    writer.write(replace(answered, id=name))
            bar.advance(task, share.size * sum(map(len, groups)))
    end(path, share)
    return {p.id: p.response for p in read_predictions(path)}


def begin(path: Path, share: Share) -> frozenset[str]:
    """Merges what an interrupted run of several processes left; the ids of all that is done."""
    if share.first:
        merge_parts(path)
    if share.size == 1:
        return frozenset()  # the writer knows
    if share.first:
        PredictionWriter(path).close()  # drops a line that a crash cut
    share.wait()
    done = frozenset(prediction.id for prediction in read_predictions(path))
    share.wait()  # the first process writes on only when all have read
    return done


def end(path: Path, share: Share) -> None:
    """Merges the parts of all processes, once all have answered."""
    share.wait()
    if share.first and share.size > 1:
        merge_parts(path)
    share.wait()


def part_of(path: Path, share: Share) -> Path:
    """The file that a process writes: the first the predictions file, each other one beside it."""
    return path if share.first else path.with_name(f"{path.stem}.part-{share.rank}.jsonl")


def merge_parts(path: Path) -> None:
    """Moves the predictions of other processes into the predictions file."""
    parts = sorted(path.parent.glob(f"{glob.escape(path.stem)}.part-*.jsonl"))
    if not parts:
        return
    with PredictionWriter(path) as writer:
        for part in parts:
            drop_cut_line(part)
            for prediction in read_predictions(part):
                if prediction.id not in writer.done:
                    writer.write(prediction)
    for part in parts:
        part.unlink()
        lock_of(part).unlink(missing_ok=True)


def decoded(
    made: Sequence[list[Row]], sight: Callable[[Row], Row], ahead: bool
) -> Iterator[list[Row]]:
    """The rows of each batch as they are shown, with the next batch's pictures decoded meanwhile.

    Args:
        made: The batches.
        sight: What is shown of a row.
        ahead: Whether to decode, which kept features make needless.
    """
    if not ahead:
        yield from ([sight(row) for row in batch] for batch in made)
        return
    with ThreadPoolExecutor(DECODERS) as pool:

        def start(batch: Sequence[Row]) -> dict[Path, Future[Image.Image]]:
            files = dict.fromkeys(i for row in batch for i in row.images if isinstance(i, Path))
            return {file: pool.submit(load_image, file) for file in files}

        loading = start(made[0]) if made else {}
        for number, batch in enumerate(made, start=1):
            pictures = {file: future.result() for file, future in loading.items()}
            loading = start(made[number]) if number < len(made) else {}
            yield [
                replace(row, images=tuple(_loaded(image, pictures) for image in row.images))
                for row in map(sight, batch)
            ]


def _loaded(image: Any, pictures: Mapping[Path, Image.Image]) -> Any:
    return pictures.get(image, image) if isinstance(image, Path) else image


def generated_replies(model: Any, processor: Any, batch: Sequence[Row], **how: Any) -> list[Reply]:
    """A generated answer for each row."""
    return [(text, None) for text in answer(model, processor, batch, **how)]


def ranked_replies(model: Any, processor: Any, batch: Sequence[Row], **how: Any) -> list[Reply]:
    """The candidate with the smallest loss for each row, the first of equals, and all losses."""
    options = [row.choices or () for row in batch]
    return [
        (candidates[losses.index(min(losses))], losses)
        for candidates, losses in zip(
            options, rank(model, processor, batch, options, **how), strict=True
        )
    ]


def answers(
    model: CromeForConditionalGeneration,
    processor: CromeProcessor,
    rows: Sequence[Row],
    batch_size: int = 64,
    max_new_tokens: int = 8,
    sight: Sight = "shown",
) -> list[str]:
    """Greedy answers in the order of rows, without a file: for runs that are short."""
    if sight == "shown":
        prepare(model, processor, rows)
    keys = [question_key(row, sight) for row in rows]
    alike = gathered(rows, keys)
    replies: dict[Hashable, str] = {}
    for batch in batches([same[0] for same in alike.values()], batch_size):
        seen = [SIGHTS[sight](row) for row in batch]
        texts = answer(model, processor, seen, max_new_tokens=max_new_tokens)
        replies |= zip((question_key(row, sight) for row in batch), texts, strict=True)
    return [replies[key] for key in keys]


def gathered(rows: Iterable[Row], keys: Iterable[Hashable]) -> dict[Hashable, list[Row]]:
    """Rows by key, in order."""
    groups: dict[Hashable, list[Row]] = {}
    for row, key in zip(rows, keys, strict=True):
        groups.setdefault(key, []).append(row)
    return groups


def question_key(row: Row, sight: Sight = "shown") -> Hashable:
    """Equal for rows that put the same question on what is shown of the same pictures."""
    rest = (row.question, row.history, row.choices, row.system)
    if sight == "none":
        return rest
    if sight == "blank":
        return (*map(picture_size, row.images), *rest)
    return once(row), row.videos, row.audios, row.places, rest


def settings_of(model: CromeForConditionalGeneration, processor: CromeProcessor) -> dict[str, Any]:
    """Settings besides weights and decoding that answers depend on, for the predictions file.

    These are the types of the weights, the kind of device, the implementation of attention, whether
    steps are recorded, and digests of the preprocessing and of the prompt (its template, and the
    day if it has one).
    """
    language = getattr(model, "language_model", model)
    pictures = getattr(processor, "image_processor", None)
    return {
        "dtype": "+".join(
            sorted({str(p.dtype).removeprefix("torch.") for p in model.parameters()})
        ),
        "device": model.get_input_embeddings().weight.device.type,
        "attention": str(getattr(language.config, "_attn_implementation", None)),
        **({"decoding": "recorded"} if records(language) else {}),
        "preprocessing": digest(pictures.to_dict() if pictures is not None else None),
        "template": digest([processor.render("?", has_image) for has_image in (True, False)]),
    }


def digest(value: Any) -> str:
    """A short hash of plain values."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, default=str).encode()).hexdigest()[:8]


def weights_of(model: CromeForConditionalGeneration) -> str:
    """A fingerprint of the base, towers included, and of the adapter in use."""
    adapter = model.get_adapter(model.active_adapter)
    used = "no adapter" if adapter is None else fingerprint(adapter.state_dict())
    prints = {k: v for k, v in model.base_identity().items() if k.endswith("_fingerprint")}
    return f"{digest(prints)}/{used}"


def batches(rows: Sequence[Row], size: int) -> Iterator[list[Row]]:
    """Batches with the rows of an image side by side, and short questions apart from long ones."""
    first_use: dict[Hashable, int] = {}  # pictures in memory have no name that lasts

    def place(row: Row) -> tuple[int, int]:
        images = tuple(id(i) if isinstance(i, Image.Image) else i for i in row.images)
        return len(row.question) // 64, first_use.setdefault(images, len(first_use))

    places = [place(row) for row in rows]
    order = [rows[k] for k in sorted(range(len(rows)), key=places.__getitem__)]
    for start in range(0, len(order), size):
        yield order[start : start + size]


def progress(visible: bool = True) -> Progress:
    """A progress bar with counts and the time left, on stderr."""
    return Progress(
        TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn(),
        console=console, transient=True, disable=not visible,
    )  # fmt: skip


def blank(row: Row) -> Row:
    """The row with grey images of the same sizes, and without other media."""
    images = tuple(grey(picture_size(image)) for image in row.images)
    places = tuple(place for place in row.places if place.medium == "image")
    return replace(row, images=images, videos=(), audios=(), places=places)


def unseen(row: Row) -> Row:
    """The row as text alone."""
    return replace(row, images=(), videos=(), audios=(), places=())


def picture_size(image: Path | View | Image.Image) -> tuple[int, int]:
    """Width and height of a picture as it is shown."""
    return file_size(image) if isinstance(image, Path) else load_image(image).size


@lru_cache(maxsize=65536)
def file_size(path: Path) -> tuple[int, int]:
    """Width and height of a picture file as it is shown; only its head is read."""
    try:
        with Image.open(path) as opened:
            width, height = opened.size
            sideways = opened.getexif().get(ExifTags.Base.Orientation) in SIDEWAYS
    except Exception:  # whatever a broken file makes the decoder trip over: refused with its name
        return load_image(path).size
    return (height, width) if sideways else (width, height)


@lru_cache(maxsize=8)
def grey(size: tuple[int, int]) -> Image.Image:
    """A grey image; the same object for the same size, so that rows can share its encoding."""
    return Image.new("RGB", size, BLANK)


SIGHTS: Mapping[Sight, Callable[[Row], Row]] = {
    "shown": lambda row: row,
    "blank": blank,
    "none": unseen,
}
