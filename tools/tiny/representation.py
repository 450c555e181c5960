"""Before the language model: a Q-Former learns to see and to compare, by answering on its own.

BLIP-2 (arXiv 2301.12597, section 3.1) trains its Q-Former against text first, and joins a language
model later; the paper's Q-Former comes from there. This is the stage for a base that has none.
Answers are classified from the mean query, which costs a twentieth of a step through a language
model of 135 M parameters.

Probes ask the same mean for the parts of a yes/no question: what is seen, what is asked about,
whether the two agree, and whether the question is negated. In a balanced mix the answer is a parity
of three things of which no two tell anything; without the probes training stayed at chance
(`docs/log/failed.md`).

The loop is short and its own: what trains are heads that are thrown away and a Q-Former outside its
model, on features held in memory, and the Trainer would need a model, a data set and a log made up
for it.
"""

import json
import math
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
import yaml
from rich.progress import track
from torch import Tensor, nn

from crome.checkpoints.loading import load, new_tiny
from crome.errors import positive
from crome.model.configuration import new_adapter
from crome.model.modeling import CromeForConditionalGeneration
from crome.model.processing import CromeProcessor
from crome.model.vision import VisualFeatures
from crome.training.progress import console
from tools.tiny.pictures import PicturePack
from tools.tiny.questions import Scene
from tools.tiny.scenes import COLOURS, Scenes

UNKNOWN = -100
YES_NO = ("exists", "absent", "is-")
NEGATED = ("absent", "is-not")
PROBE_WEIGHT = 0.4
HEAD_RATE, CROSS_RATE = 5.0, 2.0  # times the rate of the rest: they start from nothing
RARE = 12  # answers that occur less often are no class of their own
IMAGES_AT_ONCE = 16


@dataclass(frozen=True)
class Parts:
    """What an answer is made of; None where a question has no such part."""

    seen_color: str | None
    seen_name: str | None
    asked_color: str | None
    asked_name: str | None
    agree: bool | None
    negated: bool | None


@dataclass(frozen=True)
class Question:
    """A question, its answer and its parts."""

    text: str
    answer: str
    kind: str
    parts: Parts


def parts(scene: Scene, kind: str, question: str, answer: str, words: "Words") -> Parts:
    """The parts of a question about a scene."""
    only = scene.items[0] if len(scene.items) == 1 else None
    negated = kind.startswith(NEGATED) if kind.startswith(YES_NO) else None
    return Parts(
        seen_color=None if only is None or only.color is None else str(only.color),
        seen_name=None if only is None else only.name,
        asked_color=words.one(words.colors, question),
        asked_name=words.one(words.names, question),
        agree=None if negated is None else (answer == "yes") != negated,
        negated=negated,
    )


class Words:
    """Finds the colour and the thing that a question names."""

    def __init__(self, names: Sequence[str]) -> None:
        self.colors = self._any_of(list(COLOURS))
        self.names = self._any_of(sorted(names, key=len, reverse=True))

    @staticmethod
    def _any_of(words: Sequence[str]) -> re.Pattern[str]:
        return re.compile(r"\b(" + "|".join(map(re.escape, words)) + r")\b", re.IGNORECASE)

    @staticmethod
    def one(pattern: re.Pattern[str], question: str) -> str | None:
        """The word, where the question has exactly one."""
        found = pattern.findall(question)
        return found[0].lower() if len(found) == 1 else None


