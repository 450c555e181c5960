"""Files of recordings: what people have → mono samples at the model's rate, or one clear line."""

import numpy as np
import pytest
from scipy.io import wavfile

from crome.errors import InputError
from crome.sounds import check_sound, load_sound

RATE = 16_000
TYPES = {"uint8": 0.02, "int16": 1e-4, "int32": 1e-6, "float32": 1e-6, "float64": 1e-6}


def tone(hertz, rate=RATE, seconds=0.25):
    return 0.5 * np.sin(2 * np.pi * hertz * np.arange(round(rate * seconds)) / rate)


def written(path, samples, rate=RATE, kind="float32"):
    if kind == "uint8":
        samples = samples * 127 + 128
    elif kind.startswith("int"):
        samples = samples * np.iinfo(kind).max
    wavfile.write(path, rate, samples.astype(kind))
    return path


@pytest.mark.parametrize("kind", TYPES)
def test_numbers_of_every_kind_are_the_same_sound(tmp_path, kind):
    found = load_sound(written(tmp_path / "a.wav", tone(440), kind=kind), RATE)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, tone(440), atol=TYPES[kind])


def test_24_bits_are_heard(tmp_path):
    whole = (tone(440) * (2**23 - 1)).astype("<i4")
    body = b"".join(int(v).to_bytes(4, "little", signed=True)[:3] for v in whole)
    (tmp_path / "a.wav").write_bytes(header(len(body), 24, RATE) + body)
    np.testing.assert_allclose(load_sound(tmp_path / "a.wav", RATE), tone(440), atol=1e-6)


def header(size, bits, rate):
    fields = (16, 1 | 1 << 16, rate, rate * bits // 8, bits // 8 | bits << 16)
    numbers = b"".join(int(n).to_bytes(4, "little") for n in fields)
    return (b"RIFF" + (36 + size).to_bytes(4, "little") + b"WAVEfmt " + numbers + b"data"
            + size.to_bytes(4, "little"))  # fmt: skip


def test_channels_become_one(tmp_path):
    both = np.stack([tone(440), tone(990)], 1)
    found = load_sound(written(tmp_path / "a.wav", both), RATE)
    np.testing.assert_allclose(found, both.mean(1), atol=1e-6)


@pytest.mark.parametrize("rate", [8_000, 22_050, 44_100, 48_000])
def test_another_rate_is_made_the_models(tmp_path, rate):
    found = load_sound(written(tmp_path / "a.wav", tone(440, rate), rate), RATE)
    assert len(found) == len(tone(440))
    np.testing.assert_allclose(found[400:-400], tone(440)[400:-400], atol=5e-3)


def test_what_a_lower_rate_cannot_hold_is_not_heard_as_something_else(tmp_path):
    """A tone above half the rate would come back as a lower one if samples were only left out."""
    found = load_sound(written(tmp_path / "a.wav", tone(12_000, 48_000), 48_000), RATE)
    assert np.abs(found[400:-400]).max() < 5e-3


def test_files_that_are_no_recording_are_named(tmp_path):
    path = tmp_path / "a.wav"
    with pytest.raises(InputError, match=r"no recording .*a.wav; expected an existing file"):
        load_sound(path, RATE)
    for content in (b"", b"no sound at all", b"RIFF", b"RIFF\0\0\0\0WAVEfmt "):
        path.write_bytes(content)
        with pytest.raises(InputError, match=r"a.wav cannot be heard .*; export it again as WAV"):
            load_sound(path, RATE)
    (tmp_path / "b.mp3").write_bytes(b"no sound at all")
    for other in (tmp_path, tmp_path / "b.mp3"):
        with pytest.raises(InputError, match="cannot be heard"):
            load_sound(other, RATE)


def test_a_file_that_ends_early_is_refused(tmp_path):
    path = written(tmp_path / "a.wav", tone(440), kind="int16")
    path.write_bytes(path.read_bytes()[:-1000])
    with pytest.raises(InputError, match=r"cannot be heard .it ends before its header says"):
        load_sound(path, RATE)


def test_a_check_reads_what_needs_no_further_library(tmp_path):
    check_sound(written(tmp_path / "a.wav", tone(440), 8_000))
    (tmp_path / "b.mp3").write_bytes(b"content of a format that may not be readable here")
    check_sound(tmp_path / "b.mp3")
    (tmp_path / "b.mp3").write_bytes(b"")
    (tmp_path / "c.wav").write_bytes(b"no sound at all")
    for name, message in (("b.mp3", "is empty"), ("c.wav", "cannot be heard"), ("d.mp3", "no ")):
        with pytest.raises(InputError, match=message):
            check_sound(tmp_path / name)


def test_a_recording_without_samples_is_refused(tmp_path):
    with pytest.raises(InputError, match=r"a.wav has no samples; leave the row out"):
        load_sound(written(tmp_path / "a.wav", np.zeros(0), kind="int16"), RATE)
    with pytest.raises(InputError, match="samples that are no numbers"):
        load_sound(written(tmp_path / "a.wav", np.full(900, np.nan)), RATE)
