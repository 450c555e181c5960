"""How a language model is held: in fewer bits it teaches the same adapter nearly the same."""

import json

import pytest
import torch

from crome.checkpoints.holding import Holding
from crome.checkpoints.loading import load
from crome.errors import InputError
from crome.model.stages import apply_stage
from crome.training.train import Optimization, train


@pytest.fixture
def base(build, rows, tmp_path):
    """A saved base on a language model wide enough to be quantised in blocks, and rows."""
    pair = build(language="blocks")
    pair.model.save_pretrained(tmp_path / "base")
    pair.processor.save_pretrained(tmp_path / "base")
    lines = []
    for number, (picture, question, answer) in enumerate(rows):
        picture.save(tmp_path / f"{number}.png")
        lines.append({"image": f"{number}.png", "question": question, "answer": answer})
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, lines)))
    return tmp_path / "base"


@pytest.mark.parametrize(("quantization", "agreement"), [("8bit", 0.9), ("4bit", 0.2)])
def test_a_quantised_language_model_trains_the_adapter(base, rows, quantization, agreement):
    """The gradient points the same way: chance is a cosine of 0 ± 0.1.

    Measured with bitsandbytes 0.50.2 on layers of random weights: 0.99 in 8 bits, 0.4 to 0.6 in 4.
    """
    pytest.importorskip("bitsandbytes", reason="bitsandbytes is not installed (quantization)")
    directions = []
    for holding in (Holding(), Holding(quantization=quantization)):
        model, processor = load(str(base), "float32", holding=holding)
        apply_stage(model, "finetune")
        model.train()
        batch = processor(
            images=[row[0] for row in rows], text=[row[1] for row in rows],
            answers=[row[2] for row in rows],
        )  # fmt: skip
        model(**batch).loss.backward()
        directions.append(model.adapter.up["shared"].weight.grad.flatten())
    assert torch.cosine_similarity(*directions, dim=0) > agreement
    assert model.language_model.is_quantized
    out = base.parent / "run"
    train(
        out, data=base.parent / "rows.jsonl", checkpoint=str(base), dtype="float32",
        holding=Holding(quantization=quantization), sample_steps=0,
        optimization=Optimization(batch_size=2, max_steps=2),
    )  # fmt: skip
    assert "quantization_config" not in json.loads((out / "config.json").read_text())["text_config"]
    plain, _ = load(str(base), "float32")
    plain.load_adapter(out / "adapter")  # the base it belongs to, held plainly


def test_weights_in_4_bits_let_gradients_pass_after_a_pass_without(base, rows):
    """bitsandbytes repacks them at such a pass, on a processor that multiplies bfloat16 itself."""
    pytest.importorskip("bitsandbytes", reason="bitsandbytes is not installed (quantization)")
    model, processor = load(str(base), "float32", holding=Holding(quantization="4bit"))
    pictures, questions, answers = zip(*rows, strict=True)
    batch = processor(images=pictures, text=questions, answers=answers)
    text = processor(text=questions[:1], answers=answers[:1])
    asked = processor(images=pictures, text=questions)
    model.generate(**asked, max_new_tokens=2)  # what follows is trained through repacked weights

    def gradient():
        apply_stage(model, "finetune")
        model.train()
        model.zero_grad()
        model(**batch).loss.backward()
        return model.adapter.up["shared"].weight.grad.clone()

    expected = gradient()
    assert expected.abs().sum() > 0
    for between in (
        lambda: model(**text).loss.backward(),
        lambda: model.eval().generate(**asked, max_new_tokens=2),
        lambda: model.eval().option_losses(**processor.options([["a"]] * 3), **asked),
    ):
        between()
        torch.testing.assert_close(gradient(), expected)


def test_what_cannot_be_held_is_named(monkeypatch):
    with pytest.raises(InputError, match=r"in shares is neither quantised nor spread"):
        Holding(shard=True, quantization="8bit")
    monkeypatch.setattr("crome.checkpoints.holding.find_spec", lambda name: None)
    with pytest.raises(InputError, match=r"4bit needs bitsandbytes: pip install"):
        Holding(quantization="4bit").keywords()


def test_a_device_map_is_handed_on(base):
    assert Holding(device_map="auto").keywords() == {"device_map": "auto"}
    model, _ = load(str(base), "float32", holding=Holding(device_map="cpu"))
    assert {p.device.type for p in model.parameters()} == {"cpu"}


def test_attention_that_is_not_installed_is_named(monkeypatch):
    monkeypatch.setattr("crome.checkpoints.loading.is_flash_attn_2_available", lambda: False)
    with pytest.raises(InputError, match="needs the package flash-attn and a GPU"):
        load("crome-tiny", attention="flash_attention_2")
