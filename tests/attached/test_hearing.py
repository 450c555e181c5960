"""Recordings: in the place where a model's own forward pass would encode them, and gone behind."""

import copy
import threading

import pytest
import torch
import transformers

import crome
from crome.attached import AttachedModel, hearing, media, opening
from crome.checkpoints.vlm import class_of, is_vlm
from crome.errors import InputError
from crome.features.media import CachedMediaProcessor, MediaCache, Prepared
from crome.rows import Place, Row
from crome.serving.ask import ask

GREEDY = {"max_new_tokens": 4, "do_sample": False}
KINDS = ["gemma4", "qwen2_5_omni_thinker", "inkling_mm_model"]


@pytest.fixture(params=KINDS)
def one(case, request):
    """Features with a mask, positions that hang on lengths, and whole numbers for samples."""
    found = case(request.param, "audio")
    found.draw()
    return found


def rows_of(one, picture):
    """Every mixture of media, answers of unequal lengths; some see with torchvision alone."""
    a, b = one.small, one.large
    seen = () if one.own.image_processor is None else (picture,)
    return [
        Row((), "what is it?", "a bird", "1", audios=(a,)),
        Row(seen, "both?", "no", "2", audios=(b,)),
        Row((), "so?", "yes", "3"),
        Row((), "which of them?", "the first", "4", audios=(b, a)),
        Row(seen, "seen?", "red", "5"),
    ]


def losses(one, rows):
    return one.model(**one.placed(dict(one.processor.encode(rows, answers=True)))).token_losses


@torch.no_grad()
def test_rows_of_all_media_are_as_each_alone(one, pictures):
    rows = rows_of(one, pictures[0].resize((60, 44)))
    together = losses(one, rows)
    torch.testing.assert_close(
        together, torch.cat([losses(one, [row]) for row in rows]), rtol=1e-4, atol=1e-4
    )
    answers = one.greedy(one.placed(dict(one.processor.encode(rows))))
    for number, row in enumerate(rows):
        alone = one.greedy(one.placed(dict(one.processor.encode([row]))))[0]
        assert torch.equal(answers[number, : len(alone)], alone)


@torch.no_grad()
@pytest.mark.parametrize(
    "settings", [{"num_beams": 3}, {"num_beams": 2, "num_return_sequences": 2}]
)
def test_every_beam_hears_all_recordings_of_its_row(one, pictures, settings):
    rows = rows_of(one, pictures[0].resize((60, 44)))
    wanted = {**GREEDY, **settings, **one.processor.generation_kwargs}
    together = one.model.generate(**one.placed(dict(one.processor.encode(rows))), **wanted)
    copies = settings.get("num_return_sequences", 1)
    for number, row in enumerate(rows):
        alone = one.model.generate(**one.placed(dict(one.processor.encode([row]))), **wanted)
        found = together[number * copies : (number + 1) * copies, : alone.shape[1]]
        assert torch.equal(found, alone)


@torch.no_grad()
def test_two_recordings_are_heard_in_their_order_as_by_the_model_itself(one):
    one.model.adapter.reset_parameters()
    found = []
    for pair in ((one.small, one.large), (one.large, one.small)):
        row = Row((), "which?", "", "1", audios=pair)
        prompt = one.processor.template.render(one.processor.messages(row))
        rate = {"sampling_rate": one.processor.sampling_rate}
        sounds = [media.load_sound(path, rate["sampling_rate"]) for path in pair]
        more = {"return_mm_token_type_ids": True} if "gemma" in one.kind else {}
        own = one.own(text=[prompt], audio=sounds, audio_kwargs=rate, return_tensors="pt", **more)
        own = one.placed({k: v for k, v in own.items() if k in one.processor.inputs})
        expected = one.vlm(**own, use_cache=False).logits
        found.append(one.model(**one.placed(dict(one.processor.encode([row])))).logits)
        assert torch.equal(found[-1], expected)
    one.draw()
    assert found[0].shape == found[1].shape
    assert not torch.equal(*found)


def test_a_recording_stands_at_its_place_in_the_text(one):
    token = one.own.audio_token
    row = Row((), "Hear , then this.", "", "1", audios=(one.small,), places=(Place("audio", 0, 5),))
    prompt = one.processor.template.render(one.processor.messages(row))
    assert prompt.index("Hear") < prompt.index(token) < prompt.index("then")


def broken(*_):
    raise OSError(hearing.METHOD)


