"""Every language model and vision encoder of transformers as a tower, at random toy size.

    python benchmarks/backbones.py --out docs/results/backbones.md [--only llama,clip_vision_model]

Each family is built from its default configuration with every width, depth and count cut down,
joined with a fixed other tower, and checked. A family that is refused in one line counts as
refused, not as wrong. Results are kept beside the table as JSON lines, so that an interrupted
sweep goes on. What the checks mean is said in `LANGUAGE_CHECKS` and `ENCODER_CHECKS`.
"""

import argparse
import itertools
import json
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from PIL import Image
from tiny_vlms import SMALL
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from torch import Tensor
from transformers import CONFIG_MAPPING, BertTokenizer, PreTrainedTokenizerFast
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
    MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES,
    MODEL_MAPPING_NAMES,
)
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

from crome.errors import InputError
from crome.model.encoders import build_vision_model, encoder_class
from crome.model.language import build_language_model
from crome.model.modeling import CromeForConditionalGeneration
from crome.model.processing import CromeProcessor

VOCABULARY = 320
TOLERANCE = 1e-4
LENGTH = 5
SIDE = 56
SPECIAL = ["<pad>", "<s>", "</s>", "<unk>"]
IDS = {"vocab_size": VOCABULARY, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
LANGUAGE = {
    "n_embd": 32, "n_inner": 48, "d_ff": 48, "d_kv": 8, "n_heads": 4, "n_layers": 2, "emb_dim": 32,
    "ffn_hidden_size": 48, "encoder_ffn_dim": 48, "decoder_ffn_dim": 48, "decoder_layers": 2,
    "decoder_attention_heads": 4, "num_decoder_layers": 2, "n_positions": 512, "init_std": 0.2,
    "vocab_size_or_config_json_file": VOCABULARY, "rotary_dim": 8, "dropout": 0.0,
    "attn_pdrop": 0.0, "embd_pdrop": 0.0, "resid_pdrop": 0.0, "activation_dropout": 0.0,
    "hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0, "initializer_factor": 1.0,
    "sliding_window": 12, "state_size": 8, "mamba_d_state": 8, "n_groups": 1, "mamba_n_groups": 1,
    "mamba_n_heads": 8, "mamba_d_head": 8, "num_heads": 4, "linear_num_value_heads": 4,
    "linear_num_key_heads": 2, "linear_key_head_dim": 8, "linear_value_head_dim": 8,
    "index_n_heads": 2, "index_head_dim": 16, "num_shared_experts": 1, "n_shared_experts": 1,
    "n_group": 1, "topk_group": 1, "first_k_dense_replace": 1, "decoder_start_token_id": 2,
    "global_attn_every_n_layers": 2, "max_position_embeddings": 512, "embedding_size": 32,
}  # fmt: skip
FAMILIES: dict[str, dict[str, Any]] = {
    "reformer": {"is_decoder": True, "axial_pos_embds_dim": [16, 16], "axial_pos_shape": [16, 32]},
    "gpt_neo": {
        "attention_types": [[["global", "local"], 1]],
        "num_layers": 2,
        "window_size": 6,
        "attention_layers": ["global", "local"],
    },
    "mamba2": {"num_heads": 8, "head_dim": 8, "expand": 2},
    "ministral": {"head_dim": 8},
    "hunyuan_v1_dense": {"head_dim": 8},
    "hunyuan_v1_moe": {"head_dim": 8},
    "nemotron": {"head_dim": 8},
    "falcon": {"num_kv_heads": 4},
    "d_fine": {"decoder_attention_heads": 4},
    "deimv2": {"decoder_attention_heads": 4},
    "minicpm3": {"head_dim": 8, "num_key_value_heads": 4},
    "granitemoehybrid": {"layer_types": ["mamba", "attention"]},
    "jamba": {"attn_layer_period": 2, "attn_layer_offset": 1},
    "convnext": {"patch_size": 4},
    "convnextv2": {"patch_size": 4},
    "swinv2": {"num_heads": [2, 2, 2, 2], "depths": [1, 1, 1, 1]},
    "donut-swin": {"num_heads": [2, 2, 2, 2], "depths": [1, 1, 1, 1]},
    "maskformer-swin": {"num_heads": [2, 2, 2, 2], "depths": [1, 1, 1, 1]},
    "bit": {"layer_type": "preactivation"},
    "regnet": {"layer_type": "y"},
}
"""What a family needs beside the sizes."""


class Towers:
    """The fixed other tower of each sweep, in folders of their own."""

    def __init__(self, root: Path) -> None:
        self.root = root
        torch.manual_seed(1)
        vision = transformers.CLIPVisionConfig(
            hidden_size=24, intermediate_size=32, num_hidden_layers=3, num_attention_heads=2,
            image_size=28, patch_size=14, initializer_range=0.2,
        )  # fmt: skip
        self.vision = self.save(transformers.CLIPVisionModel(vision), "vision", 28)
        language = transformers.LlamaConfig(
            **IDS, hidden_size=32, intermediate_size=48, num_hidden_layers=2,
            num_attention_heads=4, num_key_value_heads=2, initializer_range=0.2,
        )  # fmt: skip
        self.language = self.save(build_language_model(language), "language")

    def save(self, model: Any, name: str, side: int | None = None) -> str:
        """A tower's folder; with preprocessing for an encoder, else with a tokenizer."""
        folder = self.root / name
        model.eval().save_pretrained(folder)
        if side is None:
            text_tokenizer().save_pretrained(folder)
        else:
            size = {"height": side, "width": side}
            CLIPImageProcessorPil(size=size, crop_size=size, do_center_crop=False).save_pretrained(
                folder
            )
        return str(folder)


class Case:
    """A model on two towers, with pictures and questions.

    Args:
        vision: Folder of the encoder.
        language: Folder of the language model.
        dtype: Of both.
    """

    def __init__(self, vision: str, language: str, dtype: torch.dtype = torch.float32) -> None:
        torch.manual_seed(2)
        settings: dict[str, Any] = {
            "qformer_config": {
                "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2,
                "num_attention_heads": 2, "vocab_size": 200, "initializer_range": 0.2,
                "hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0,
            },
            "num_query_tokens": 3, "adapter_bottleneck": 4, "normalize_features": True,
        }  # fmt: skip
        self.folders = vision, language
        self.model = CromeForConditionalGeneration.from_backbones(
            vision, language, dtype=dtype, **settings
        )
        for weight in self.model.adapter.parameters():
            torch.nn.init.normal_(weight, std=0.5)
        self.processor = CromeProcessor.from_config(self.model.config, bert_tokenizer())
        self.pictures = [picture(seed) for seed in range(4)]
        one, two = self.pictures[:2]
        self.rows = [
            (one, "What is the colour?", "blue"),
            (one, "How many triangles are there in it? Answer with one word.", "12"),
            (two, "Is there one star?", "yes, there is"),
        ]
        self.mixed = [*self.rows, (None, "Is it?", "no"), (self.pictures[:2], "How?", "2")]

    def batch(self, rows: Sequence[tuple[Any, ...]], answers: bool = True) -> dict[str, Any]:
        """Rows as the model takes them."""
        images, questions, said = zip(*rows, strict=True)
        return dict(
            self.processor(images=images, text=questions, answers=said if answers else None)
        )

    def losses(self, rows: Sequence[tuple[Any, ...]]) -> Tensor:
        """Of the answers' tokens, without a gradient."""
        with torch.no_grad():
            losses: Tensor = self.model(**self.batch(rows)).token_losses
        return losses

    def say(self, rows: Sequence[tuple[Any, ...]], **more: Any) -> list[list[int]]:
        """New tokens of each row up to its end."""
        settings = {"max_new_tokens": LENGTH, "do_sample": False, **more}
        settings = self.processor.generation_kwargs | settings
        ids = self.model.generate(**self.batch(rows, answers=False), **settings).tolist()
        stop = {*self.processor.end_ids, self.processor.pad_token_id}
        start = int(self.processor.is_encoder_decoder)
        return [list(itertools.takewhile(lambda i: i not in stop, row[start:])) for row in ids]


# ---------------------------------------------------------------------- checks: language models


def embeddings_as_ids(case: Case) -> None:
    """Text alone, given as embeddings: the logits of the same text given as ids."""
    batch = case.batch([(None, "Is there a large circle in it?", "no")])
    language = case.model.language_model
    ids, mask, labels = (batch[k] for k in ("input_ids", "attention_mask", "labels"))
    with torch.no_grad():
        if case.processor.is_encoder_decoder:
            expected = language(input_ids=ids, attention_mask=mask, labels=labels).logits
            expected = expected[labels != -100]
        else:
            expected = language(input_ids=ids, attention_mask=mask, use_cache=False).logits
            expected = expected[:, :-1][labels[:, 1:] != -100]
        near(case.model(**batch).logits, expected)


def only_what_came_before(case: Case) -> None:
    """A later token changes no earlier logit (decoder-only)."""
    if case.processor.is_encoder_decoder:
        return
    batch = case.batch(case.rows[:1], answers=False)
    with torch.no_grad():
        before = case.model(**batch).logits
        batch["input_ids"][:, -1] += 1
        after = case.model(**batch).logits
    near(after[:, :-1], before[:, :-1])
    assert not torch.allclose(after[:, -1], before[:, -1]), "the last token changes nothing"


def batch_as_rows(case: Case) -> None:
    """Rows with no, one and two pictures together: the losses of each row alone."""
    near(case.losses(case.mixed), torch.cat([case.losses([row]) for row in case.mixed]))


def shared_as_rows(case: Case) -> None:
    """Two questions on one picture beside another: the losses of each row alone."""
    near(case.losses(case.rows), torch.cat([case.losses([row]) for row in case.rows]))


def greedy_as_rows(case: Case) -> None:
    """Greedy answers of a batch: those of each row alone."""
    for rows in (case.rows, case.mixed):
        same(case.say(rows), [case.say([row])[0] for row in rows])


def penalised_as_rows(case: Case) -> None:
    """The same with a repetition penalty and without repeated pairs."""
    more = {"repetition_penalty": 1.3, "no_repeat_ngram_size": 2}
    same(case.say(case.mixed, **more), [case.say([row], **more)[0] for row in case.mixed])


def decoded_as_scored(case: Case) -> None:
    """Each greedy token is the likeliest of a pass over the whole answer."""
    if case.processor.is_encoder_decoder:
        return
    row = case.rows[1]
    (said,) = case.say([row])
    if not said:
        return
    batch = case.batch([row], answers=False)
    batch["input_ids"] = torch.cat([batch["input_ids"], torch.tensor([said])], 1)
    batch["attention_mask"] = torch.ones_like(batch["input_ids"])
    with torch.no_grad():
        logits = case.model(**batch).logits[0, -len(said) - 1 : -1]
    margin = logits.max(-1).values - logits.gather(-1, torch.tensor(said)[:, None])[:, 0]
    assert margin.max() < 1e-3, f"another token is likelier by {margin.max():.2g}"


def ranked_as_scored(case: Case) -> None:
    """Losses of candidate answers: those of a row for each candidate."""
    candidates = [["no", "yes, there is"], ["12"], ["blue"]]
    batch = case.batch(case.rows, answers=False) | case.processor.options(candidates)
    found = case.model.option_losses(**batch)[batch["option_ids"] != -100]
    pairs = [(row, c) for row, own in zip(case.rows, candidates, strict=True) for c in own]
    near(found, torch.cat([case.losses([(*row[:2], option)]) for row, option in pairs]))


def gradient_in_the_adapter(case: Case) -> None:
    """The adapter's gradient is there, and the same with and without the shared prefix."""
    gradients = []
    case.model.adapter.requires_grad_(True)
    for share in (True, False):
        case.model.config.share_prefix = share
        case.model(**case.batch(case.rows)).loss.backward()
        parameters = list(case.model.adapter.parameters())
        gradients.append(torch.cat([p.grad.flatten() for p in parameters if p.grad is not None]))
        assert len(gradients[-1]) == sum(p.numel() for p in parameters), "a part without gradient"
        case.model.zero_grad()
    case.model.config.share_prefix = True
    assert gradients[1].abs().sum() > 0, "no gradient"
    error = (gradients[0] - gradients[1]).norm() / gradients[1].norm()
    assert error < 1e-3, f"differs by {error:.2g}"


def saved_and_loaded(case: Case) -> None:
    """Saved and loaded, with an adapter beside it: the same losses."""
    expected = case.losses(case.rows)
    with tempfile.TemporaryDirectory() as folder:
        case.model.save_pretrained(folder)
        case.model.save_adapter(f"{folder}/adapter")
        model = CromeForConditionalGeneration.from_pretrained(folder, dtype=torch.float32)
        model.adapter.reset_parameters()
        model.load_adapter(f"{folder}/adapter")
    case.model, own = model, case.model
    found = case.losses(case.rows)
    case.model = own
    near(found, expected)


def half_precision(case: Case) -> None:
    """In bfloat16, the command line's default: finite, and near float32's losses."""
    half = Case(*case.folders, dtype=torch.bfloat16)
    half.model.load_state_dict(
        {k: v for k, v in case.model.state_dict().items() if not k.startswith(FROZEN)}, strict=False
    )
    found, expected = half.losses(case.rows).float(), case.losses(case.rows)
    assert found.isfinite().all(), "not finite"
    error = (found - expected).abs().mean() / expected.abs().mean()
    assert error < 0.2, f"losses differ by {error:.2g} on average"


FROZEN = ("vision_model.", "language_model.")
Check = Callable[[Case], None]
LANGUAGE_CHECKS: dict[str, Check] = {
    "embeddings": embeddings_as_ids,
    "causal": only_what_came_before,
    "batch": batch_as_rows,
    "shared": shared_as_rows,
    "greedy": greedy_as_rows,
    "penalty": penalised_as_rows,
    "decoding": decoded_as_scored,
    "ranking": ranked_as_scored,
    "gradient": gradient_in_the_adapter,
    "file": saved_and_loaded,
    "bfloat16": half_precision,
}


# ---------------------------------------------------------------------- checks: encoders


def pictures_as_alone(case: Case) -> None:
    """Pictures encoded together: the features of each alone."""
    pixels = case.processor.pixel_values(case.pictures[:3])
    together = case.model.visual_features(pixels)
    for i in range(3):
        alone = case.model.visual_features(pixels[i : i + 1])
        near(together.patches[i : i + 1], alone.patches)
        near(together.queries[i : i + 1], alone.queries)


def pictures_make_a_difference(case: Case) -> None:
    """Another picture, another loss."""
    losses = [case.losses([(p, *case.rows[0][1:])]).sum().item() for p in case.pictures]
    assert len({round(loss, 5) for loss in losses}) == 4, f"losses {losses}"


def patches_are_the_grid(case: Case) -> None:
    """The patch branch has no class or register token: as many tokens as a grid has."""
    pixels = case.processor.pixel_values(case.pictures[:1])
    tokens = case.model.visual_features(pixels).patches.shape[1]
    assert int(tokens**0.5) ** 2 == tokens, f"{tokens} tokens are no square"


ENCODER_CHECKS: dict[str, Check] = {
    "pictures": pictures_as_alone,
    "difference": pictures_make_a_difference,
    "grid": patches_are_the_grid,
    "batch": batch_as_rows,
    "greedy": greedy_as_rows,
    "gradient": gradient_in_the_adapter,
    "file": saved_and_loaded,
    "bfloat16": half_precision,
}


# ---------------------------------------------------------------------- parts


def picture(seed: int) -> Image.Image:
    """A picture of noise."""
    pixels = np.random.RandomState(seed).randint(0, 255, (SIDE, SIDE, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def text_tokenizer() -> PreTrainedTokenizerFast:
    """Bytes as tokens."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: i for i, token in enumerate([*SPECIAL, *letters])}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", bos_token="<s>", eos_token="</s>"
    )


def bert_tokenizer() -> BertTokenizer:
    """Letters as tokens."""
    letters = "abcdefghijklmnopqrstuvwxyz0123456789?.,"
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *letters, *("##" + c for c in letters)]
    return BertTokenizer(vocab={word: i for i, word in enumerate(words)})


def cut(config: Any, more: dict[str, Any]) -> None:
    """Cuts a configuration down in place, with a layer of every kind it lists.

    Args:
        config: Of a family, with its defaults.
        more: Fields that the family needs beside the sizes.
    """
    layers, kinds = field(config, "num_hidden_layers"), field(config, "layer_types")
    picks = [0, 1]
    if isinstance(kinds, list) and len(set(kinds)) > 1:
        picks = sorted({kind: i for i, kind in reversed(list(enumerate(kinds)))}.values())
    lists = {
        name: [value[i] for i in picks]
        for name, value in vars(config).items()
        if isinstance(value, list) and isinstance(layers, int) and len(value) == layers > max(picks)
    }
    for name, value in SMALL.items():
        now = field(config, name)
        if isinstance(now, int | float) and not isinstance(now, bool):
            settle(config, name, value)
        elif name in ("image_size", "patch_size") and isinstance(now, list | tuple):
            settle(config, name, [value] * len(now))
    for value in list(vars(config).values()):
        if isinstance(value, transformers.PreTrainedConfig):
            cut(value, {})
    if isinstance(layers, int):
        lists |= {"num_hidden_layers": len(picks)}
    if isinstance(layers, int) and len(field(config, "stage_names") or ()) == layers + 1:
        config.stage_names = ["stem", *(f"stage{i + 1}" for i in range(len(picks)))]
        config._out_features, config._out_indices = [f"stage{len(picks)}"], [len(picks)]
    for name, value in (lists | more).items():
        settle(config, name, value)


def field(config: Any, name: str) -> Any:
    """A field's value, None where it has none or one for each layer."""
    try:
        return getattr(config, name, None)
    except (AttributeError, NotImplementedError, ValueError):
        return None


def settle(config: Any, name: str, value: Any) -> None:
    """Sets a field, unless the family derives it from others."""
    with suppress(AttributeError, NotImplementedError):
        setattr(config, name, value)


def language_config(kind: str) -> Any:
    """A family's default configuration, cut down."""
    config, more = CONFIG_MAPPING[kind](), FAMILIES.get(kind, {})
    for part in {id(c): c for c in (config.get_text_config(), config)}.values():
        cut(part, more)
        if field(part, "kv_lora_rank"):  # keys for every head, from one narrow row
            more = {"num_key_value_heads": 4, "head_dim": 8, **more}
        for name, value in (LANGUAGE | IDS | more).items():
            if isinstance(field(part, name), int | float) or name in (*IDS, *more):
                settle(part, name, value)
        if field(part, "kv_lora_rank"):
            settle(part, "qk_head_dim", part.qk_nope_head_dim + part.qk_rope_head_dim)
    if kind == "marian":
        config.decoder_vocab_size = VOCABULARY
    if config.is_encoder_decoder and not hasattr(config, "decoder_start_token_id"):
        config.decoder_start_token_id = 0
    return config


def encoder_config(kind: str) -> Any:
    """The same of an encoder."""
    config = CONFIG_MAPPING[kind]()
    config = getattr(config, "vision_config", config)
    cut(config, FAMILIES.get(kind, {}))
    return config


def encoders() -> list[str]:
    """Model types of transformers that take pictures, pairs of towers among them."""
    return [kind for kind in MODEL_MAPPING_NAMES if takes_pictures(kind)]


def takes_pictures(kind: str) -> bool:
    """Whether a family's encoder reads `pixel_values`."""
    try:
        config = CONFIG_MAPPING[kind]()
        encoder_class(getattr(config, "vision_config", config))
    except Exception as error:  # whatever a family's code trips over
        return isinstance(error, InputError) and "does not take pictures" not in str(error)
    return True


def near(found: Tensor, expected: Tensor) -> None:
    """Refuses a difference beyond float noise."""
    assert found.shape == expected.shape, f"{tuple(found.shape)} and not {tuple(expected.shape)}"
    worst = ((found - expected).abs() / expected.abs().clamp(min=1)).max()
    assert worst <= TOLERANCE, f"differs by {worst:.2g}"


def same(found: list[list[int]], expected: list[list[int]]) -> None:
    """Refuses any other token."""
    assert found == expected, f"{sum(a != b for a, b in zip(found, expected, strict=True))} rows"


# ---------------------------------------------------------------------- the sweep


def language_case(kind: str, towers: Towers) -> Case:
    """A language model of a family behind the fixed encoder."""
    torch.manual_seed(3)
    folder = towers.save(build_language_model(language_config(kind)), f"language-{kind}")
    return Case(towers.vision, folder)


def encoder_case(kind: str, towers: Towers) -> Case:
    """An encoder of a family in front of the fixed language model."""
    torch.manual_seed(3)
    config = encoder_config(kind)
    side = getattr(config, "image_size", None) or SIDE
    side = side if isinstance(side, int) else side[0]
    folder = towers.save(build_vision_model(config), f"vision-{kind}", side)
    return Case(folder, towers.language)


def examine(kind: str, tower: str, towers: Towers) -> dict[str, Any]:
    """Builds a family and runs every check on it."""
    started = time.perf_counter()
    result: dict[str, Any] = {"family": kind, "tower": tower}
    make, checks = (
        (language_case, LANGUAGE_CHECKS) if tower == "language" else (encoder_case, ENCODER_CHECKS)
    )
    try:
        case = make(kind, towers)
    except InputError as error:
        # A pass that fails on a configuration cut down by name says nothing of the family.
        word = "build" if isinstance(error.__cause__, RuntimeError) else "refused"
        return result | {word: short(error, 300)}
    except Exception as error:  # whatever a family's code trips over
        return result | {"build": short(error)}
    for name, check in checks.items():
        try:
            check(case)
            result[name] = "yes"
        except Exception as error:
            result[name] = short(error)
    return result | {"seconds": round(time.perf_counter() - started, 1)}


def short(error: Exception, length: int = 160) -> str:
    """One line of an error."""
    text = (str(error).strip().split("\n") or [""])[0]
    named = "" if isinstance(error, AssertionError | InputError) else f"{type(error).__name__}: "
    return f"{named}{text}"[:length]


def families() -> list[tuple[str, str]]:
    """All (family, tower)."""
    language = [*MODEL_FOR_CAUSAL_LM_MAPPING_NAMES, *MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES]
    return [(kind, "language") for kind in dict.fromkeys(language)] + [
        (kind, "encoder") for kind in encoders()
    ]


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the sweep and writes the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--out", type=Path, default=None)
    parser.add_argument("--only", default="", help="model types, separated by commas")
    parser.add_argument("--anew", action="store_true", help="forget earlier results")
    chosen = parser.parse_args(arguments)
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    warnings.filterwarnings("ignore")
    only = set(chosen.only.split(",")) if chosen.only else None
    log = None if chosen.out is None else chosen.out.with_suffix(".jsonl")
    done: dict[tuple[str, str], dict[str, Any]] = {}
    if log is not None and log.exists() and not chosen.anew:
        kept = map(json.loads, log.read_text().splitlines())
        done = {(r["family"], r["tower"]): r for r in kept}
    for kind, tower in families():
        if (only is None and (kind, tower) in done) or (only is not None and kind not in only):
            continue
        with tempfile.TemporaryDirectory() as root:  # no folder of the sweep grows with it
            done[kind, tower] = result = examine(kind, tower, Towers(Path(root)))
        print(kind, tower, faults(result) or "ok", flush=True)
        if log is not None:
            log.parent.mkdir(parents=True, exist_ok=True)
            log.write_text("".join(json.dumps(r) + "\n" for r in done.values()))
    if chosen.out is not None:
        chosen.out.write_text(report(list(done.values())))
    return 0


def checks_of(result: dict[str, Any]) -> dict[str, Check]:
    """The checks of a result's tower."""
    return LANGUAGE_CHECKS if result["tower"] == "language" else ENCODER_CHECKS


def faults(result: dict[str, Any]) -> dict[str, str]:
    """What is not as it should be, and what was refused or could not be built."""
    known = (*checks_of(result), "refused", "build")
    return {k: v for k, v in result.items() if k in known and v != "yes"}


def report(results: Sequence[dict[str, Any]]) -> str:
    """Results as Markdown."""
    lines = [
        "# Language models and vision encoders as towers", "",
        "Made by `python benchmarks/backbones.py --out docs/results/backbones.md` with "
        f"transformers {transformers.__version__}, torch {torch.__version__}, on a CPU, seed 3: "
        "every family at toy size with random weights, in float32 unless a check says otherwise.",
    ]  # fmt: skip
    for tower, title, checks in (
        ("language", "Language models", LANGUAGE_CHECKS),
        ("encoder", "Vision encoders", ENCODER_CHECKS),
    ):
        lines += ["", f"## {title}", ""]
        lines += section([r for r in results if r["tower"] == tower], checks)
    return "\n".join(lines) + "\n"


def section(results: Sequence[dict[str, Any]], checks: dict[str, Check]) -> list[str]:
    """One table, and before it what it says in numbers."""
    ran = [r for r in results if "refused" not in r and "build" not in r]
    whole = sum(not faults(r) for r in ran)
    lines = [
        f"{whole} of the {len(ran)} families that are accepted pass every check; "
        f"{sum('refused' in r for r in results)} are refused with a reason, and "
        f"{sum('build' in r for r in results)} could not be built at toy size.", "",
        *(f"* **{name}**: {(check.__doc__ or '').strip()}" for name, check in checks.items()), "",
        "| family | " + " | ".join(checks) + " |", "|---" * (1 + len(checks)) + "|",
    ]  # fmt: skip
    for r in sorted(ran, key=lambda r: str(r["family"])):
        cells = [str(r.get(name, "")).replace("|", "/") for name in checks]
        lines.append(f"| {r['family']} | " + " | ".join(cells) + " |")
    for word, title in (("refused", "Refused"), ("build", "Not built at toy size")):
        some = [r for r in results if word in r]
        if some:
            lines += ["", f"{title}:", ""]
            lines += [
                f"* {r['family']}: {r[word]}" for r in sorted(some, key=lambda r: r["family"])
            ]
    return lines


if __name__ == "__main__":
    sys.exit(main())