class Heads(nn.Module):
    """The classifier of answers and the probes; none of them is kept.

    Args:
        width: Of the Q-Former.
        questions: All questions, from which the classes follow.
    """

    def __init__(self, width: int, questions: Sequence[Question]) -> None:
        super().__init__()
        count = Counter(question.answer for question in questions)
        self.answers = {a: n for n, a in enumerate(a for a, c in count.items() if c >= RARE)}
        self.answer = nn.Linear(width, len(self.answers))
        self.classes: dict[str, dict[Any, int]] = {}
        for name in Parts.__annotations__:
            values = {getattr(q.parts, name) for q in questions} - {None}
            self.classes[name] = {v: n for n, v in enumerate(sorted(values))}
        self.probes = nn.ModuleDict(
            {n: nn.Linear(width, len(c)) for n, c in self.classes.items() if c}
        )

    def losses(self, query: Tensor, asked: Sequence[Question]) -> dict[str, Tensor]:
        """Cross-entropy of the answers, and of each probe that has a question.

        Args:
            query: (B, width) mean query.
            asked: B questions.
        """
        target = torch.tensor([self.answers[q.answer] for q in asked])
        losses = {"answer": F.cross_entropy(self.answer(query), target, reduction="none")}
        for name, probe in self.probes.items():
            classes = self.classes[name]
            target = torch.tensor([classes.get(getattr(q.parts, name), UNKNOWN) for q in asked])
            if (target != UNKNOWN).any():
                losses[name] = F.cross_entropy(probe(query), target, ignore_index=UNKNOWN)
        return losses


def represent(
    out: Path,
    pictures: Path,
    checkpoint: str | None = None,
    count: int = 8000,
    steps: int = 900,
    images_per_step: int = 24,
    questions_per_image: int = 8,
    learning_rate: float = 5e-4,
    objects: int | None = 80,
    single: float = 0.85,
    painted: float = 0.88,
    mix: dict[str, float] | None = None,
    seed: int = 0,
) -> None:
    """Trains a base's Q-Former on generated scenes; projections and adapter are drawn anew.

    Args:
        out: Folder for the base, `run.yaml` and `log.jsonl`.
        pictures: Folder of a picture pack (`python -m tools.tiny.pictures`).
        checkpoint: Base to start from; the packaged towers with a new bridge if None.
        count: Pictures; their frozen features are kept in memory, 140 KB each.
        steps: Training steps.
        images_per_step: Pictures a step.
        questions_per_image: Questions asked about each of them.
        learning_rate: Peak rate, falling to 0 as a cosine.
        objects: Only so many things, those with the most pictures.
        single: Share of pictures that show one thing.
        painted: Share of pictures of silhouettes in one colour.
        mix: Weights of question kinds that differ from the curriculum's own.
        seed: Of scenes and order.
    """
    positive(count=count, steps=steps, images_per_step=images_per_step, learning_rate=learning_rate)
    settings = {k: str(v) if isinstance(v, Path) else v for k, v in locals().items()}
    torch.manual_seed(seed)
    model, processor = load(checkpoint) if checkpoint else new_tiny()
    scenes = Scenes(
        PicturePack.load(pictures), seed, mix=mix, questions_per_image=2 * questions_per_image,
        objects=objects, single=single, painted=painted, length=count,
    )  # fmt: skip
    out.mkdir(parents=True, exist_ok=True)
    (out / "run.yaml").write_text(yaml.safe_dump(settings, sort_keys=False))
    features, questions = see(model, processor, scenes)
    every = [question for asked in questions for question in asked]
    heads = Heads(model.config.qformer_config.hidden_size, every)
    optimizer = groups(model, heads, learning_rate)
    trained = [p for group in optimizer.param_groups for p in group["params"]]
    rng, order = np.random.default_rng(seed), np.empty(0, int)
    with (out / "log.jsonl").open("w", encoding="utf-8") as log:
        for step in track(range(steps), "Learning to see", console=console):
            if len(order) < images_per_step:
                order = rng.permutation(count)
            chosen, order = order[:images_per_step], order[images_per_step:]
            schedule(optimizer, learning_rate, step, steps)
            losses = forward(model, processor, heads, features, questions, chosen, rng)
            probes = [loss for name, loss in losses.items() if name != "answer"]
            loss = losses["answer"].mean() + PROBE_WEIGHT * sum(probes)
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(trained, 1.0)
            optimizer.step()
            values = {name: round(loss.mean().item(), 4) for name, loss in losses.items()}
            log.write(json.dumps({"step": step + 1, **values}) + "\n")
    model.match_embedding_scale()  # what the projections knew was about other queries
    if model.config.adapter_bottleneck is not None:
        model.adapter = new_adapter(model.config)
    model.save_pretrained(out)
    processor.save_pretrained(out)
    console.print(f"The base is in {out}; next, crome train --stage pretrain --checkpoint {out}")


