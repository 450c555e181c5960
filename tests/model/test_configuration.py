"""`CromeConfig`: defaults of the paper, round trip, and settings it refuses."""

import pytest
import transformers
from transformers import AutoConfig

from crome.errors import InputError
from crome.model.configuration import CromeConfig, vision_width


def test_defaults_are_the_papers():
    config = CromeConfig()
    assert config.vision_config.model_type == "instructblip_vision_model"
    assert (config.num_query_tokens, config.adapter_bottleneck) == (32, 256)
    assert config.branches == ["query", "patch"]
    assert (config.qformer_feature_layer, config.patch_feature_layer) == (-1, -2)
    assert (config.max_question_tokens, config.max_answer_tokens) == (128, 256)
    assert config.qformer_config.encoder_hidden_size == 1408


@pytest.mark.parametrize("language", ["llama", "gemma3", "t5"])
def test_round_trip_through_the_auto_class(tiny_config, tmp_path, language):
    config = tiny_config(language, branches=("patch",), prompt_format=("a", "b{question}"))
    config.save_pretrained(tmp_path)
    again = AutoConfig.from_pretrained(tmp_path)
    assert isinstance(again, CromeConfig)
    assert again.branches == ["patch"]
    assert tuple(again.prompt_format) == ("a", "b{question}")
    assert type(again.text_config) is type(config.text_config)
    assert type(again.vision_config) is type(config.vision_config)
    assert again.hidden_size == 32
    for part in ("vision_config", "text_config", "qformer_config"):
        ours, theirs = (getattr(c, part).to_dict() for c in (config, again))
        assert {k: v for k, v in ours.items() if k != "architectures"}.items() <= theirs.items()


def test_the_qformer_reads_the_width_of_the_encoder(tiny_config):
    assert tiny_config().qformer_config.encoder_hidden_size == 24
    assert tiny_config(vision="efficientnet").qformer_config.encoder_hidden_size == 1280


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"visual_order": "mixed"}, r"'mixed'; expected patches_first or queries_first"),
        ({"branches": []}, r"branches is \[\].*expected 'query', 'patch' or both"),
        ({"branches": ["query", "audio"]}, r"'audio'.*expected 'query', 'patch' or both"),
    ],
)
def test_wrong_settings_are_named(settings, message):
    with pytest.raises(InputError, match=message):
        CromeConfig(**settings)


def test_an_encoder_without_a_width_is_named():
    with pytest.raises(InputError, match=r"'x' names no token width"):
        vision_width(transformers.PreTrainedConfig(model_type="x"))
