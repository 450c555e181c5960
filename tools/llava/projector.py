"""The projector of the small LLaVA learns from generated scenes, both towers frozen.

    python -m tools.llava.projector --base runs/words --pictures pictures --out runs/llava

LLaVA's own first stage (arXiv 2304.08485, section 4.2) on the scenes that crome-tiny was made with:
one conversation of several questions a picture, cross-entropy on all answers. Plain geometric
figures never occur in the scenes, so the task of `compare` is new to the model.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset
from transformers import (
    AutoProcessor,
    LlavaForConditionalGeneration,
    Trainer,
    TrainingArguments,
)

from tools.tiny.pictures import PicturePack
from tools.tiny.scenes import Scenes

IGNORED = -100
PROMPT = "<|im_start|>user\n{}<|im_end|>\n<|im_start|>assistant\n"
MIX: dict[str, float] = {
    "caption": 4, "name": 9, "color": 14, "category": 2, "background": 1,
    "exists-color": 12, "absent-color": 8, "exists-name": 7, "absent-name": 5,
    "exists-color-name": 2, "absent-color-name": 2, "is-color": 8, "is-not-color": 3,
    "is-name": 4, "is-not-name": 2, "choice": 3, "count": 1,
}  # fmt: skip


class Conversations(Dataset[tuple[Image.Image, list[tuple[str, str]]]]):
    """Scenes as a picture with questions and answers each.

    Args:
        scenes: The generator.
    """

    def __init__(self, scenes: Scenes) -> None:
        self.scenes = scenes

    def __len__(self) -> int:
        return len(self.scenes)

    def __getitem__(self, position: int) -> tuple[Image.Image, list[tuple[str, str]]]:
        rows = self.scenes[position]
        return rows[0]["image"], [(row["question"], row["answer"]) for row in rows]


class Joined:
    """Conversations → one padded batch with labels on all answers.

    Args:
        processor: Of the model.
    """

    def __init__(self, processor: Any) -> None:
        self.processor = processor
        side = processor.image_processor.size["height"] // processor.patch_size
        self.tokens = processor.image_token * side**2
        self.pad = processor.tokenizer.pad_token_id

    def __call__(
        self, items: Sequence[tuple[Image.Image, list[tuple[str, str]]]]
    ) -> dict[str, Tensor]:
        """Token ids, mask and labels (B, T), and pixels (B, 3, H, W)."""
        rows = [self.conversation(turns) for _, turns in items]
        length = max(len(ids) for ids, _ in rows)
        pictures = [picture.convert("RGB") for picture, _ in items]
        return {
            "input_ids": torch.tensor([i + [self.pad] * (length - len(i)) for i, _ in rows]),
            "attention_mask": torch.tensor(
                [[1] * len(i) + [0] * (length - len(i)) for i, _ in rows]
            ),
            "labels": torch.tensor([x + [IGNORED] * (length - len(x)) for _, x in rows]),
            "pixel_values": self.processor.image_processor(pictures, return_tensors="pt")[
                "pixel_values"
            ],
        }

    def conversation(self, turns: Sequence[tuple[str, str]]) -> tuple[list[int], list[int]]:
        """Token ids of a conversation, and the same with all but answers ignored."""
        ids: list[int] = []
        labels: list[int] = []
        for number, (question, answer) in enumerate(turns):
            picture = self.tokens if number == 0 else ""
            prompt = self.encode(PROMPT.format(picture + question))
            reply = self.encode(f"{answer}<|im_end|>\n")
            ids += prompt + reply
            labels += [IGNORED] * len(prompt) + reply[:-1] + [IGNORED]
        return ids, labels

    def encode(self, text: str) -> list[int]:
        """Token ids of a piece of the template."""
        return list(self.processor.tokenizer(text, add_special_tokens=False)["input_ids"])


class ProjectorTrainer(Trainer):
    """The Trainer with logits only where an answer is predicted."""

    def compute_loss(
        self, model: Any, inputs: dict[str, Tensor], *args: Any, **kwargs: Any
    ) -> Tensor:
        """Mean cross-entropy over answer tokens."""
        labels = inputs.pop("labels")
        wanted = labels[:, 1:] != IGNORED
        with self.accelerator.autocast():
            states = model.model(**inputs).last_hidden_state[:, :-1]
            logits = model.lm_head(states[wanted])
        return F.cross_entropy(logits.float(), labels[:, 1:][wanted])


def train(
    base: Path,
    pictures: Path,
    out: Path,
    count: int = 8000,
    questions: int = 4,
    batch_size: int = 16,
    learning_rate: float = 1e-3,
    save_steps: int = 50,
    seed: int = 0,
) -> None:
    """Train the projector and write the whole model.

    Args:
        base: Folder of `tools.llava.words`, or of `tools.llava.base`.
        pictures: Folder of a picture pack (`python -m tools.tiny.pictures`).
        out: Folder of the run, and of the result; a stopped run goes on.
        count: Scenes, each drawn once.
        questions: Questions about each.
        batch_size: Scenes a step.
        learning_rate: Peak rate.
        save_steps: Steps between checkpoints.
        seed: Of scenes and of everything random.
    """
    processor: Any = AutoProcessor.from_pretrained(base)
    model: Any = LlavaForConditionalGeneration.from_pretrained(
        base,
        dtype=torch.bfloat16,
        attn_implementation="eager",  # its backward is faster on a CPU
    )
    model.requires_grad_(False).eval()
    model.model.multi_modal_projector.float().requires_grad_(True)
    scenes = Scenes(
        PicturePack.load(pictures), seed=seed, stage="instruct", length=count, mix=MIX,
        questions_per_image=questions, objects=80, single=0.85, painted=0.85,
    )  # fmt: skip
    args = TrainingArguments(
        output_dir=str(out),
        per_device_train_batch_size=batch_size,
        num_train_epochs=1,
        learning_rate=learning_rate,
        lr_scheduler_type="cosine",
        warmup_steps=30,
        logging_steps=10,
        save_steps=save_steps,
        save_total_limit=1,
        bf16=True,
        use_cpu=not torch.cuda.is_available(),
        dataloader_num_workers=0,
        remove_unused_columns=False,
        report_to="none",
        seed=seed,
        disable_tqdm=True,
    )
    trainer = ProjectorTrainer(
        model=model, args=args, train_dataset=Conversations(scenes), data_collator=Joined(processor)
    )
    checkpoints = list(out.glob("checkpoint-*"))
    trainer.train(resume_from_checkpoint=bool(checkpoints))
    model.to(torch.bfloat16).save_pretrained(out)
    processor.save_pretrained(out)


if __name__ == "__main__":
    import sys

    from crome.options import call

    call(train, sys.argv[1:], name="python -m tools.llava.projector")
