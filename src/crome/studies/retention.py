"""`crome retention`: does the language model still know its text after a task was learnt?

CROME keeps it frozen, so the answer must be yes; the paper asserts that and does not measure it.
Measured are the bare language model, CROME with text and no image after its adapter was trained,
and the same language model after LoRA or full fine-tuning on the same rows: perplexity, the right
continuation of a text, and instructions that are followed.
"""

import json
import random
from functools import partial
from math import exp
from pathlib import Path
from typing import Any, Literal

import numpy as np
from rich.table import Table

from crome.checkpoints.loading import load
from crome.data.packaged import easy_vqa
from crome.data.reader import read_rows
from crome.errors import InputError, positive
from crome.evaluation.report.page import Score, write_report
from crome.intervals import bootstrap, wilson
from crome.model.families import context_length
from crome.rows import Row
from crome.storage import write_json
from crome.studies.instructions import TOPICS, Instruction, follow, instructions, words
from crome.studies.runs import ALL, by_kind, device_settings, exact_matches, finished, weights
from crome.studies.text import (
    Continuation,
    Reader,
    bare,
    choose,
    continuations,
    digest,
    paragraphs,
    passage_losses,
    passages,
    through,
)
from crome.studies.tuning import language_parts, open_parameters, tune
from crome.training.arguments import trainable_device
from crome.training.progress import console

Method = Literal["adapter", "lora", "full"]
BARE = "bare language model"
NAMES = {"adapter": "CROME, adapter trained", "lora": "LoRA", "full": "full fine-tuning"}
COLUMNS = ("perplexity", "continuations", "instructions", "task", "trained")
GROUPS = {
    "continuations": "right continuation of four",
    "instructions": "instructions followed",
    "task": "task, held out",
}


