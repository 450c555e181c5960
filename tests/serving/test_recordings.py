"""Recordings from strangers: hostile files, and a server with a model that hears."""

import base64
import io
import json
import struct

import numpy as np
import pytest
from scipy.io import wavfile

from crome.errors import InputError
from crome.rows import Place, Row
from crome.serving.conversation import Attachment, conversation
from crome.serving.recordings import Recordings
from crome.serving.schema import ChatRequest
from crome.sounds import load_sound

RATE = 16_000


def recording(seconds=0.25, rate=RATE, channels=1, kind=np.int16):
    """A WAV of a tone."""
    wave = np.sin(np.arange(int(seconds * rate)) / rate * 2 * np.pi * 440) * 0.5
    samples = (wave * np.iinfo(kind).max).astype(kind) if kind == np.int16 else wave.astype(kind)
    file = io.BytesIO()
    wavfile.write(file, rate, samples if channels == 1 else np.stack([samples] * channels, 1))
    return file.getvalue()


def text(data):
    return base64.b64encode(data).decode()


@pytest.mark.parametrize(
    "given",
    [text(recording()), f"data:audio/wav;base64,{text(recording())}",
     f"DATA:audio/x-wav;base64,{text(recording(channels=2))}"],
)  # fmt: skip
def test_all_forms_are_the_same_samples(given):
    samples = Recordings().open(given, RATE)
    assert samples.shape == (4000,)
    assert samples.dtype == np.float32
    np.testing.assert_allclose(samples, Recordings().decode(recording(), RATE), atol=1e-6)


def test_other_rates_and_numbers_last_as_long():
    for sound in (recording(rate=44_100), recording(rate=8_000, kind=np.float32)):
        samples = Recordings().decode(sound, RATE)
        assert abs(len(samples) - 4000) <= 1
        assert 0.45 < np.abs(samples[500:-500]).max() < 0.55


@pytest.mark.parametrize("form", ["FLAC", "OGG", "MP3"])
def test_packed_recordings_are_heard_from_a_client_and_from_a_file(form, tmp_path):
    soundfile = pytest.importorskip("soundfile", reason="needs the extra `sound`")
    tone = np.sin(np.arange(44_100) / 44_100 * 2 * np.pi * 440) * 0.5
    path = tmp_path / f"tone.{form.lower()}"
    soundfile.write(path, np.stack([tone, tone], 1), 44_100, format=form)
    for samples in (Recordings().decode(path.read_bytes(), RATE), load_sound(path, RATE)):
        assert samples.shape == (RATE,)
        assert 0.45 < np.abs(samples[500:-500]).max() < 0.55


def test_a_packed_recording_of_hours_is_read_no_further_than_is_taken(monkeypatch):
    soundfile = pytest.importorskip("soundfile", reason="needs the extra `sound`")
    file = io.BytesIO()
    soundfile.write(file, np.zeros((8000 * 30, 2), np.int16), 8000, format="FLAC")
    read, blocks = [], soundfile.SoundFile.blocks

    def counted(*given, **named):
        for block in blocks(*given, **named):
            read.append(block)
            yield block

    monkeypatch.setattr(soundfile.SoundFile, "blocks", counted)
    with pytest.raises(InputError, match="lasts more than 2 s"):
        Recordings(max_seconds=2).decode(file.getvalue(), RATE)
    assert len(read) == 3


def header(rate, data, *, size=None, channels=1, bits=16):
    """A WAV whose header says anything."""
    block = channels * bits // 8
    form = struct.pack("<HHIIHH", 1, channels, rate, (rate * block) % 2**32, block, bits)
    chunks = b"fmt " + struct.pack("<I", 16) + form
    chunks += b"data" + struct.pack("<I", len(data) if size is None else size) + data
    return b"RIFF" + struct.pack("<I", 4 + len(chunks)) + b"WAVE" + chunks


HOSTILE = {
    "empty": b"",
    "text": b"<html>not found</html>",
    "picture": b"\x89PNG\r\n\x1a\n" + b"\0" * 99,
    "cut off": recording()[:-500],
    "head alone": recording()[:30],
    "no samples": header(RATE, b""),
    "a sample a second": header(1, b"\0\1" * 5000),
    "no rate": header(0, b"\0\1" * 99),
    "a rate that makes filters of gigabytes": header(4_294_967_291, b"\0\1" * 99),
    "65,535 channels": header(RATE, b"\0\1" * 99, channels=65_535, bits=8),
    "no channels": header(RATE, b"\0\1" * 99, channels=0),
    "bits that there are not": header(RATE, b"\0\1" * 99, bits=7),
    "not finite": recording(kind=np.float32)[:-4] + struct.pack("<f", np.nan),
    "longer than ten minutes": header(1000, b"\0\1" * 600_001),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_files_are_one_short_error(name):
    with pytest.raises(InputError) as caught:
        Recordings().open(text(HOSTILE[name]), RATE)
    assert len(str(caught.value)) < 200
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "given", ["", "%%%%", "é" * 9, "data:audio/wav,", "data:;base64", "file:///etc/passwd",
              "ftp://a/b.wav", "A" * 400],
)  # fmt: skip
def test_hostile_addresses_are_one_short_error(given):
    with pytest.raises(InputError) as caught:
        Recordings(max_bytes=200).open(given, RATE)
    assert len(str(caught.value)) < 200


