"""What the tests share: tiny towers in folders, a model on any two of them, and no network.

Towers are saved once a session, so that every test goes through `from_backbones` and
`from_pretrained` as a user does. Weights are drawn wide (0.2), for a picture to make a difference.
"""

import os

os.environ["HF_HUB_OFFLINE"] = "1"

import itertools
import socket
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tokenizers
import torch
import transformers
from PIL import Image
from tokenizers import decoders, models, pre_tokenizers, trainers
from transformers import BertTokenizer, PreTrainedTokenizerFast
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

from crome.model.configuration import CromeConfig
from crome.model.language import build_language_model
from crome.model.modeling import CromeForConditionalGeneration
from crome.model.processing import CromeProcessor

SENTENCES = [
    "What is the colour of the large square?", "Is there a circle in the picture?", "blue", "yes",
    "How many triangles are there? Answer with one word.", "The picture shows a red star.", "no",
]  # fmt: skip
CHAT_TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}<|{{ m.role }}|>{{ m.content }}<|end|>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
SPECIAL = ["<pad>", "<s>", "</s>", "<|system|>", "<|user|>", "<|assistant|>", "<|end|>"]
VOCABULARY, WIDTH = 320, 32
SIDE = {"efficientnet": 64}  # of the pictures an encoder takes; 28 pixels for all others

ENCODER = {
    "hidden_size": 24, "intermediate_size": 32, "num_hidden_layers": 3, "num_attention_heads": 2,
    "image_size": 28, "patch_size": 14, "initializer_range": 0.2,
}  # fmt: skip
DECODER = {
    "vocab_size": VOCABULARY, "hidden_size": WIDTH, "intermediate_size": 48,
    "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8,
    "max_position_embeddings": 256, "initializer_range": 0.2, "tie_word_embeddings": False,
    "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip
T5 = {
    "vocab_size": VOCABULARY, "d_model": WIDTH, "d_kv": 8, "d_ff": 48, "num_layers": 2,
    "num_heads": 4, "feed_forward_proj": "gated-gelu", "initializer_factor": 1.0,
    "pad_token_id": 0, "eos_token_id": 2, "decoder_start_token_id": 0,
}  # fmt: skip

VISION: dict[str, tuple[str, dict[str, Any]]] = {
    "eva": ("InstructBlipVision", {"qkv_bias": True}),
    "clip": ("CLIPVision", {}),
    "siglip": ("SiglipVision", {}),
    "dinov2": ("Dinov2", {"mlp_ratio": 2}),
    "registers": ("Dinov2WithRegisters", {"mlp_ratio": 2, "num_register_tokens": 4}),
    "dinov3": ("DINOv3ViT", {"num_register_tokens": 4}),
    "vit": ("ViT", {}),
}
LANGUAGE: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("Llama", DECODER),
    "vicuna": ("Llama", DECODER),  # the same, without a chat template
    "blocks": (  # bitsandbytes' CPU kernels take rows in blocks of 64
        "Llama",
        DECODER | {"hidden_size": 64, "intermediate_size": 64, "head_dim": 16},
    ),
    "tied": ("Llama", DECODER | {"tie_word_embeddings": True}),
    "qwen3": ("Qwen3", DECODER),
    "gemma2": ("Gemma2", DECODER | {"sliding_window": 4, "final_logit_softcapping": 3.0}),
    "gemma3": ("Gemma3Text", DECODER | {"sliding_window": 30}),  # answers still see the picture
    "smollm3": ("SmolLM3", DECODER),
    "mistral": ("Mistral", DECODER | {"sliding_window": 30}),
    "phi3": ("Phi3", {k: v for k, v in DECODER.items() if k != "head_dim"}),
    "t5": ("T5", T5 | {"dense_act_fn": "gelu", "scale_decoder_outputs": False}),  # Flan-T5's kind
    "t5-scaled": ("T5", T5 | {"feed_forward_proj": "relu"}),  # the first T5's: tied, scaled head
}
BRIDGE: dict[str, Any] = {
    "qformer_config": {
        "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 3,
        "num_attention_heads": 2, "vocab_size": 200, "max_position_embeddings": 64,
        "hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0, "initializer_range": 0.2,
    },
    "num_query_tokens": 3,
    "adapter_bottleneck": 4,
    "max_question_tokens": 60,
    "max_answer_tokens": 20,
}  # fmt: skip


# ---------------------------------------------------------------------- every test


