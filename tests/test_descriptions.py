"""Files that describe something: what is no object in them is one clear error, in every reader."""

import json

import pytest
import yaml

from crome.data.mixture.layouts import LAYOUTS
from crome.errors import InputError
from crome.fewshot.benchmark import read_rows
from crome.interop.card import draw_curve, score_lines
from crome.model.adapter_files import read_adapter, require_bridge
from crome.model.hub import named
from crome.model.pretrained import read_base, read_config
from crome.model.tensors import by_prefix
from crome.storage import read_object
from crome.studies.runs import finished
from crome.training.checkpoint_files import damage
from crome.training.run_folder import read_record
from crome.training.validation import read_score

NO_OBJECTS = ["[]", '["base"]', '"text"', "null", "3", "", "{", "[" * 100_000]


def adapter_beside(folder):
    (folder / "adapter_model.safetensors").write_bytes(b"")
    return require_bridge("crome-tiny", folder)


READERS = {
    "adapter_config.json": lambda folder: read_adapter(folder, "base", "adapter"),
    "base.json": read_base,
    "config.json": lambda folder: read_config(folder, {}),
    "model.safetensors.index.json": lambda folder: by_prefix(str(folder), ("x",)),
    "run.yaml": lambda folder: read_record(folder / "run.yaml"),
    "scores.json": lambda folder: score_lines(folder, folder),
    "retention.json": lambda folder: finished(folder / "retention.json", {"seed": 0}),
}


@pytest.mark.parametrize("content", NO_OBJECTS)
@pytest.mark.parametrize("name", READERS)
def test_what_is_no_object_is_one_clear_error(tmp_path, name, content):
    (tmp_path / name).write_text(content)
    with pytest.raises(InputError) as error:
        READERS[name](tmp_path)
    assert len(str(error.value).splitlines()) == 1
    assert str(tmp_path) in str(error.value)


@pytest.mark.parametrize("fields", [{}, {"base": []}, {"base": "x"}, {"base": None}])
def test_an_adapters_fields_are_objects_too(tmp_path, fields):
    (tmp_path / "adapter_config.json").write_text(json.dumps(fields))
    with pytest.raises(InputError, match="has no object 'base'"):
        adapter_beside(tmp_path)


@pytest.mark.parametrize(
    "index", [{}, {"weight_map": []}, {"weight_map": None}, {"weight_map": {"x": 1}}]
)
def test_an_index_names_files(tmp_path, index):
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(InputError, match="which file holds which weights"):
        by_prefix(str(tmp_path), ("x",))


def test_an_object_is_read(tmp_path):
    (tmp_path / "a.json").write_text('{"a": [1]}')
    assert read_object(tmp_path / "a.json") == {"a": [1]}
    (tmp_path / "a.json").write_text("[1]")
    with pytest.raises(ValueError, match="found a JSON list; expected an object"):
        read_object(tmp_path / "a.json")


@pytest.mark.parametrize("content", NO_OBJECTS)
def test_what_may_be_absent_is_as_if_it_were_not_there(tmp_path, content):
    for name in ("files.json", "score.json"):
        (tmp_path / name).write_text(content)
    assert damage(tmp_path)
    assert read_score(tmp_path) is None


def test_lines_of_a_log_that_are_no_objects_are_left_out(tmp_path):
    (tmp_path / "log.jsonl").write_text('[]\n"x"\n{"step": 1, "loss": 2}\n{"step": 2, "lo')
    assert not draw_curve(tmp_path / "log.jsonl", tmp_path / "curve.png")
    (tmp_path / "rows.jsonl").write_text("[]\n")
    with pytest.raises(InputError, match="no object"):
        read_rows(tmp_path / "rows.jsonl")


@pytest.mark.parametrize("content", ["[]", '{"questions": []}', '{"questions": "x"}'])
def test_a_published_file_of_another_form_is_named(tmp_path, content):
    (tmp_path / "questions").mkdir()
    (tmp_path / "questions" / "1.png.json").write_text(content)
    with pytest.raises(InputError, match=r"1\.png\.json.*expected"):
        list(LAYOUTS["ai2d"](tmp_path / "questions"))


def test_a_towers_description_that_is_no_object_names_the_tower(tmp_path):
    transformers = pytest.importorskip("transformers")
    (tmp_path / "config.json").write_text("[]")
    with pytest.raises(InputError, match="the language model 'x' cannot be loaded"):
        with named("language model", "x"):
            transformers.AutoModel.from_pretrained(tmp_path)


def test_a_record_of_a_run_is_read_as_yaml(tmp_path):
    (tmp_path / "run.yaml").write_text(yaml.safe_dump({"seed": 1}))
    assert read_record(tmp_path / "run.yaml") == {"seed": 1}