@torch.no_grad()
def see(
    model: CromeForConditionalGeneration, processor: CromeProcessor, scenes: Scenes
) -> tuple[np.ndarray, list[list[Question]]]:
    """Frozen features (count, N, D) of all scenes, and the questions about each."""
    words = Words([thing.name for thing in scenes.things])
    features, questions = [], []
    for start in track(range(0, len(scenes), IMAGES_AT_ONCE), "Drawing scenes", console=console):
        drawn = [scenes.draw(i) for i in range(start, min(start + IMAGES_AT_ONCE, len(scenes)))]
        batch = processor(images=[image for _, image, _ in drawn], text=[""] * len(drawn))
        features.append(model.visual_features(batch["pixel_values"]).queries.half().numpy())
        questions += [
            [Question(q, a, kind, parts(scene, kind, q, a, words)) for kind, _, q, a in rows]
            for scene, _, rows in drawn
        ]
    return np.concatenate(features), questions


def forward(
    model: CromeForConditionalGeneration,
    processor: CromeProcessor,
    heads: Heads,
    features: np.ndarray,
    questions: Sequence[Sequence[Question]],
    chosen: np.ndarray,
    rng: np.random.Generator,
) -> dict[str, Tensor]:
    """Losses of some of the questions about the chosen pictures."""
    asked: list[Question] = []
    rows: list[int] = []
    for place, image in enumerate(chosen):
        known = [q for q in questions[image] if q.answer in heads.answers]
        some = rng.permutation(len(known))[: max(1, len(known) // 2)]
        asked += [known[i] for i in some]
        rows += [place] * len(some)
    tokenizer: Any = processor.qformer_tokenizer
    encoded = tokenizer([q.text for q in asked], return_tensors="pt", padding=True)
    seen = torch.from_numpy(features[chosen].astype(np.float32))
    with torch.autocast("cpu", torch.bfloat16):
        queries = model.qformer_outputs(
            VisualFeatures(seen, seen),
            torch.tensor(rows)[:, None],
            encoded.input_ids,
            encoded.attention_mask,
        )
    return heads.losses(queries.float().mean(1), asked)


def groups(
    model: CromeForConditionalGeneration, heads: Heads, learning_rate: float
) -> torch.optim.AdamW:
    """What trains: queries and Q-Former; and the heads, faster."""
    fast: list[nn.Parameter] = []
    slow: list[nn.Parameter] = [model.query_tokens]
    for name, parameter in model.qformer.named_parameters():
        new = re.search(r"crossattention\.attention\.(key|value)", name)
        (fast if new else slow).append(parameter)
    matrices, vectors = [p for p in slow if p.ndim > 1], [p for p in slow if p.ndim <= 1]
    settings: list[tuple[Sequence[nn.Parameter], float, float]] = [
        (list(heads.parameters()), HEAD_RATE, 0.0),
        (fast, CROSS_RATE, 0.02),
        (matrices, 1.0, 0.05),
        (vectors, 1.0, 0.0),
    ]
    for parameters, _, _ in settings:
        for parameter in parameters:
            parameter.requires_grad_(True)
    return torch.optim.AdamW(
        [{"params": list(p), "times": t, "weight_decay": w} for p, t, w in settings],
        lr=learning_rate,
        betas=(0.9, 0.98),
    )


def schedule(optimizer: torch.optim.Optimizer, peak: float, step: int, steps: int) -> None:
    """Linear warm-up over 60 steps, then a cosine to 0."""
    rate = peak * min(1.0, (step + 1) / 60) * 0.5 * (1 + math.cos(math.pi * step / steps))
    for group in optimizer.param_groups:
        group["lr"] = group["times"] * rate


if __name__ == "__main__":
    import sys

    from crome.options import call

    call(represent, sys.argv[1:], name="python -m tools.tiny.representation", positional=True)