def retention(
    out: Path = Path("crome-retention"),
    data: Path | None = None,
    image_root: Path | None = None,
    text: Path | None = None,
    checkpoint: str = "crome-tiny",
    methods: list[Method] | None = None,
    steps: int = 60,
    batch_size: int = 16,
    adapter_rate: float = 1e-3,
    lora_rate: float = 5e-4,
    full_rate: float = 5e-5,
    passage_count: int = 32,
    passage_tokens: int = 256,
    questions: int = 100,
    topics: int = 16,
    test_rows: int = 200,
    dtype: Literal["bfloat16", "float32"] = "bfloat16",
    device: str = "auto",
    seed: int = 0,
) -> None:
    """Measure what a language model forgets when a task is learnt, by three ways of learning it.

    Perplexity and right continuations of plain text, and instructions that are followed: of the
    bare language model, of CROME without an image after its adapter was trained (equal, since the
    language model is frozen), and of the language model after LoRA or full fine-tuning on the same
    rows. Finished methods are not measured again when the same command is given again.

    Args:
        out: Folder for `retention.json` and `report.html`.
        data: Rows to learn; packaged pictures of shapes by default.
        image_root: Folder that image paths in `data` start from; by default the file's own.
        text: Plain text to measure on, with blank lines between paragraphs; Python's own manual
            by default.
        checkpoint: What to start from.
        methods: Some of adapter, lora and full; all by default.
        steps: Training steps of each.
        batch_size: Rows a step.
        adapter_rate: Peak rate of the adapter.
        lora_rate: Peak rate of LoRA.
        full_rate: Peak rate of full fine-tuning.
        passage_count: Passages whose perplexity is measured.
        passage_tokens: Tokens of a passage.
        questions: Continuation questions.
        topics: At most sixteen, with six instructions each.
        test_rows: Held-out rows on which the task itself is measured.
        dtype: Type of the frozen towers.
        device: cpu, cuda or mps; by default a GPU of CUDA if there is one.
        seed: Seed of the order of rows and the choice of questions.
    """
    positive(
        steps=steps, batch_size=batch_size, passage_count=passage_count,
        passage_tokens=passage_tokens, questions=questions, topics=topics, test_rows=test_rows,
    )  # fmt: skip
    place = trainable_device(device)
    train_rows, held_out = task_rows(data, image_root, test_rows)
    texts = paragraphs(text)
    rates = {"adapter": adapter_rate, "lora": lora_rate, "full": full_rate}
    settings = {
        "checkpoint": checkpoint, "weights": weights(checkpoint),
        "data": str(data or "easy-vqa"), "steps": steps,
        "batch_size": batch_size, "text": f"{text or 'pydoc_data'}/{digest(texts)}",
        "passages": [passage_count, passage_tokens], "questions": questions,
        "topics": topics, "test_rows": len(held_out), "dtype": dtype, "seed": seed,
        **device_settings(place),
    }  # fmt: skip

    def result(method: Method) -> dict[str, Any]:
        settings_of = settings | {"method": method, "rate": rates[method]}
        path = out / f"{method}.json"
        if (found := finished(path, settings_of)) is not None:
            return found
        model, processor = load(checkpoint, dtype, device=device)
        if model.config.text_config.is_encoder_decoder:
            raise InputError(f"{checkpoint} has an encoder-decoder; text is read by decoders.")
        measured = partial(
            measure, model, processor,
            pieces=passages(texts, processor.tokenizer, passage_tokens, passage_count),
            choices=continuations(texts, questions, seed), orders=instructions(TOPICS[:topics]),
        )  # fmt: skip
        found = {"settings": settings_of}
        if method == "adapter":
            owner = getattr(model, "vlm", model.language_model)  # what has the head
            found["bare"] = measured(bare(owner))
        open_parameters(model, method)
        found |= tune(
            model, processor, train_rows, steps=steps, batch_size=batch_size,
            learning_rate=rates[method], seed=seed,
        )  # fmt: skip
        if method == "full" and dtype == "bfloat16":
            for part in language_parts(model):
                part.bfloat16()  # measured in the type of the others
        found |= measured(through(model))
        found["task"] = exact_matches(model, processor, held_out)
        write_json(path, found)
        return found

    chosen: list[Method] = methods or ["adapter", "lora", "full"]
    results: dict[str, Any] = {method: result(method) for method in chosen}
    summary = summarise(results)
    write_json(out / "retention.json", {"settings": settings, "methods": summary})
    console.print(table(summary))
    report(out, summary, settings, results)
    print(json.dumps({name: {k: row[k] for k in COLUMNS} for name, row in summary.items()}))


def task_rows(
    data: Path | None, image_root: Path | None, test_rows: int
) -> tuple[list[Row], list[Row]]:
    """Rows to learn and rows held out: the data set's own split, or the last rows of a file.

    Raises:
        InputError: The file has no rows to spare.
    """
    if data is None:
        test = easy_vqa("test")
        return easy_vqa("train"), random.Random(0).sample(test, min(test_rows, len(test)))
    rows = read_rows(data, image_root)
    if len(rows) < 2 * test_rows:
        raise InputError(
            f"{data} has {len(rows)} rows; holding out {test_rows} takes at least twice as many. "
            "Lower --test_rows."
        )
    return rows[:-test_rows], rows[-test_rows:]


def measure(
    model: Any,
    processor: Any,
    read: Reader,
    *,
    pieces: list[list[int]],
    choices: list[Continuation],
    orders: list[Instruction],
) -> dict[str, Any]:
    """Loss of each passage, which continuations were right, and the replies to instructions.

    Args:
        model: Replies without an image, so that its adapter has no part in what it says.
        processor: The model's own.
        read: Reads passages and continuations.
        pieces: Passages.
        choices: Continuations to choose.
        orders: Instructions.
    """
    context = context_length(model.language_model.config)
    return {
        "losses": passage_losses(read, pieces),
        "right": choose(read, processor.tokenizer, choices, context),
        "replies": follow(model, processor, orders),
    }