@torch.no_grad()
def test_the_model_is_as_it_was(one):
    owner = one.model.encoder.functions["audio"].__self__
    batch = one.batch([(one.small, "what?")])
    one.model(**batch)
    assert hearing.METHOD not in vars(owner)
    handle = one.model.language_model.register_forward_pre_hook(broken)
    with pytest.raises(OSError, match=hearing.METHOD):
        one.model(**batch)
    handle.remove()
    assert hearing.METHOD not in vars(owner)


@torch.no_grad()
def test_other_threads_encode_samples_meanwhile(one):
    """One thread gives ready features, another samples, as a user of the bare model does."""
    batch, native = one.batch([(one.small, "what?")]), one.native(one.large, "so?")
    expected = one.model(**batch).logits, one.vlm(**native, use_cache=False).logits
    failed = []

    def work(call, wanted):
        with torch.no_grad():
            failed.extend(i for i in range(4) if not torch.equal(call(), wanted))

    calls = (
        lambda: one.model(**batch).logits,
        lambda: one.vlm(**native, use_cache=False).logits,
        lambda: one.model(**batch).logits,
    )
    wanted = (*expected, expected[0])
    # Models whose positions are kept on themselves do not allow this by bare calls.
    chosen = [0, 2] if one.model.positions.rope is not None else [0, 1, 2]
    threads = [threading.Thread(target=work, args=(calls[i], wanted[i])) for i in chosen]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failed
    assert hearing.METHOD not in vars(one.model.encoder.functions["audio"].__self__)


@torch.no_grad()
def test_a_copy_hears_by_itself(one):
    batch = one.batch([(one.small, "what?")], ["red"])
    expected = one.model(**batch).loss
    model = copy.deepcopy(one.model)
    owner = model.encoder.functions["audio"].__self__
    assert any(module is owner for module in model.vlm.modules())
    assert torch.equal(model(**batch).loss, expected)
    for weight in owner.parameters():
        weight.zero_()
    assert not torch.equal(model(**batch).loss, expected)
    assert torch.equal(one.model(**batch).loss, expected)


@torch.no_grad()
def test_what_is_cached_is_not_heard_again(one, pictures, tmp_path, monkeypatch):
    rows = rows_of(one, pictures[0].resize((60, 44)))
    expected = losses(one, rows)
    cache = MediaCache(one.model, one.processor, tmp_path)
    prepared = Prepared(one.processor)(cache.missing(one.processor, rows))
    assert sum(cache.fill(one.model, [prepared], len(prepared))) == len(prepared) >= 3
    monkeypatch.setattr(media, "load_sound", lambda *_: pytest.fail("samples were read"))
    monkeypatch.setattr(AttachedModel, "encode", lambda *_: pytest.fail("encoded again"))
    batch = CachedMediaProcessor(one.processor, cache).encode(rows, answers=True)
    assert torch.equal(one.model(**one.placed(dict(batch))).token_losses, expected)


def test_an_adapter_for_pictures_alone_leaves_recordings_to_the_model(case, tmp_path):
    one = case("gemma4", "audio")
    seeing = AttachedModel(one.vlm, bottleneck=8, branches=["image"])
    seeing.save_adapter(tmp_path)
    for weight in seeing.adapter.parameters():
        torch.nn.init.normal_(weight)
    batch = one.batch([(one.small, "what?")])
    one.model.load_adapter(tmp_path, name="seeing")
    with torch.no_grad():
        expected = one.vlm(**one.native(one.small, "what?"), use_cache=False).logits
        assert torch.equal(seeing(**batch).logits, expected)
        assert torch.equal(one.model(**batch, adapter_names=["seeing"]).logits, expected)
    one.model.delete_adapter("seeing")


def test_a_model_that_was_built_without_ears_takes_no_recordings(case, monkeypatch, tmp_path):
    import tiny_vlms

    case("gemma4", "audio")
    monkeypatch.setattr(tiny_vlms, "EARS", {})
    overrides = {**tiny_vlms.OVERRIDES["gemma4"], "audio_config": None}
    monkeypatch.setitem(tiny_vlms.OVERRIDES, "gemma4", overrides)
    model, processor = crome.attach(*tiny_vlms.build("gemma4"), bottleneck=8)
    assert model.adapter_settings["branches"] == ["image", "video"]
    row = Row((), "what?", "", "7", audios=(tmp_path / "a.wav",))
    with pytest.raises(InputError, match="row 7 has audio, and this model takes image and video"):
        processor.encode([row])


