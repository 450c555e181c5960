"""Language models: every family, the head at chosen rows, T5's own head, GGUF files."""

import gguf
import numpy as np
import pytest
import torch
from transformers import AutoConfig, T5ForConditionalGeneration

from crome.model.language import build_language_model, gguf_split, head_rows, load_language_model
from crome.model.modeling import CromeForConditionalGeneration

FAMILIES = ["llama", "tied", "qwen3", "gemma2", "gemma3", "mistral", "phi3", "t5", "t5-scaled"]


@pytest.mark.parametrize("language", FAMILIES)
def test_conformance_15_every_language_family_trains_and_generates(build, rows, language):
    pair = build(language=language)
    pair.model.adapter.requires_grad_(True)
    optimizer = torch.optim.SGD(pair.model.adapter.parameters(), lr=1.0)
    batch = pair.batch(rows)
    loss = pair.model(**batch).loss
    loss.backward()
    optimizer.step()
    assert pair.model(**batch).loss != loss
    together = pair.say(rows, max_new_tokens=3)
    assert together == [pair.say([row], max_new_tokens=3)[0] for row in rows]


@pytest.mark.parametrize("language", FAMILIES)
def test_head_at_chosen_rows_equals_the_whole_head(towers, language):
    """Soft caps, T5's scaling and tied matrices stay around the head."""
    model = load_language_model(towers.language(language), dtype=torch.float32)
    ids = torch.arange(10, 22).view(2, 6)
    inputs = {"input_ids": ids}
    if model.config.is_encoder_decoder:
        inputs["decoder_input_ids"] = ids.flip(1)
    rows = torch.tensor([1, 4, 5, 11])
    whole = model(**inputs, use_cache=False).logits
    with head_rows(model, rows):
        chosen = model(**inputs, use_cache=False).logits
    # A product of 4 rows and one of 12 may be summed in another order.
    torch.testing.assert_close(chosen, whole.flatten(0, 1)[rows], rtol=1e-5, atol=1e-5)
    if language == "gemma2":
        assert whole.abs().max() < model.config.final_logit_softcapping
    assert model(**inputs, use_cache=False).logits.shape == whole.shape


def test_the_vocabulary_projection_runs_where_a_label_is(build, rows):
    pair, seen = build(), []
    head = pair.model.get_output_embeddings()
    head.register_forward_hook(lambda module, args, out: seen.append(tuple(args[0].shape)))
    batch = pair.batch(rows)
    pair.model(**batch)
    assert seen == [(1, int((batch["labels"] != -100).sum()), 32)]


# ---------------------------------------------------------------------- T5's untied head


def head_and_embedding(model) -> tuple[torch.Tensor, torch.Tensor]:
    return model.lm_head.weight.detach(), model.shared.weight.detach()


def test_conformance_11_flan_t5_keeps_a_head_of_its_own(towers, build, tiny_config, tmp_path):
    """After build, load, save, load again; resume is in `tests/training/test_train.py`."""
    built = CromeForConditionalGeneration(tiny_config("t5")).language_model
    assert not torch.equal(*head_and_embedding(built))
    file = T5ForConditionalGeneration.from_pretrained(towers.language("t5"))
    expected = head_and_embedding(file)
    assert not torch.equal(*expected)
    pair = build(language="t5")
    pair.model.save_pretrained(tmp_path)
    for model in (pair.model, CromeForConditionalGeneration.from_pretrained(tmp_path)):
        found = head_and_embedding(model.language_model)
        assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


def test_flan_t5_counts_its_head(tiny_config):
    untied, tied = (
        sum(p.numel() for p in build_language_model(tiny_config(name).text_config).parameters())
        for name in ("t5", "t5-scaled")
    )
    gate = 4 * 32 * 48  # the gated kind has a second input matrix in each of four layers
    assert untied - tied == 320 * 32 + gate


# ---------------------------------------------------------------------- GGUF


@pytest.fixture
def gguf_file(tmp_path):
    """A one-layer Llama, its matrices as 8-bit blocks."""
    path, generator = tmp_path / "tiny.gguf", np.random.default_rng(0)
    width, inner, vocabulary = 64, 96, 300
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_context_length(128)
    writer.add_embedding_length(width)
    writer.add_block_count(1)
    writer.add_feed_forward_length(inner)
    writer.add_head_count(2)
    writer.add_head_count_kv(2)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_freq_base(10000.0)
    writer.add_rope_dimension_count(32)
    writer.add_vocab_size(vocabulary)
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    for name in ("attn_norm", "ffn_norm"):
        writer.add_tensor(f"blk.0.{name}.weight", np.ones(width, dtype=np.float32))
    writer.add_tensor("output_norm.weight", np.ones(width, dtype=np.float32))
    shapes = dict.fromkeys(("attn_q", "attn_k", "attn_v", "attn_output"), (width, width))
    shapes |= {"ffn_gate": (inner, width), "ffn_up": (inner, width), "ffn_down": (width, inner)}
    shapes = {f"blk.0.{name}": shape for name, shape in shapes.items()}
    shapes |= {"token_embd": (vocabulary, width), "output": (vocabulary, width)}
    kind = gguf.GGMLQuantizationType.Q8_0
    for name, shape in shapes.items():
        packed = gguf.quants.quantize(generator.normal(0, 0.2, shape).astype(np.float32), kind)
        writer.add_tensor(f"{name}.weight", packed, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def test_gguf_weights_are_unpacked(gguf_file):
    model = load_language_model(str(gguf_file), dtype=torch.float32)
    assert not model.training
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    assert {type(m) for n, m in model.named_modules() if n.endswith("proj")} == {torch.nn.Linear}
    reader = gguf.GGUFReader(gguf_file)
    (packed,) = (t for t in reader.tensors if t.name == "blk.0.ffn_up.weight")
    expected = torch.tensor(gguf.quants.dequantize(packed.data, packed.tensor_type))
    assert torch.equal(model.model.layers[0].mlp.up_proj.weight, expected)
    x = torch.randn(1, 3, 64, requires_grad=True)
    model(inputs_embeds=x).logits.sum().backward()
    assert x.grad.any()


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("org/model", ("org/model", {})),
        ("org/model/file.gguf", ("org/model", {"gguf_file": "file.gguf"})),
        ("/folder/a.gguf", ("/folder", {"gguf_file": "a.gguf"})),
    ],
)
def test_gguf_names_are_split(name, expected):
    assert gguf_split(name) == expected


def test_configs_alone_build_every_family(tiny_config):
    for language in FAMILIES:
        model = build_language_model(tiny_config(language).text_config)
        assert not model.training
        assert model.config.model_type == AutoConfig.for_model(model.config.model_type).model_type
