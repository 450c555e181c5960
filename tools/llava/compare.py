"""The attached adapter, LoRA and a tuned projector on one task: same rows, steps and batches.

    python -m tools.llava.compare --checkpoint runs/llava --out runs/llava-compare

The task is easy-VQA with the small LLaVA of `projector`. The three ways have about as many trained
parameters: the adapter at m = 256 (442,368), LoRA with r = 8 on q and v of the language model
(460,800), and LLaVA's own projector (554,112). Each goes through the same Trainer, collator, order
of rows and schedule of the rate. No rate was searched for: all take the one that `crome train`
derives from the width, 7e-4. What the frozen vision tower makes of a picture is remembered, for all
three alike. A run that is done is not done again.
"""

import hashlib
import json
import math
import time
from collections import Counter, defaultdict
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from torch import Tensor
from transformers import Trainer, TrainingArguments

from crome.checkpoints.loading import Loaded, load
from crome.data.collator import Collator
from crome.data.packaged import balanced, easy_vqa
from crome.data.stream import RowStream
from crome.intervals import over_runs
from crome.matching import exact_match
from crome.model.answering import answer
from crome.model.lengths import Room
from crome.model.stages import apply_stage
from crome.rows import Row
from crome.storage import write_json
from crome.studies.text import bare, paragraphs, passage_losses, passages

Way = Literal["adapter", "lora", "projector"]
LEARNING_RATE = 7e-4
LORA_RANK = 8


def compare(
    checkpoint: Path,
    out: Path,
    seeds: Sequence[int] = (0, 1, 2),
    ways: Sequence[Way] = ("adapter", "lora", "projector"),
    steps: int = 150,
    batch_size: int = 16,
    test_questions: int = 1200,
    held_out: bool = False,
) -> None:
    """Train every way with every seed, and write `summary.json`.

    Args:
        checkpoint: The model of `tools.llava.projector`.
        out: Folder of the results, one file a run.
        seeds: Of weights and of the order of rows.
        ways: What is trained.
        steps: Steps of each run.
        batch_size: Rows a step; up to four of them share a picture.
        test_questions: Test questions, spread evenly over the test split.
        held_out: Answer questions on a tenth of the training pictures instead, to choose settings.
    """
    base = out / "base.json"
    if not base.exists():
        model, processor = opened(checkpoint)
        train, test = splits(test_questions, held_out)
        found = {"accuracy": accuracy(model, processor, test), "questions": len(test)}
        write_json(base, {**found, "question_only": question_only(train, test)})
    for seed in seeds:
        for way in ways:
            path = out / f"{way}-{seed}.json"
            if not path.exists():
                write_json(path, run(checkpoint, way, seed, steps, batch_size, test_questions,
                                     held_out))  # fmt: skip
                print(path.read_text(), flush=True)
    summarise(out)


def run(
    checkpoint: Path,
    way: Way,
    seed: int,
    steps: int,
    batch_size: int,
    questions: int,
    held_out: bool,
) -> dict[str, Any]:
    """Trains one way once and measures it."""
    torch.manual_seed(seed)
    model, processor = opened(checkpoint)
    train, test = splits(questions, held_out)
    before = text_loss(model, processor)
    trained = open_parameters(model, way)
    stream = RowStream(balanced(train, seed), epochs=10, questions_per_image=4, seed=seed)
    forget_peak()
    resident, start = memory("VmRSS"), time.process_time()
    fit(model, processor, stream, trained, way, steps, batch_size, seed)
    cpu, peak = time.process_time() - start, memory("VmHWM")
    model.eval()
    model.vlm.model.multi_modal_projector.to(model.vlm.dtype)  # it trains in float32
    return {
        "way": way,
        "seed": seed,
        "trained_parameters": sum(p.numel() for p in trained),
        "steps": steps,
        "batch_size": batch_size,
        "learning_rate": LEARNING_RATE,
        "cpu_seconds_a_step": cpu / steps,
        "megabytes_above_the_model": (peak - resident) / 1024,
        "accuracy": accuracy(model, processor, test),
        "text_loss_before": before,
        "text_loss": text_loss(model, processor),
        "questions": len(test),
    }