def summarise(results: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """A row for each method, and how far its text is from the bare language model's."""
    base = results.get("adapter", {}).get("bare")
    rows: dict[str, dict[str, Any]] = {}
    if base is not None:
        rows[BARE] = row_of(base, base) | {"trained": 0, "task": None}
    for method, found in results.items():
        rows[NAMES[method]] = row_of(found, base) | {
            "trained": found["parameters"],
            "task": float(np.mean(found["task"])),
            "task_interval": wilson(sum(found["task"]), len(found["task"])),
            "rate": found["settings"]["rate"],
            "cpu_seconds": found["cpu_seconds"],
        }
    return rows


def row_of(found: dict[str, Any], base: dict[str, Any] | None) -> dict[str, Any]:
    """Perplexity and continuations, with the change of the loss a token and its 95 % interval."""
    right = sum(found["right"])
    row: dict[str, Any] = {
        "perplexity": exp(float(np.mean(found["losses"]))),
        "continuations": right / len(found["right"]),
        "continuations_interval": wilson(right, len(found["right"])),
        "questions": len(found["right"]),
    } | replies_of(found["replies"])
    if base is not None:
        change = np.array(found["losses"]) - np.array(base["losses"])
        row["loss_change"] = float(change.mean())
        row["loss_change_interval"] = bootstrap(change)
        row["largest_difference"] = float(np.abs(change).max())
    return row


def replies_of(replies: list[dict[str, Any]]) -> dict[str, Any]:
    """Share of instructions that were followed, of all and by kind, and words of a reply."""
    followed = [reply["followed"] for reply in replies]
    shares = by_kind(followed, [reply["kind"] for reply in replies])
    return {
        "instructions": shares.pop(ALL),
        "instructions_interval": wilson(sum(followed), len(followed)),
        "instructions_by_kind": shares,
        "instructions_asked": len(followed),
        "words": float(np.mean([len(words(reply["reply"])) for reply in replies])),
    }


def table(summary: dict[str, dict[str, Any]]) -> Table:
    """The methods for people."""
    made = Table(title="What is left of the text", title_justify="left")
    for name in (
        "", "trained", "perplexity", "loss a token, change", "continuations", "instructions",
        "words", "task",
    ):  # fmt: skip
        made.add_column(name, justify="left" if not name else "right")
    for name, row in summary.items():
        low, high = row.get("loss_change_interval", (float("nan"),) * 2)
        made.add_row(
            name,
            f"{row['trained']:,}",
            f"{row['perplexity']:.3f}",
            f"{row.get('loss_change', float('nan')):+.4f} [dim]({low:+.4f} to {high:+.4f})[/]",
            f"{row['continuations']:.1%}",
            f"{row['instructions']:.1%}",
            f"{row['words']:.1f}",
            "" if row["task"] is None else f"{row['task']:.1%}",
        )
    return made


def report(
    out: Path, summary: dict[str, Any], settings: dict[str, Any], results: dict[str, Any]
) -> None:
    """Bars of continuations and task; perplexities as facts."""
    scores = []
    for key, group in GROUPS.items():
        for name, row in reversed(summary.items()):  # the adapter, what matters, last
            if row.get(key) is not None:
                n = {
                    "continuations": row["questions"],
                    "instructions": row["instructions_asked"],
                    "task": settings["test_rows"],
                }[key]
                scores.append(Score(name, group, n, row[key], *row[f"{key}_interval"]))
    perplexities = {f"perplexity, {n}": f"{row['perplexity']:.3f}" for n, row in summary.items()}
    write_report(
        out / "report.html",
        title="What the language model keeps",
        lead="Perplexity and continuations of plain text, instructions, and the task, by way of "
        "learning.",
        facts=perplexities | {name: str(value) for name, value in settings.items()},
        scores=scores,
        curve=results.get("adapter", {}).get("curve", ()),
    )
    console.print(f"Report: {out / 'report.html'}", markup=False, soft_wrap=True)