@pytest.mark.parametrize("unknown", [0xFFFFFFFF, 0x7FFFFFFF, 0x7FFFF024])
def test_a_recording_whose_writer_could_not_know_its_length_is_heard_to_its_end(unknown, tmp_path):
    """Programs that write WAV into a pipe leave such headers."""
    sound = recording()
    piped = sound[:4] + struct.pack("<I", unknown) + sound[8:40] + struct.pack("<I", unknown)
    piped += sound[44:]
    expected = Recordings().decode(sound, RATE)
    np.testing.assert_array_equal(Recordings().decode(piped, RATE), expected)
    (tmp_path / "piped.wav").write_bytes(piped)
    np.testing.assert_array_equal(load_sound(tmp_path / "piped.wav", RATE), expected)


def heard(*parts):
    messages = [{"role": "user", "content": list(parts)}]
    return ChatRequest.model_validate({"model": "m", "messages": messages})


AUDIO = {"type": "input_audio", "input_audio": {"data": text(recording()), "format": "wav"}}
URL = {
    "type": "audio_url",
    "audio_url": {"url": f"data:audio/wav;base64,{text(recording(seconds=0.5))}"},
}
IMAGE = {"type": "image_url", "image_url": {"url": "data:,"}}


def words(said):
    return {"type": "text", "text": said}


def test_recordings_stand_where_they_were_sent():
    said = conversation(heard(words("Hear "), AUDIO, words(", see "), IMAGE, URL).messages)
    assert said.question == "Hear , see"
    assert said.places == (
        Place("audio", 0, 5), Place("image", 0, 10), Place("audio", 0, 10),
    )  # fmt: skip
    assert said.media == (
        Attachment(AUDIO["input_audio"]["data"], "messages[0].content[1].input_audio", "audio"),
        Attachment("data:,", "messages[0].content[3].image_url"),
        Attachment(URL["audio_url"]["url"], "messages[0].content[4].audio_url", "audio"),
    )


def test_only_users_are_heard():
    from crome.serving.errors import ApiError

    body = heard(AUDIO)
    body.messages[0].role = "assistant"
    with pytest.raises(ApiError, match="only messages of the user"):
        conversation(body.messages)


@pytest.fixture
def hearing(case, tmp_path):
    """A server over a model that hears, and the model."""
    pytest.importorskip("fastapi")
    from starlette.testclient import TestClient

    from crome.serving.adapters import Adapters
    from crome.serving.engine.whole import GenerateEngine
    from crome.serving.http.app import create_app
    from crome.serving.http.gate import Keys
    from crome.serving.service import Service

    one = case("qwen2_5_omni_thinker", "audio")
    one.draw()
    engine = GenerateEngine(one.model.eval(), one.processor)
    service = Service(engine, one.processor, Adapters(engine, "tiny", []))
    with TestClient(create_app(service, Keys())) as client:
        yield one, client
    engine.close(30)


def ask(client, *parts, route="/v1/chat/completions", field="messages"):
    body = {"model": "tiny", field: [{"role": "user", "content": list(parts)}]}
    body |= {"max_tokens" if field == "messages" else "max_output_tokens": 4, "temperature": 0}
    return client.post(route, json=body)


def test_the_server_hears_what_the_model_does(hearing):
    from crome.model.answering import answer

    one, client = hearing
    sound = Recordings().decode(recording(), one.processor.sampling_rate)
    row = Row((), "what is it?", "", "1", audios=(sound,))
    (expected,) = answer(one.model, one.processor, [row], max_new_tokens=4)
    reply = ask(client, AUDIO, words("what is it?"))
    assert reply.status_code == 200, reply.text
    assert reply.json()["choices"][0]["message"]["content"] == expected
    both = ask(client, AUDIO, URL, words("what is it?")).json()["usage"]["prompt_tokens"]
    assert both > reply.json()["usage"]["prompt_tokens"]
    newer = ask(client, AUDIO, words("what is it?"), route="/v1/responses", field="input")
    assert newer.json()["output"][0]["content"][0]["text"] == expected


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_recordings_are_the_clients_fault(hearing, name):
    _, client = hearing
    part = {"type": "input_audio", "input_audio": {"data": text(HOSTILE[name]), "format": "wav"}}
    reply = ask(client, part, words("what?"))
    assert reply.status_code == 400
    error = json.loads(reply.text)["error"]
    assert error["code"] == "invalid_audio"
    assert error["param"] == "messages[0].content[0].input_audio"


def test_a_model_that_does_not_hear_says_so(serving):
    openai = pytest.importorskip("openai", reason="needs the extra `serve`")
    with serving() as there:
        client = openai.OpenAI(base_url=f"{there.url}/v1", api_key="none", max_retries=0)
        message = {"role": "user", "content": [AUDIO, words("what?")]}
        with pytest.raises(openai.BadRequestError, match="this model does not hear"):
            client.chat.completions.create(model="tiny", messages=[message])
