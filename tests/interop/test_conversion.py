"""Published weights under their real names: what is taken, what is new, what is refused."""

import json
import re

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import InstructBlipConfig, InstructBlipForConditionalGeneration

from crome.checkpoints import presets
from crome.errors import InputError
from crome.interop import conversion
from crome.interop.conversion import convert, read_lavis
from crome.model.modeling import CromeForConditionalGeneration
from crome.model.processing import CromeProcessor

LAVIS = {  # each kind of name a LAVIS checkpoint has, and its name here
    "query_tokens": "query_tokens",
    "Qformer.bert.embeddings.word_embeddings.weight": "qformer.embeddings.word_embeddings.weight",
    "Qformer.bert.embeddings.LayerNorm.bias": "qformer.embeddings.layernorm.bias",
    "Qformer.bert.encoder.layer.0.attention.self.query.weight":
        "qformer.encoder.layer.0.attention.attention.query.weight",
    "Qformer.bert.encoder.layer.0.attention.output.LayerNorm.weight":
        "qformer.encoder.layer.0.attention.output.LayerNorm.weight",
    "Qformer.bert.encoder.layer.0.crossattention.self.key.weight":
        "qformer.encoder.layer.0.crossattention.attention.key.weight",
    "Qformer.bert.encoder.layer.0.crossattention.output.dense.bias":
        "qformer.encoder.layer.0.crossattention.output.dense.bias",
    "Qformer.bert.encoder.layer.2.intermediate_query.dense.weight":
        "qformer.encoder.layer.2.intermediate_query.dense.weight",
    "Qformer.bert.encoder.layer.2.output_query.LayerNorm.bias":
        "qformer.encoder.layer.2.output_query.LayerNorm.bias",
    "llm_proj.weight": "query_projection.weight",
    "vision_project.bias": "patch_projection.bias",
}  # fmt: skip
STAY = ["visual_encoder.blocks.0.attn.qkv.weight", "ln_vision.weight", "llm_model.lm_head.weight",
        "Qformer.cls.predictions.bias"]  # fmt: skip


@pytest.fixture
def preset(build, monkeypatch):
    """A preset of tiny towers, and a model of it."""
    model = build("eva", "vicuna").model
    settings = {k: v for k, v in model.config.to_dict().items()
                if k in type(model.config).__dataclass_fields__}  # fmt: skip
    monkeypatch.setitem(presets.PRESETS, "tiny", settings)
    return model


@pytest.fixture
def instructblip(preset, tmp_path):
    """A transformers InstructBLIP of those sizes in several files, its tokenizer beside it."""
    parts = {name: getattr(preset.config, name).to_dict()
             for name in ("vision_config", "qformer_config", "text_config")}  # fmt: skip
    config = InstructBlipConfig(
        **parts, num_query_tokens=preset.config.num_query_tokens, image_token_index=319
    )
    model = InstructBlipForConditionalGeneration(config)
    torch.nn.init.normal_(model.query_tokens)
    folder = tmp_path / "instructblip"
    model.save_pretrained(folder, max_shard_size="30KB")
    assert len(list(folder.glob("*.safetensors"))) > 3
    from_base = CromeProcessor.from_config(preset.config, tokenizer())
    from_base.save_pretrained(folder)
    return model, folder


def tokenizer():
    from transformers import BertTokenizer

    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "what", "is", "red"]
    return BertTokenizer(vocab={word: i for i, word in enumerate(words)})


def lavis_name(name: str) -> str:
    """The other way round, written down by itself."""
    name = re.sub(r"^qformer\.", "Qformer.bert.", name)
    name = name.replace("embeddings.layernorm", "embeddings.LayerNorm")
    name = name.replace("attention.attention.", "attention.self.")
    return name.replace("query_projection", "llm_proj").replace(
        "patch_projection", "vision_project"
    )


@pytest.fixture
def bliva(preset, tmp_path):
    """A LAVIS file of those sizes, with a frozen tower's tensors among the others."""
    state = {lavis_name(name): tensor for name, tensor in preset.state_dict().items()
             if not name.startswith(("vision_model", "language_model", "adapter"))}  # fmt: skip
    assert set(LAVIS) <= set(state)
    path = tmp_path / "bliva.pth"
    torch.save({"model": state | {name: torch.ones(2) for name in STAY}, "epoch": 3}, path)
    tokenizer().save_pretrained(tmp_path / "bert")
    return path


