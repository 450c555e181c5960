"""Writes a tiny checkpoint of the installed version, with what it computes, for later versions.

    cd tests/golden && python make.py 0.1.0

A version's folder is made once, when it is released, and never again.
"""

import json
import os
import sys
from pathlib import Path

import numpy as np
import torch
import transformers
from PIL import Image
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import BertTokenizer, PreTrainedTokenizerFast
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

from crome.model.configuration import CromeConfig
from crome.model.modeling import CromeForConditionalGeneration
from crome.model.processing import CromeProcessor
from crome.model.stages import apply_stage

STEPS = 20
ROWS = [
    (0, "What is the colour?", "blue"),
    (0, "How many stars are there?", "12"),
    (1, "Is there a star in the picture?", "yes, there is"),
]
TEMPLATE = (
    "{% for m in messages %}<|{{ m.role }}|>{{ m.content }}</s>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


def save_towers() -> None:
    """A CLIP encoder and a Llama with byte tokens, in folders beside each other."""
    vision = transformers.CLIPVisionConfig(
        hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=2,
        image_size=28, patch_size=14, initializer_range=0.2,
    )  # fmt: skip
    transformers.CLIPVisionModel(vision).save_pretrained("vision")
    size = {"height": 28, "width": 28}
    CLIPImageProcessorPil(size=size, crop_size=size).save_pretrained("vision")
    language = transformers.LlamaConfig(
        vocab_size=300, hidden_size=16, intermediate_size=24, num_hidden_layers=2,
        num_attention_heads=2, num_key_value_heads=1, max_position_embeddings=256,
        initializer_range=0.2, pad_token_id=0, bos_token_id=1, eos_token_id=2,
    )  # fmt: skip
    transformers.LlamaForCausalLM(language).save_pretrained("language")
    letters = ["<pad>", "<s>", "</s>", *sorted(pre_tokenizers.ByteLevel.alphabet())]
    bytes_ = Tokenizer(models.BPE(vocab={t: i for i, t in enumerate(letters)}, merges=[]))
    bytes_.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bytes_.decoder = decoders.ByteLevel()
    PreTrainedTokenizerFast(
        tokenizer_object=bytes_, pad_token="<pad>", bos_token="<s>", eos_token="</s>",
        chat_template=TEMPLATE,
    ).save_pretrained("language")  # fmt: skip


def new_model() -> tuple[CromeForConditionalGeneration, CromeProcessor]:
    """An untrained bridge whose adapter does something."""
    model = CromeForConditionalGeneration.from_backbones(
        "vision", "language", dtype=torch.float32, num_query_tokens=2, adapter_bottleneck=4,
        qformer_config={
            "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2,
            "num_attention_heads": 2, "vocab_size": 90, "max_position_embeddings": 64,
            "hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0,
            "initializer_range": 0.2,
        },
    )  # fmt: skip
    letters = [c for c in map(chr, range(97, 123))] + list("0123456789?.,")
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    words += [*letters[:30], *("##" + c for c in letters)]
    tokenizer = BertTokenizer(vocab={word: i for i, word in enumerate(words)})
    return model, CromeProcessor.from_config(model.config, tokenizer)


def batch_of(processor: CromeProcessor, answers: bool = True) -> dict[str, torch.Tensor]:
    """The fixed rows as tensors."""
    pixels = np.random.RandomState(0).randint(0, 256, (2, 28, 28, 3), dtype=np.uint8)
    pictures = [Image.fromarray(p) for p in pixels]
    images, questions, said = zip(*((pictures[n], q, a) for n, q, a in ROWS), strict=True)
    wanted = list(said) if answers else None
    return dict(processor(images=list(images), text=list(questions), answers=wanted))


def computed(
    model: CromeForConditionalGeneration, processor: CromeProcessor
) -> dict[str, list[float] | list[list[int]]]:
    """What a version computes: losses of answers, greedy answers, losses of a short training."""
    with torch.no_grad():
        losses = model(**batch_of(processor)).token_losses.tolist()
    asked = {"max_new_tokens": 6, "do_sample": False, **processor.generation_kwargs}
    answers = model.generate(**batch_of(processor, answers=False), **asked).tolist()
    model.set_adapter(None)
    apply_stage(model, "finetune")
    optimizer = torch.optim.AdamW(model.adapter.parameters(), lr=0.01)
    training = []
    for _ in range(STEPS):
        loss = model(**batch_of(processor)).loss
        training.append(loss.item())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return {"losses": losses, "answers": answers, "training": training}


def make(version: str) -> None:
    """Writes the folder of a version."""
    Path(version).mkdir()
    os.chdir(version)
    torch.manual_seed(0)
    save_towers()
    model, processor = new_model()
    model.save_pretrained("base")
    processor.save_pretrained("base")
    for parameter in model.adapter.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    model.save_adapter("adapter", metrics={"accuracy": 0.5})
    model = CromeForConditionalGeneration.from_pretrained("base", dtype=torch.float32)
    model.load_adapter("adapter", name="task")
    assert isinstance(model.config, CromeConfig)
    Path("computed.json").write_text(json.dumps(computed(model, processor), indent=1) + "\n")


if __name__ == "__main__":
    make(sys.argv[1])
