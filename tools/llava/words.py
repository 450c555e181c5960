"""Before the language model: the projector of the small LLaVA learns to name what a patch shows.

    python -m tools.llava.words --base runs/llava-base --pictures pictures --out runs/words

The generator of the scenes knows where everything is. Each patch of a picture is projected, and its
nearest words in the language model's own table of embeddings should be those of the thing it lies
on: its colour and its name, or the background's colour. No language model runs, so that a step
costs a fiftieth of one of `projector`, which then teaches how such a picture is asked about.
Colours and names come first because a bridge that met all kinds of question at once stayed at
chance (`docs/log/crome-tiny.md`).
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from rich.progress import track
from torch import Tensor
from transformers import AutoProcessor, LlavaForConditionalGeneration

from tools.tiny.pictures import PicturePack
from tools.tiny.questions import Scene
from tools.tiny.scenes import COLOURS, Scenes

IMAGES_AT_ONCE = 32
SHARPNESS = 16.0  # times the cosine of a patch and a word, before the softmax
SCALE_WEIGHT = 0.1  # of the penalty on patches that are larger or smaller than words


def train(
    base: Path,
    pictures: Path,
    out: Path,
    count: int = 8000,
    steps: int = 2000,
    images_per_step: int = 64,
    learning_rate: float = 1e-3,
    objects: int = 250,
    seed: int = 0,
) -> None:
    """Train the projector and write the whole model.

    Args:
        base: Folder of `tools.llava.base`.
        pictures: Folder of a picture pack (`python -m tools.tiny.pictures`).
        out: Folder of the result, with `words.jsonl`, the losses.
        count: Scenes; the vision tower's features of all are kept in memory.
        steps: Training steps.
        images_per_step: Scenes a step.
        learning_rate: Peak rate, which falls to 0 as a cosine.
        objects: Only so many things, those with the most pictures.
        seed: Of scenes and of their order.
    """
    torch.manual_seed(seed)
    processor: Any = AutoProcessor.from_pretrained(base)
    model: Any = LlavaForConditionalGeneration.from_pretrained(base, dtype=torch.bfloat16)
    scenes = Scenes(
        PicturePack.load(pictures), seed=seed, length=count, objects=objects, single=0.7,
        painted=0.75,
    )  # fmt: skip
    vocabulary = Vocabulary(processor.tokenizer, [thing.name for thing in scenes.things])
    words = model.get_input_embeddings().weight[vocabulary.ids].detach().float()
    features, targets = see(model, processor, scenes, vocabulary)
    projector = model.model.multi_modal_projector.float().requires_grad_(True)
    optimizer = torch.optim.AdamW(projector.parameters(), lr=learning_rate, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, learning_rate, total_steps=steps)
    out.mkdir(parents=True, exist_ok=True)
    with (out / "words.jsonl").open("w", encoding="utf-8") as log:
        for step in range(steps):
            chosen = torch.randint(count, (images_per_step,))
            loss, right = name_patches(projector(features[chosen].float()), words, targets[chosen])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            if step % 50 == 49:
                line = {"step": step + 1, "loss": round(loss.item(), 4), "right": round(right, 4)}
                log.write(json.dumps(line) + "\n")
                log.flush()
    model.to(torch.bfloat16).save_pretrained(out)
    processor.save_pretrained(out)


class Vocabulary:
    """The words that patches may be called by.

    Args:
        tokenizer: Of the language model.
        names: Of things.
    """

    def __init__(self, tokenizer: Any, names: Sequence[str]) -> None:
        self.tokenizer = tokenizer
        texts = [*COLOURS, *names, "background"]
        self.ids = sorted({token for text in texts for token in self.encode(text)})
        self.place = {token: place for place, token in enumerate(self.ids)}

    def encode(self, text: str) -> list[int]:
        """Token ids of a word inside a sentence."""
        return list(self.tokenizer(" " + text, add_special_tokens=False)["input_ids"])

    def target(self, *texts: str | None) -> Tensor:
        """Distribution over words: equal shares for texts, and for the tokens of each."""
        shares = torch.zeros(len(self.ids))
        given = [self.encode(text) for text in texts if text]
        for tokens in given:
            for token in tokens:
                shares[self.place[token]] += 1 / len(given) / len(tokens)
        return shares


@torch.no_grad()
def see(
    model: Any, processor: Any, scenes: Scenes, vocabulary: Vocabulary
) -> tuple[Tensor, Tensor]:
    """Features (count, N, D) before the projector, and targets (count, N, words)."""
    features, targets = [], []
    side = processor.image_processor.size["height"] // processor.patch_size
    for start in track(range(0, len(scenes), IMAGES_AT_ONCE), "Drawing scenes"):
        drawn = [scenes.draw(i) for i in range(start, min(start + IMAGES_AT_ONCE, len(scenes)))]
        images = [image.convert("RGB") for _, image, _ in drawn]
        pixels = processor.image_processor(images, return_tensors="pt")["pixel_values"]
        seen = model.model.vision_tower(pixels.bfloat16(), output_hidden_states=True)
        features.append(seen.hidden_states[model.config.vision_feature_layer][:, 1:])
        targets += [
            patch_words(scene, scenes.image_size, side, vocabulary) for scene, _, _ in drawn
        ]
    return torch.cat(features), torch.stack(targets).half()


def patch_words(scene: Scene, pixels: int, side: int, vocabulary: Vocabulary) -> Tensor:
    """Targets (N, words) of a scene's patches, row by row."""
    step = pixels / side
    behind = vocabulary.target("background", scene.background)
    things = [(item.box, vocabulary.target(item.color, item.name)) for item in scene.items]
    found = []
    for place in range(side**2):
        x, y = (place % side + 0.5) * step, (place // side + 0.5) * step
        over = (t for (x0, y0, x1, y1), t in things if x0 <= x <= x1 and y0 <= y <= y1)
        found.append(next(over, behind))
    return torch.stack(found)


def name_patches(projected: Tensor, words: Tensor, targets: Tensor) -> tuple[Tensor, float]:
    """Loss of naming patches, and the share whose nearest word is one of theirs.

    Args:
        projected: (B, N, d) patches.
        words: (W, d) embeddings.
        targets: (B, N, W) distributions.
    """
    near = SHARPNESS * F.normalize(projected, dim=-1) @ F.normalize(words, dim=-1).T
    targets = targets.float()
    loss = F.cross_entropy(near.flatten(0, 1), targets.flatten(0, 1))
    size = projected.norm(dim=-1) / words.norm(dim=-1).mean()
    with torch.no_grad():
        right = targets.gather(-1, near.argmax(-1, keepdim=True)).gt(0).float().mean().item()
    return loss + SCALE_WEIGHT * size.log().square().mean(), right


if __name__ == "__main__":
    import sys

    from crome.options import call

    call(train, sys.argv[1:], name="python -m tools.llava.words")
