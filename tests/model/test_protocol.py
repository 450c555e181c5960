"""Both models and both processors have the whole surface that the house asks for."""

import inspect

import pytest

from crome.attached import AttachedModel, AttachedProcessor
from crome.features.processor import CachedProcessor
from crome.model.modeling import CromeForConditionalGeneration
from crome.model.processing import CromeProcessor
from crome.model.protocol import Processor, VisionLanguageModel
from crome.model.stages import apply_stage


def surface(protocol):
    return {name for name, value in vars(protocol).items() if not name.startswith("_")}


@pytest.mark.parametrize("model", [CromeForConditionalGeneration, AttachedModel])
def test_a_model_has_the_surface(model):
    known = {*dir(model), *(n for c in model.__mro__ for n in inspect.get_annotations(c))}
    assert not surface(VisionLanguageModel) - known


@pytest.mark.parametrize("model", [CromeForConditionalGeneration, AttachedModel])
@pytest.mark.parametrize("name", ["load_adapter", "set_adapter", "delete_adapter", "parts"])
def test_its_methods_are_called_alike(model, name):
    expected = list(inspect.signature(getattr(VisionLanguageModel, name)).parameters)
    assert list(inspect.signature(getattr(model, name)).parameters) == expected


@pytest.mark.parametrize("processor", [CromeProcessor, AttachedProcessor])
def test_a_processor_has_the_surface(processor):
    assert not {name for name in surface(Processor) if not hasattr(processor, name)}


def test_a_cached_processor_encodes_rows_itself():
    assert "encode" in vars(CachedProcessor)


def test_a_disabled_adapter_does_nothing(build):
    model = build(language="llama").model
    model.adapter.up["shared"].weight.data.normal_()
    apply_stage(model, "finetune")
    with model.disable_adapter():
        assert model.get_adapter(None) is None
    assert model.get_adapter(None) is model.adapter


def test_deleting_the_active_adapter_goes_back_to_the_own(build, tmp_path):
    model = build(language="llama").model
    model.save_adapter(tmp_path)
    model.load_adapter(tmp_path, "one")
    model.delete_adapter("one")
    assert model.active_adapter is None
    assert not len(model.task_adapters)
