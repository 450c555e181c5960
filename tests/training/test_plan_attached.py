"""Plans for an adapter on a vision-language model: sizes, activations and the command."""

import io
import json
import sys
import tarfile
from pathlib import Path

import pytest
import torch
from PIL import Image

from crome.checkpoints.loading import load
from crome.errors import InputError
from crome.training import plan as plan_module
from crome.training.plan import plan
from crome.training.plan_attached import attached_plan, vlm_of
from crome.training.probe import Rows

HERE = Path(__file__).parent
BENCHMARKS = HERE.parents[1] / "benchmarks"
if not BENCHMARKS.is_dir():
    pytest.skip("benchmarks/ is not part of this installation", allow_module_level=True)
sys.path[:0] = [str(HERE), str(BENCHMARKS)]

import tiny_vlms  # noqa: E402
from peak import Peak  # noqa: E402

from crome.data.reader import read_rows  # noqa: E402

FAMILIES = ("llava", "qwen2_5_vl", "qwen3_vl", "smolvlm", "gemma3", "internvl")


@pytest.fixture(scope="module", params=FAMILIES)
def built(request, tmp_path_factory):
    """A tiny model of a family as a folder that transformers wrote, its processor, and rows."""
    path = tmp_path_factory.mktemp(request.param)
    vlm, processor = tiny_vlms.build(request.param)
    vlm.save_pretrained(path)
    Image.new("RGB", (60, 40), "red").save(path / "red.png")
    lines = [{"question": f"Is it {n}?", "answer": "yes", "image": "red.png"} for n in range(8)]
    (path / "rows.jsonl").write_text("\n".join(map(json.dumps, lines)))
    return path, processor


@pytest.fixture
def folder(built, monkeypatch):
    """The folder; its processor is handed over, since some toy ones cannot be saved."""
    path, processor = built
    for place in ("crome.training.plan_attached", "crome.checkpoints.vlm"):
        monkeypatch.setattr(f"{place}.load_processor", lambda name: processor)
    return path


def test_sizes_are_those_of_the_loaded_model(folder):
    model, processor = load(str(folder), "float32", bottleneck=8)
    rows = read_rows(folder / "rows.jsonl")
    found = attached_plan(
        str(folder), Rows(4, 1, 9, 3), rows, torch.float32, settings={"bottleneck": 8}
    )
    frozen = sum(p.numel() for p in model.vlm.parameters())
    assert found.sizes.language + found.sizes.vision == frozen
    assert found.sizes.adapter == sum(p.numel() for p in model.adapter.parameters())
    assert 0 < found.sizes.matrices < found.sizes.language
    ids = processor.encode(rows[:1])["input_ids"]
    shown = torch.isin(ids, torch.tensor(sorted(model.placeholders))).sum()
    assert found.cost.features == int(shown) * model.hidden_size * 4
    assert found.cost.seconds > 0


def test_the_command_takes_the_folder(folder, capsys, tmp_path):
    plan(memory=8, json=True, checkpoint=str(folder), data=folder / "rows.jsonl", dtype="float32")
    told = json.loads(capsys.readouterr().out)
    assert told["fits"]
    frozen = sum(p.numel() for p in load(str(folder), "float32")[0].vlm.parameters())
    assert told["memory"]["language model"] + told["memory"]["vision encoder"] == 4 * frozen
    assert told["memory"]["activations"] > 0


def test_the_command_takes_shards(folder, capsys, tmp_path):
    """Their rows stream by; the first of them are looked at."""
    with tarfile.open(tmp_path / "0.tar", "w") as tar:
        for number in range(3):
            entry = json.dumps({"question": f"{number}?", "answer": "a"}).encode()
            for ending, content in (("json", entry), ("png", (folder / "red.png").read_bytes())):
                info = tarfile.TarInfo(f"{number}.{ending}")
                info.size = len(content)
                tar.addfile(info, io.BytesIO(content))
    (tmp_path / "mix.yaml").write_text("shards: '*.tar'\nrows: 3\nbuffer: 2\n")
    for views in (0, 2):
        plan(
            checkpoint=str(folder), data=tmp_path / "mix.yaml", dtype="float32", memory=8,
            json=True, views=views,
        )  # fmt: skip
        found = json.loads(capsys.readouterr().out)
        assert found["rows"] == 3
        assert found["memory"]["activations"] > 0


@pytest.mark.parametrize("number", [1, 4])
def test_activations_are_near_what_a_step_holds(tmp_path, number):
    """As memory allocators count a real step on rows of the same lengths: within a tenth."""
    vlm, processor = tiny_vlms.build("llava")
    vlm.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    Image.new("RGB", (60, 40), "red").save(tmp_path / "red.png")
    question = " is what the picture shows, or is it not so, and if not, why?"
    lines = [
        {"question": f"{n}{question}", "answer": "it is", "image": "red.png"} for n in range(number)
    ]
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, lines)))
    model, prepared = load(str(tmp_path), "float32")
    rows = read_rows(tmp_path / "rows.jsonl")
    batch = prepared.encode(rows, answers=True)
    model.requires_grad_(False)
    model.adapter.requires_grad_(True)
    with torch.no_grad():  # towers go first, without gradients
        batch["features"] = [model.encode(media) for media in batch["media"]]
    model(**batch).loss.backward()  # what is tried once
    model.zero_grad()
    own = [*model.parameters(), *model.buffers()]
    with Peak() as peak:
        peak.known |= {id(tensor.untyped_storage()) for tensor in own}
        model(**batch).loss.backward()
    ids, labels = batch["input_ids"][0], batch["labels"][0]
    pictured = int(torch.isin(ids, torch.tensor(sorted(model.placeholders))).sum())
    answers = int((labels >= 0).sum())
    questions = len(ids) - pictured - answers
    asked = Rows(number, 1, questions, answers)
    told = attached_plan(str(tmp_path), asked, rows, torch.float32)
    assert told.cost.activations == pytest.approx(peak.most, rel=0.1)


def test_a_folder_of_an_adapter_stands_for_its_base(tmp_path):
    vlm, processor = tiny_vlms.build("llava")
    vlm.save_pretrained(tmp_path / "base")
    processor.save_pretrained(tmp_path / "base")
    load(str(tmp_path / "base"), "float32")[0].save_pretrained(tmp_path / "adapter")
    assert vlm_of(str(tmp_path / "adapter")) == vlm_of(str(tmp_path / "base"))
    assert vlm_of("crome-tiny") is None


def test_a_machine_that_does_not_tell_its_memory(monkeypatch, tmp_path):
    for text in (None, "", "MemTotal: much"):
        monkeypatch.setattr(plan_module, "MEMINFO", tmp_path / "meminfo")
        if text is not None:
            (tmp_path / "meminfo").write_text(text)
        with pytest.raises(InputError, match="give --memory GIB"):
            plan_module.device_memory(torch.device("cpu"))
