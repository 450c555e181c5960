"""Exported front ends compute what the model computes; published adapters carry no local path."""

import json

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

from crome.checkpoints.loading import load
from crome.errors import InputError, JobError
from crome.interop import export as exporting
from crome.interop.export import example, export, write_front_end
from crome.interop.front_end import FrontEnd
from crome.model.adapter_files import ADAPTER_CONFIG, ADAPTER_FILE

# The same operations on rows padded to another length; the worst difference seen is 5e-7 on
# embeddings of size 4.
CLOSE = {"rtol": 1e-5, "atol": 1e-5}
ONE_LAYER = {  # tracing takes its time by the layer
    "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2,
    "vocab_size": 200, "max_position_embeddings": 64, "initializer_range": 0.2,
}  # fmt: skip


@pytest.fixture
def saved(build, tmp_path):
    """A base on disk, and a task adapter of it that does something."""

    def make(**settings):
        pair, path = build(**settings), tmp_path / "base"
        pair.model.save_pretrained(path)
        pair.processor.save_pretrained(path)
        pair.model.config.name_or_path = str(path)
        torch.nn.init.normal_(pair.model.adapter.up["shared"].weight)
        pair.model.save_adapter(tmp_path / "task", training={"data": str(tmp_path), "seed": 3})
        return pair, path, tmp_path / "task"

    return make


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"visual_order": "queries_first"},
        {"branches": ["query"], "adapter_bottleneck": None},
        {"branches": ["patch"]},
        {"prompt_format": "bare"},  # the block stands at the very beginning
        {"vision": "efficientnet", "patch_feature_layer": -1, "normalize_features": True},
    ],
)
def test_the_front_end_gives_what_the_language_model_reads(build, settings):
    pair = build(**settings)
    for rows in (1, 2, 3):
        batch = example(pair.model, pair.processor, rows)
        expected, mask = pair.model.prompt_embeddings(**batch, side="right")
        with torch.no_grad():
            embeds, ours = FrontEnd(pair.model)(**batch)
        length, real = mask.shape[1], mask.bool()
        assert torch.equal(ours[:, :length], mask)
        assert not ours[:, length:].any()
        torch.testing.assert_close(embeds[:, :length][real], expected[real], **CLOSE)


def test_each_row_has_its_block_in_its_own_place(build):
    """Earlier turns move the block of one row only, if they come before it."""
    pair = build()
    batch = example(pair.model, pair.processor, 3)
    batch["visual_position"] = torch.tensor([0, 3, 5])
    expected, mask = pair.model.prompt_embeddings(**batch, side="right")
    with torch.no_grad():
        embeds, _ = FrontEnd(pair.model)(**batch)
    real = mask.bool()
    torch.testing.assert_close(embeds[:, : mask.shape[1]][real], expected[real], **CLOSE)


def test_an_encoder_decoder_has_no_front_end(build):
    with pytest.raises(InputError, match="encoder-decoder"):
        FrontEnd(build(language="t5").model)


@pytest.mark.timeout(600)  # five seconds of one core, which a busy machine may spread
@pytest.mark.parametrize("form", ["torch", "onnx"])
def test_what_is_written_computes_the_same(saved, form, tmp_path):
    """The command compares at one, two and three rows itself, so a success is parity."""
    if form == "onnx":
        pytest.importorskip("onnxscript", reason="needs crome[export]")
        pytest.importorskip("onnxruntime", reason="needs crome[export]")
    pair, base, task = saved(qformer_config=ONE_LAYER)
    out = tmp_path / "out"
    export(out, str(base), task, to=form)
    told = json.loads((out / "front_end.json").read_text())
    assert told["largest_difference"] < 1e-4
    assert told["visual_tokens"] == 4 + 3
    assert told["prompt"] == "<s><|user|><image>{question}<|end|><|assistant|>"
    assert told["end_token_ids"] == pair.processor.end_ids
    assert (out / "tokenizer" / "tokenizer.json").is_file()
    assert (out / "preprocessor_config.json").is_file()
    # With the adapter built in: read again, and away from the base's own.
    batch = example(pair.model, pair.processor, 2)
    assert sorted(told["inputs"]) == sorted(batch)
    embeds = run_again(out, form, batch)
    expected, mask = pair.model.prompt_embeddings(**batch, side="right")  # `up` is the task's
    real = mask.bool()
    torch.testing.assert_close(embeds[:, : mask.shape[1]][real], expected[real], rtol=0, atol=1e-3)
    pair.model.load_adapter(task, "task")
    torch.nn.init.zeros_(pair.model.adapter.up["shared"].weight)
    pair.model.set_adapter(None)
    without, _ = pair.model.prompt_embeddings(**batch, side="right")
    assert (without - expected)[real].abs().max() > 0.1


