"""What the few-shot tests share: features of separable classes, tiny dual encoders, pictures."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import (
    CLIPConfig,
    CLIPModel,
    PreTrainedTokenizerFast,
    SiglipConfig,
    SiglipModel,
)
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil
from transformers.models.siglip.image_processing_pil_siglip import SiglipImageProcessorPil

WORDS = ["<pad>", "<s>", "</s>", "<unk>", "a", "photo", "of", ".", "red", "green", "blue", "sea"]
TOWER = {
    "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2,
}  # fmt: skip
TEXT = TOWER | {
    "vocab_size": len(WORDS), "max_position_embeddings": 16,
    "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip
VISION = TOWER | {"image_size": 28, "patch_size": 14}
COLOURS = {"red": (200, 30, 30), "green": (30, 180, 40), "sea_blue": (20, 60, 190)}


@pytest.fixture(scope="session")
def problem():
    """Four classes in 16 dimensions: text, shots, labels, and queries with theirs."""
    rng = np.random.default_rng(0)
    n, shots, width = 4, 3, 16
    centres = rng.normal(size=(n, width))
    text = centres + 0.8 * rng.normal(size=centres.shape)
    y, y_test = np.repeat(np.arange(n), shots), np.repeat(np.arange(n), 25)
    X, Q = (centres[labels] + rng.normal(size=(len(labels), width)) for labels in (y, y_test))
    return SimpleNamespace(text=text, X=X, y=y, Q=Q, y_test=y_test, n=n, shots=shots)


def save_tokenizer(folder):
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)}, "<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", 1), ("</s>", 2)]
    )
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", bos_token="<s>", eos_token="</s>",
        unk_token="<unk>", model_max_length=16,
    ).save_pretrained(folder)  # fmt: skip


@pytest.fixture(scope="session")
def clip(tmp_path_factory):
    """Folder of a CLIP with random weights."""
    folder = tmp_path_factory.mktemp("clip")
    torch.manual_seed(0)
    config = CLIPConfig(text_config=TEXT, vision_config=VISION, projection_dim=12)
    CLIPModel(config).save_pretrained(folder)
    sides = {"size": {"shortest_edge": 28}, "crop_size": {"height": 28, "width": 28}}
    CLIPImageProcessorPil(**sides).save_pretrained(folder)
    save_tokenizer(folder)
    return str(folder)


@pytest.fixture(scope="session")
def siglip(tmp_path_factory):
    """Folder of a SigLIP with random weights."""
    folder = tmp_path_factory.mktemp("siglip")
    torch.manual_seed(0)
    SiglipModel(SiglipConfig(text_config=TEXT, vision_config=VISION)).save_pretrained(folder)
    SiglipImageProcessorPil(size={"height": 28, "width": 28}).save_pretrained(folder)
    save_tokenizer(folder)
    return str(folder)


@pytest.fixture(scope="session")
def photos(tmp_path_factory):
    """A folder per class with ten noisy pictures of one colour."""
    root, rng = tmp_path_factory.mktemp("data") / "photos", np.random.default_rng(0)
    for name, colour in COLOURS.items():
        (root / name).mkdir(parents=True)
        for i in range(10):
            pixels = np.array(colour) + rng.normal(0, 25, (24, 30, 3))
            picture = Image.fromarray(pixels.clip(0, 255).astype(np.uint8))
            picture.save(root / name / f"{i}.png")
    return root


@pytest.fixture(autouse=True)
def _own_cache(tmp_path, monkeypatch):
    """Features are stored in the test's folder, never in the user's."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