def pytest_addoption(parser):
    parser.addoption("--device", default="cpu", help="where tests marked `gpu` put their models")


def pytest_configure(config):
    if config.getoption("--device") == "cuda":
        if not torch.cuda.is_available():
            raise pytest.UsageError("--device cuda: PyTorch sees no GPU here")
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False


@pytest.fixture(scope="session")
def device(pytestconfig) -> str:
    """Where models of the fixtures `build` and `case` are; the CPU but for `--device`."""
    return str(pytestconfig.getoption("--device"))


@pytest.fixture
def recording(device, monkeypatch) -> None:
    """Decoding steps are recorded on the CPU too, by a stand-in for CUDA graphs."""
    from crome.model import slots
    from tests.recording import recorded

    if device == "cpu":
        monkeypatch.setitem(slots.RECORDERS, "cpu", recorded)


def placed(value: Any, device: Any) -> Any:
    """Tensors inside lists, tuples and dictionaries on a device."""
    if isinstance(value, torch.Tensor):
        return value.to(device)
    if isinstance(value, dict):
        return {name: placed(inner, device) for name, inner in value.items()}
    if type(value) in (list, tuple):
        return type(value)(placed(inner, device) for inner in value)
    return value


@pytest.fixture(autouse=True)
def _seeded():
    transformers.set_seed(0)


@pytest.fixture(autouse=True)
def _own_features(monkeypatch, tmp_path_factory):
    """Kept features and records of tests stay out of the user's cache."""
    base = tmp_path_factory.getbasetemp()
    monkeypatch.setenv("CROME_FEATURES", str(base / "features"))
    monkeypatch.setattr("crome.data.checked.record_path", lambda: base / "checked.sqlite")


@pytest.fixture(autouse=True)
def _no_network(monkeypatch):
    connect = socket.socket.connect

    def only_here(self, address):
        inet = self.family in (socket.AF_INET, socket.AF_INET6)
        if inet and address[0] not in ("127.0.0.1", "::1", "localhost"):
            raise OSError(f"tests have no network; one tried to reach {address}")
        return connect(self, address)

    monkeypatch.setattr(socket.socket, "connect", only_here)


# ---------------------------------------------------------------------- towers


@dataclass
class Towers:
    """Folders of tiny pretrained towers, each made when first asked for."""

    root: Path

    def __post_init__(self) -> None:
        self.vision = cache(self._vision)
        self.language = cache(self._language)

    def _vision(self, name: str) -> str:
        folder, side = self.root / name, SIDE.get(name, 28)
        model_class, config = vision_family(name)
        with torch.random.fork_rng():
            torch.manual_seed(1)
            model_class(config).eval().save_pretrained(folder)
        size = {"height": side, "width": side}
        processor = CLIPImageProcessorPil(size=size, crop_size=size, do_center_crop=False)
        processor.save_pretrained(folder)
        return str(folder)

    def _language(self, name: str) -> str:
        folder, (family, settings) = self.root / name, LANGUAGE[name]
        with torch.random.fork_rng():
            torch.manual_seed(2)
            config = getattr(transformers, f"{family}Config")(**settings)
            build_language_model(config).save_pretrained(folder)
        plain = name in ("vicuna", "t5", "t5-scaled")
        text_tokenizer(None if plain else CHAT_TEMPLATE).save_pretrained(folder)
        return str(folder)


def vision_family(name: str) -> tuple[type, Any]:
    if name == "efficientnet":
        from crome.assets.efficientnet import EfficientNetLiteConfig, EfficientNetLiteModel

        return EfficientNetLiteModel, EfficientNetLiteConfig(image_size=SIDE[name])
    family, extra = VISION[name]
    config = getattr(transformers, f"{family}Config")(**ENCODER, **extra)
    return getattr(transformers, f"{family}Model"), config


@cache
def text_tokenizer(chat_template: str | None) -> PreTrainedTokenizerFast:
    """A byte-level BPE trained on a few sentences."""
    tokenizer = tokenizers.Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY - 1,  # the last id is for a stock model's image placeholder
        special_tokens=SPECIAL,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(SENTENCES, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", bos_token="<s>", eos_token="</s>",
        chat_template=chat_template,
    )  # fmt: skip


@cache
def bert_tokenizer() -> BertTokenizer:
    """A WordPiece trained on the same sentences, for the Q-Former."""
    tokenizer = tokenizers.Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    trainer = trainers.WordPieceTrainer(
        vocab_size=BRIDGE["qformer_config"]["vocab_size"], special_tokens=special,
        show_progress=False,
    )  # fmt: skip
    tokenizer.train_from_iterator([s.lower() for s in SENTENCES], trainer)
    return BertTokenizer(vocab=tokenizer.get_vocab())