def run_again(out, form, batch):
    if form == "torch":
        return torch.export.load(out / "front_end.pt2").module()(**batch)[0]
    import onnxruntime

    session = onnxruntime.InferenceSession(out / "front_end.onnx")
    return torch.from_numpy(session.run(None, {k: v.numpy() for k, v in batch.items()})[0])


def test_an_export_that_computes_something_else_is_a_failed_job(build, tmp_path, monkeypatch):
    pair = build()
    front_end = FrontEnd(pair.model)

    def slightly_off(batch):
        with torch.no_grad():
            embeds, mask = front_end(**batch)
        return embeds * 1.001, mask

    monkeypatch.setattr(exporting, "trace", lambda *_: None)
    monkeypatch.setattr(exporting, "write_torch", lambda *_: slightly_off)
    with pytest.raises(JobError, match=r"differs from the model by 1\.0e-03"):
        write_front_end(pair.model, pair.processor, tmp_path / "out", "torch")
    assert not (tmp_path / "out" / "front_end.json").exists()


def test_an_adapter_for_the_hub(saved, tmp_path, capsys):
    pair, base, task = saved()
    out = tmp_path / "weld"
    export(out, str(base), task, to="hub")
    assert {p.name for p in out.iterdir()} == {ADAPTER_CONFIG, ADAPTER_FILE, "README.md"}
    assert "hf upload USER/weld" in capsys.readouterr().out
    pair.model.load_adapter(out, "weld")
    batch = example(pair.model, pair.processor, 2)
    embeds, _ = pair.model.prompt_embeddings(**batch)
    pair.model.set_adapter(None)
    assert torch.equal(embeds, pair.model.prompt_embeddings(**batch)[0])  # `up` is the task's
    card = (out / "README.md").read_text()
    front = yaml.safe_load(card.split("---")[1])
    assert front["library_name"] == "crome"
    assert front["pipeline_tag"] == "image-text-to-text"
    assert "base_model" not in front  # folders of this machine are no names on the hub
    assert f"{np.sum([p.numel() for p in pair.model.adapter.parameters()]):,} parameters" in card
    assert "seed: 3" in card
    assert str(tmp_path) not in card
    told = json.loads((out / ADAPTER_CONFIG).read_text())
    assert told["training"]["data"] == tmp_path.name
    assert told["base"]["checkpoint"] == "base"


def measured(folder, **changes):
    """`scores.json` as `crome evaluate` writes it."""
    score = {"run": "model", "group": "all", "n": 8, "value": 0.75, "low": 0.4, "high": 0.9}
    told = {"protocol": "exact_match/greedy", "data": "/x/held.jsonl", "rows": 8, "adapter": ""}
    (folder / "scores.json").write_text(json.dumps(told | {"scores": [score]} | changes))
    return folder