def test_a_recording_is_asked_about_on_the_command_line(case, tmp_path, capsys, monkeypatch):
    """Its tokenizer is saved while it pads, as some checkpoints have it."""
    one = case("gemma4", "audio")
    one.own.tokenizer(["a", "a b"], padding=True)
    have = [name for name in one.own.get_attributes() if getattr(one.own, name) is not None]
    one.vlm.save_pretrained(tmp_path)
    with monkeypatch.context() as patch:  # it has no part for videos without torchvision
        patch.setattr(type(one.own), "get_attributes", classmethod(lambda _: have))
        one.own.save_pretrained(tmp_path)
    for sounds in (one.small, [one.large], [one.small, one.large]):
        ask("loud?", audio=sounds, checkpoint=str(tmp_path), dtype="float32", max_new_tokens=5,
            device="cpu")  # fmt: skip
        heard = tuple(sounds) if isinstance(sounds, list) else (sounds,)
        batch = one.processor.encode([Row((), "loud?", "", "1", audios=heard)])
        with torch.no_grad(), one.model.disable_adapter():
            (expected,) = one.processor.batch_decode(one.greedy(one.placed(dict(batch))))
        assert capsys.readouterr().out.strip() == expected.strip()
    with pytest.raises(InputError, match=r"no recording .*none.wav"):
        ask("loud?", audio=tmp_path / "none.wav", checkpoint=str(tmp_path))


def test_samples_are_heard_as_their_file_is(one):
    samples = media.load_sound(one.small, one.processor.sampling_rate)
    expected = one.processor(audio=[one.small], text="what?")
    for given in ([samples], [torch.tensor(samples)], [[samples]], [samples[None]]):
        found = one.processor(audio=given, text="what?")
        assert torch.equal(found["input_ids"], expected["input_ids"])
        for name, tensor in expected["media"][0].items():
            assert torch.equal(found["media"][0][name], tensor)
    parts = [{"type": "audio", "audio": samples}, {"type": "text", "text": "what?"}]
    chat = one.processor.apply_chat_template(
        [{"role": "user", "content": parts}], tokenize=True, return_dict=True
    )
    assert torch.equal(chat["input_ids"], expected["input_ids"])


@pytest.mark.parametrize(
    ("sound", "message"),
    [
        (torch.zeros(3, 700), r"a recording is Tensor of shape \(3, 700\); expected"),
        (torch.zeros(0), "a recording has no samples"),
        (torch.full((900,), float("nan")), "samples that are no numbers"),
    ],
)
def test_samples_that_are_no_recording_are_refused(case, sound, message):
    with pytest.raises(InputError, match=message):
        case("gemma4", "audio").processor(audio=[[sound]], text="what?")


@pytest.mark.parametrize(
    ("kind", "whole"),
    [("qwen2_5_omni_thinker", "Qwen2_5Omni"), ("qwen3_omni_moe_thinker", "Qwen3OmniMoe")],
)
def test_of_a_model_that_also_talks_the_thinker_is_loaded(case, tmp_path, kind, whole):
    one = case(kind, "audio")
    config = getattr(transformers, f"{whole}Config")
    config = config(thinker_config=one.vlm.config.to_dict(), enable_audio_output=False)
    talking = getattr(transformers, f"{whole}ForConditionalGeneration")(config)
    talking.thinker.load_state_dict(one.vlm.state_dict())
    with pytest.raises(InputError, match=r"also talks.* attach it to its `thinker`"):
        crome.attach(talking, one.own)
    talking.save_pretrained(tmp_path)
    assert is_vlm(str(tmp_path))
    vlm = class_of(config.model_type).from_pretrained(tmp_path)
    assert type(vlm) is type(one.vlm)
    for found, expected in zip(
        vlm.state_dict().values(), one.vlm.state_dict().values(), strict=True
    ):
        assert torch.equal(found, expected)


@torch.no_grad()
def test_questions_on_one_recording_are_answered_behind_one_copy_of_it(case, monkeypatch):
    one = case("muse_spark", "audio")
    one.draw()
    rows = [(one.small, q) for q in ("what is it?", "is it a loud one?", "why?")]
    rows += [(one.large, "what is it?"), (one.large, "so?")]
    assert one.model.shares_prefix
    read = []
    monkeypatch.setattr(
        opening, "read", lambda *args, own=opening.read: read.append(own(*args)) or read[-1]
    )
    together = one.greedy(one.batch(rows))
    for number, row in enumerate(rows):
        alone = one.greedy(one.batch([row]))[0]
        assert torch.equal(together[number, : len(alone)], alone)
    assert len(read) <= 1