def test_instructblip_becomes_a_base(preset, instructblip, tmp_path, capsys):
    model, folder = instructblip
    convert(str(folder), "tiny", tmp_path / "base")
    theirs, ours = model.state_dict(), load_file(tmp_path / "base" / "model.safetensors")
    inside = "" if "query_tokens" in theirs else "model."  # of the library's own making
    assert torch.equal(ours["query_tokens"], theirs[f"{inside}query_tokens"])
    assert torch.equal(ours["query_projection.bias"], theirs[f"{inside}language_projection.bias"])
    for name, tensor in ours.items():
        if name.startswith("qformer."):
            assert torch.equal(tensor, theirs[f"{inside}{name}"]), name
    assert not ours["adapter.up.shared.weight"].any()
    report = json.loads((tmp_path / "base" / "conversion.json").read_text())
    assert set(report["taken"]) == {"query_tokens", "qformer", "query_projection"}
    assert set(report["new"]) == {"patch_projection", "adapter"}
    assert report["left"].keys() == {"vision_model", "language_model"}
    assert sum(report["left"].values()) + sum(n for n, _ in report["taken"].values()) == len(theirs)
    told = capsys.readouterr().out
    assert all(word in told for word in ("qformer", "taken", "adapter", "new", "left"))
    loaded = CromeForConditionalGeneration.from_pretrained(tmp_path / "base")
    assert torch.equal(loaded.query_tokens, ours["query_tokens"])
    assert len(CromeProcessor.from_pretrained(tmp_path / "base").qformer_tokenizer) == 8


def test_only_files_with_wanted_tensors_are_opened(instructblip, tmp_path, preset):
    _, folder = instructblip
    shards = json.loads((folder / "model.safetensors.index.json").read_text())["weight_map"]
    wanted = {shard for name, shard in shards.items() if name.startswith(conversion.PREFIXES)}
    unwanted = set(shards.values()) - wanted
    assert unwanted
    for shard in unwanted:
        (folder / shard).unlink()
    convert(str(folder), "tiny", tmp_path / "base")
    (folder / min(wanted)).unlink()
    with pytest.raises(InputError, match=rf"lacks {min(wanted)}, which its index names"):
        convert(str(folder), "tiny", tmp_path / "base")


def test_bliva_becomes_a_base(preset, bliva, tmp_path):
    convert(str(bliva), "tiny", tmp_path / "base", qformer_tokenizer=str(tmp_path / "bert"))
    ours, theirs = load_file(tmp_path / "base" / "model.safetensors"), preset.state_dict()
    for name, tensor in ours.items():
        if not name.startswith("adapter."):
            assert torch.equal(tensor, theirs[name]), name
    report = json.loads((tmp_path / "base" / "conversion.json").read_text())
    assert set(report["new"]) == {"adapter"}
    assert report["left"] == {"visual_encoder": 1, "ln_vision": 1, "llm_model": 1, "Qformer": 1}


def test_lavis_names(bliva):
    found = read_lavis(bliva)
    assert set(LAVIS.values()) <= set(found.tensors)
    assert sorted(found.left) == sorted(STAY)
    for theirs, ours in LAVIS.items():
        assert conversion.renamed(theirs, conversion.LAVIS) == ours


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: s.pop("language_projection.bias"), r"query_projection\.bias is missing"),
        (lambda s: s.update({"language_projection.weight": torch.ones(64, 16)}),
         r"query_projection\.weight is \(64, 16\), expected \(32, 16\).*preset of its own size"),
        (lambda s: [s.pop(n) for n in list(s) if n.startswith("qformer.")], r"qformer\..* …"),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_refused(instructblip, tmp_path, change, message):
    _, folder = instructblip
    state = {}
    for shard in folder.glob("*.safetensors"):
        state |= load_file(shard)
        shard.unlink()
    (folder / "model.safetensors.index.json").unlink()
    state = {re.sub(r"^model\.", "", name): tensor for name, tensor in state.items()}
    change(state)
    save_file(state, folder / "model.safetensors")
    with pytest.raises(InputError, match=message):
        convert(str(folder), "tiny", tmp_path / "base")
    assert not (tmp_path / "base").exists()


def test_sources_that_are_none_are_named(preset, tmp_path):
    (tmp_path / "code.pth").write_bytes(b"not a checkpoint")
    torch.save({"model": torch.nn.Linear(2, 2)}, tmp_path / "pickled.pth")
    torch.save([1], tmp_path / "list.pth")
    for name, message in {
        "code.pth": "cannot be read as weights", "no.pth": "cannot be read",
        "pickled.pth": "cannot be read as weights", "list.pth": "is missing",
        ".": "neither model.safetensors",
    }.items():  # fmt: skip
        with pytest.raises(InputError, match=message):
            convert(str(tmp_path / name), "tiny", tmp_path / "base")
    with pytest.raises(InputError, match="has no adapter_size"):
        convert(str(tmp_path), "tiny", tmp_path / "base", settings={"adapter_size": 3})