def splits(questions: int, held_out: bool) -> tuple[list[Row], list[Row]]:
    """Rows to train on and rows to answer, of different pictures."""
    train = easy_vqa("train")
    if not held_out:
        test = easy_vqa("test")
    else:
        pictures = sorted({row.images[0] for row in train}, key=str)
        kept = set(pictures[::10])
        test = [row for row in train if row.images[0] in kept]
        train = [row for row in train if row.images[0] not in kept]
    return train, test[:: max(1, len(test) // questions)][:questions]


def open_parameters(model: Any, way: Way) -> list[torch.nn.Parameter]:
    """Freezes all but what a way trains."""
    if way == "adapter":
        apply_stage(model, "finetune")
    else:
        model.requires_grad_(False)
    if way == "projector":
        model.vlm.model.multi_modal_projector.float().requires_grad_(True)
    if way == "lora":
        from peft import LoraConfig, inject_adapter_in_model

        settings = LoraConfig(
            r=LORA_RANK, lora_alpha=2 * LORA_RANK, target_modules=["q_proj", "v_proj"]
        )
        decoder = model.vlm.model.language_model
        inject_adapter_in_model(settings, decoder)
        for name, parameter in decoder.named_parameters():
            if "lora_" in name:
                parameter.data = parameter.data.float()
                parameter.requires_grad_(True)
    return [p for p in model.parameters() if p.requires_grad]


def fit(
    model: Any,
    processor: Any,
    stream: RowStream,
    trained: Sequence[torch.nn.Parameter],
    way: Way,
    steps: int,
    batch_size: int,
    seed: int,
) -> None:
    """Trains for a number of steps."""
    optimizer = torch.optim.AdamW(trained, lr=LEARNING_RATE, weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, partial(rate, steps=steps))
    args = TrainingArguments(
        output_dir="unused",
        per_device_train_batch_size=batch_size,
        max_steps=steps,
        logging_steps=10,
        save_strategy="no",
        bf16=True,
        use_cpu=not torch.cuda.is_available(),
        remove_unused_columns=False,
        report_to="none",
        seed=seed,
        disable_tqdm=True,
        max_grad_norm=1.0,
    )
    trainer = Ordered(
        way,
        model=model,
        args=args,
        train_dataset=stream,
        data_collator=Collator(processor, Room.measured(model, processor)),
        optimizers=(optimizer, schedule),
    )
    trainer.train()


class Ordered(Trainer):
    """The Trainer on rows in the order of their stream, computing in bfloat16.

    Args:
        way: What is trained.
        settings: As `Trainer` takes them.
    """

    def __init__(self, way: Way, **settings: Any) -> None:
        super().__init__(**settings)
        self.way = way

    def _get_train_sampler(self, train_dataset: Any = None) -> Any:
        return torch.utils.data.SequentialSampler(train_dataset or self.train_dataset)

    def compute_loss(self, model: Any, inputs: Any, *args: Any, **kwargs: Any) -> Tensor:
        """Mean cross-entropy over answer tokens."""
        with self.accelerator.autocast():
            if self.way == "projector":
                inputs["features"] = [with_gradients(model, one) for one in inputs["media"]]
            loss: Tensor = model(**inputs).loss
        return loss


def with_gradients(model: Any, media: Any) -> dict[str, Any]:
    """Features of one set of media that the projector is trained through.

    An attached model encodes without gradients, since all in front of its adapter is frozen.
    """
    pixels = media["pixel_values"].to(model.vlm.dtype)
    output = model.vlm.get_image_features(pixel_values=pixels, return_dict=True)
    return {"image": {"pooler_output": output.pooler_output}}


class Remembering(torch.nn.Module):
    """A vision tower that looks at each picture once.

    Args:
        tower: Frozen.
    """

    seen: ClassVar[dict[str, Any]] = {}  # of all runs: the tower is the same in each

    def __init__(self, tower: torch.nn.Module) -> None:
        super().__init__()
        self.tower = tower

    @torch.no_grad()
    def forward(self, pixel_values: Tensor, **settings: Any) -> Any:
        """The tower's output."""
        key = hashlib.sha1(pixel_values.float().numpy().tobytes()).hexdigest()
        if key not in self.seen:
            self.seen[key] = self.tower(pixel_values, **settings)
        return self.seen[key]


def opened(checkpoint: Path) -> Loaded:
    """The model with a new adapter, its tower remembering, and its processor."""
    model, processor = load(str(checkpoint))
    model.vlm.model.vision_tower = Remembering(model.vlm.model.vision_tower)
    return model, processor


def memory(field: str) -> int:
    """Kilobytes of this process: resident (VmRSS), or at most since `forget_peak` (VmHWM)."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line.split()[1] for line in lines if line.startswith(field)))


def forget_peak() -> None:
    """Begins the count of the most memory anew."""
    Path("/proc/self/clear_refs").write_text("5")


def rate(step: int, steps: int) -> float:
    """Warm-up over a twentieth of the run, then a cosine to zero."""
    warm = max(1, steps // 20)
    return min(1.0, (step + 1) / warm) * 0.5 * (1 + math.cos(math.pi * step / steps))


def accuracy(model: Any, processor: Any, rows: Sequence[Row], batch_size: int = 32) -> dict:
    """Exact match over all rows and by kind."""
    right: defaultdict[str, list[float]] = defaultdict(list)
    order = sorted(rows, key=lambda row: str(row.images))
    for start in range(0, len(order), batch_size):
        batch = order[start : start + batch_size]
        replies = answer(model, processor, batch, max_new_tokens=6)
        for row, reply in zip(batch, replies, strict=True):
            score = exact_match(reply, row.answer)
            right["all"].append(score)
            right[str(row.kind)].append(score)
    return {kind: float(np.mean(scores)) for kind, scores in right.items()}


def question_only(train: Sequence[Row], test: Sequence[Row]) -> dict[str, float]:
    """Accuracy of the answer that a question had most often in training, the picture unseen."""
    answers: defaultdict[str, Counter[str]] = defaultdict(Counter)
    for row in train:
        answers[row.question][row.answer] += 1
    right: defaultdict[str, list[float]] = defaultdict(list)
    for row in test:
        known = answers[row.question].most_common(1)
        score = exact_match(known[0][0], row.answer) if known else 0.0
        right["all"].append(score)
        right[str(row.kind)].append(score)
    return {kind: float(np.mean(scores)) for kind, scores in right.items()}


def text_loss(model: Any, processor: Any) -> float:
    """Mean loss a token of the language model on plain text, without pictures."""
    pieces = passages(paragraphs(), processor.tokenizer, 128, 16)
    return float(np.mean(passage_losses(bare(model.vlm), pieces)))


def summarise(out: Path) -> None:
    """Writes means and 95 % t intervals over seeds."""
    found: defaultdict[str, list[dict]] = defaultdict(list)
    for path in sorted(out.glob("*-*.json")):
        result = json.loads(path.read_text())
        found[result["way"]].append(result)
    rows = {}
    for way, results in found.items():
        rows[way] = {
            "seeds": [r["seed"] for r in results],
            "trained_parameters": results[0]["trained_parameters"],
            "cpu_seconds_a_step": min(r["cpu_seconds_a_step"] for r in results),
            "megabytes_above_the_model": max(r["megabytes_above_the_model"] for r in results),
            "text_loss_change": [r["text_loss"] - r["text_loss_before"] for r in results],
        }
        for kind in results[0]["accuracy"]:
            values = [r["accuracy"][kind] for r in results]
            rows[way][kind] = {"mean": float(np.mean(values)), "interval_95": over_runs(values)}
    write_json(out / "summary.json", rows)


if __name__ == "__main__":
    import sys

    from crome.options import call

    call(compare, sys.argv[1:], name="python -m tools.llava.compare")