def test_a_base_for_the_hub(saved, tmp_path, capsys):
    """It loads again with the same values; the card has its record, scores and curve."""
    pytest.importorskip("matplotlib", reason="the curve is drawn with the extra `plots`")
    _, base, _ = saved()
    (base / "run.yaml").write_text(f"data: {tmp_path}/rows.jsonl\nstage: instruct\n")
    (base / "log.jsonl").write_text('{"step": 10, "loss": 2.5}\n{"step": 20, "loss": 1.5}\n')
    out = tmp_path / "welds"
    export(out, str(base), to="hub", scores=measured(tmp_path, checkpoint=str(base)))
    assert "holds the base and its card: `hf upload USER/welds" in capsys.readouterr().out
    theirs, processor = load(str(out), "float32")
    ours = load(str(base), "float32")[0].state_dict()
    assert all(torch.equal(tensor, ours[name]) for name, tensor in theirs.state_dict().items())
    assert processor(text=["why?"], images=None)["input_ids"].shape[0] == 1
    card = (out / "README.md").read_text()
    assert "| model | all | 8 | 75.0% | 40.0% to 90.0% |" in card
    assert "`exact_match/greedy` on 8 rows of `held.jsonl`" in card
    assert "stage: instruct\n" in card
    assert "data: rows.jsonl\n" in card
    assert 'from_pretrained("USER/welds")' in card
    assert str(tmp_path) not in card
    assert "![Loss by step](curve.png)" in card
    pixels = np.asarray(Image.open(out / "curve.png").convert("RGB"))
    drawn = np.argwhere((pixels == (31, 119, 180)).all(-1))  # matplotlib's first colour
    first, last = drawn[drawn[:, 1].argmin()], drawn[drawn[:, 1].argmax()]  # (down, across)
    assert last[1] - first[1] > 0.5 * pixels.shape[1]
    assert last[0] - first[0] > 0.5 * pixels.shape[0]  # it falls


def test_scores_of_another_model_are_refused(saved, tmp_path):
    _, base, task = saved()
    other = measured(tmp_path, checkpoint=str(base), adapter=str(tmp_path / "else"))
    for adapter in (None, task):
        with pytest.raises(InputError, match=r"has the scores of .*else; expected those of"):
            export(tmp_path / "out", str(base), adapter, to="hub", scores=other)
    (tmp_path / "scores.json").write_text("[]")
    with pytest.raises(InputError, match=r"holds no scores .*crome evaluate --data"):
        export(tmp_path / "out", str(base), to="hub", scores=tmp_path)
    with pytest.raises(InputError, match="--to hub"):
        export(tmp_path / "out", str(base), to="torch", scores=tmp_path)


def test_a_wrong_adapter_is_told_before_the_model_is_loaded(saved, tmp_path, monkeypatch):
    pair, base, task = saved()
    monkeypatch.setattr(exporting, "load", lambda *_: pytest.fail("a model was loaded"))
    with pytest.raises(InputError, match=r"no adapter '.*absent'.* expected a folder with"):
        export(tmp_path / "out", str(base), tmp_path / "absent", to="hub")
    torch.nn.init.normal_(pair.model.query_tokens)
    pair.model.save_pretrained(tmp_path / "other")
    with pytest.raises(InputError, match=r"task was trained on another base.*its base: .*base\."):
        export(tmp_path / "out", str(tmp_path / "other"), task, to="hub")
    (task / "adapter_config.json").write_text("{")
    with pytest.raises(InputError, match="task is not a task adapter: adapter_config"):
        export(tmp_path / "out", str(base), task, to="hub")


def test_what_cannot_be_exported_is_said(saved, tmp_path, monkeypatch):
    _, base, task = saved()
    with pytest.raises(InputError, match="is the base itself"):
        export(base, str(base), to="hub")
    with pytest.raises(InputError, match="is the adapter itself"):
        export(task, str(base), task, to="hub")
    monkeypatch.setattr(exporting, "find_spec", lambda _: None)
    with pytest.raises(InputError, match=r"crome\[export\]"):
        export(tmp_path / "out", str(base), to="onnx")