@pytest.fixture(scope="session")
def towers(tmp_path_factory) -> Towers:
    return Towers(tmp_path_factory.mktemp("towers"))


# ---------------------------------------------------------------------- a model, its processor


@dataclass
class Pair:
    """A model, its processor, and the two steps every test takes with them."""

    model: CromeForConditionalGeneration
    processor: CromeProcessor

    def batch(self, rows: list[tuple], **kwargs: Any) -> dict[str, Any]:
        """(images, question) or (images, question, answer) rows → tensors."""
        images, questions, *answers = zip(*rows, strict=True)
        answers = answers[0] if answers else None
        batch = dict(self.processor(images=images, text=questions, answers=answers, **kwargs))
        return self.placed(batch)

    def placed(self, batch: dict[str, Any]) -> dict[str, Any]:
        """A batch where the model is."""
        return placed(batch, self.model.device)

    def say(self, rows: list[tuple], *, names: Any = None, **kwargs: Any) -> list[list[int]]:
        """New tokens of each row, up to the end token or the padding behind it."""
        settings = {"max_new_tokens": 6, "do_sample": False, **self.processor.generation_kwargs}
        batch = self.batch([row[:2] for row in rows])
        ids = self.model.generate(**batch, adapter_names=names, **settings | kwargs).tolist()
        start = int(self.processor.is_encoder_decoder)
        stop = set(self.processor.end_ids) | {self.processor.pad_token_id}
        return [list(itertools.takewhile(lambda i: i not in stop, row[start:])) for row in ids]


@pytest.fixture(scope="session")
def build(towers, device) -> Callable[..., Pair]:
    """Makes a model on two named towers, with open gates unless told otherwise."""

    def make(
        vision: str = "eva", language: str = "llama", *, open_gates: bool = True, **settings: Any
    ) -> Pair:
        folders = towers.vision(vision), towers.language(language)
        settings = BRIDGE | settings
        model = CromeForConditionalGeneration.from_backbones(
            *folders, dtype=torch.float32, **settings
        )
        if open_gates and model.config.adapter_bottleneck is not None:
            open_adapter(model.adapter)
        model.to(device)
        return Pair(model, CromeProcessor.from_config(model.config, bert_tokenizer()))

    return make


def open_adapter(adapter: torch.nn.Module, std: float = 0.5) -> None:
    """Gives every matrix of an adapter weights that matter."""
    for parameter in adapter.parameters():
        torch.nn.init.normal_(parameter, std=std)


@pytest.fixture
def randomise() -> Callable[..., None]:
    return open_adapter


@pytest.fixture
def tiny_config() -> Callable[..., CromeConfig]:
    """A whole configuration without folders, its towers as plain dicts."""

    def make(language: str = "llama", vision: str = "eva", **settings: Any) -> CromeConfig:
        family, fields = LANGUAGE[language]
        text = getattr(transformers, f"{family}Config")(**fields)
        parts = {"vision_config": vision_family(vision)[1], "text_config": text}
        return CromeConfig(**{k: v.to_dict() for k, v in parts.items()}, **BRIDGE | settings)

    return make


@pytest.fixture(scope="session")
def case(device) -> Callable[..., Any]:
    """A vision-language family at toy size, attached: `Case` of the sweep, built once each."""
    benchmarks = Path(__file__).parents[1] / "benchmarks"
    if not benchmarks.is_dir():
        pytest.skip("benchmarks/ is not part of this installation")
    sys.path.insert(0, str(benchmarks))
    from families import Case

    transformers.logging.set_verbosity_error()
    return cache(lambda kind, medium="image": Case(kind, device, medium))


@pytest.fixture(scope="session")
def pictures() -> list[Image.Image]:
    """Four pictures of noise, all different."""
    noise = np.random.default_rng(0).integers(0, 256, (4, 28, 28, 3), dtype=np.uint8)
    return [Image.fromarray(pixels) for pixels in noise]


@pytest.fixture
def rows(pictures) -> list[tuple]:
    """Questions of unequal lengths: two on one picture, one on another."""
    return [
        (pictures[0], "What is the colour?", "blue"),
        (pictures[0], "How many triangles are there in the picture? Answer with one word.", "12"),
        (pictures[1], "Is there one star?", "yes, there is"),
    ]
