"""Videos: a branch of their own, or pictures of their frames; files and lists of frames."""

import pytest
import torch
from PIL import Image

from crome.attached import media
from crome.errors import InputError
from crome.features.media import CachedMediaProcessor, MediaCache, Prepared
from crome.model.stages import apply_stage
from crome.rows import Row

pytest.importorskip("torchvision", reason="video processors of transformers need torchvision")


@pytest.fixture
def films(pictures, tmp_path):
    """Two films of four frames each, as files of pictures."""
    found = []
    for number in range(8):
        found.append(tmp_path / f"{number}.png")
        turned = pictures[number % len(pictures)].rotate(90 * (number // len(pictures)))
        turned.resize((64, 64)).save(found[-1])
    return tuple(found[:4]), tuple(found[4:])


KINDS = [
    "qwen2_5_vl", "qwen3_vl", "llava_onevision", "internvl", "smolvlm", "glm4v", "molmo2",
]  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
def test_films_pictures_and_text_in_one_batch_are_as_each_alone(case, films, kind):
    one = case(kind)
    one.draw()
    rows = [
        Row((), "what?", "red", "1", videos=(films[0],)),
        Row((), "what is it?", "a", "2", videos=(films[1],)),
        Row((films[0][0],), "and?", "b", "3"),
        Row((), "one and one", "two", "4"),
    ]
    with torch.no_grad():
        together = one.model(**one.processor.encode(rows, answers=True)).token_losses
        alone = [one.model(**one.processor.encode([r], answers=True)).token_losses for r in rows]
    torch.testing.assert_close(together, torch.cat(alone), rtol=1e-4, atol=1e-5)
    assert not torch.allclose(alone[0].mean(), alone[1].mean())


def test_smolvlm_takes_pictures_or_a_film(case, films):
    row = Row((films[0][0],), "both?", "b", "7", videos=(films[0],))
    with pytest.raises(InputError, match=r"row 7 shows a picture and a film.*divide it"):
        case("smolvlm").processor.encode([row])


def test_a_file_that_nothing_here_decodes_is_told_with_the_remedy(case, tmp_path, monkeypatch):
    monkeypatch.setattr(media, "decodes_files", lambda: False)
    (tmp_path / "film.mp4").write_bytes(b"")
    row = Row((), "what?", "b", "7", videos=(tmp_path / "film.mp4",))
    with pytest.raises(InputError, match=r"film.mp4 cannot be read.*torchcodec"):
        case("qwen2_5_vl").processor.encode([row])


def test_frames_go_through_the_branch_of_videos(case, pictures, tmp_path):
    one = case("qwen2_5_vl")
    frames = tuple(tmp_path / f"{number}.png" for number in range(4))
    for number, frame in enumerate(frames):
        pictures[number % len(pictures)].resize((64, 64)).save(frame)
    batch = one.processor.encode([Row((), "what?", "red", "1", videos=(frames,))], answers=True)
    assert "pixel_values_videos" in batch["media"][0]
    one.draw()
    apply_stage(one.model, "finetune")
    loss = one.model(**batch).loss
    loss.backward()
    assert one.model.adapter.down["video"].weight.grad.abs().sum() > 0
    assert one.model.adapter.down["image"].weight.grad is None
    with torch.no_grad(), one.model.disable_adapter():
        assert one.model(**batch).loss != loss
    one.model.zero_grad()


@pytest.mark.parametrize("kind", ["qwen2_5_vl", "smolvlm"])
def test_kept_films_are_read_as_live_ones(case, films, kind, tmp_path):
    one = case(kind)
    rows = [Row((), "what?", "red", "1", videos=(films[0],))]
    cache = MediaCache(one.model, one.processor, tmp_path)
    prepared = Prepared(one.processor)(cache.missing(one.processor, rows))
    assert sum(cache.fill(one.model, [prepared], 1)) == 1
    kept = CachedMediaProcessor(one.processor, cache).encode(rows, answers=True)
    live = one.processor.encode(rows, answers=True)
    assert torch.equal(kept["input_ids"], live["input_ids"])
    with torch.no_grad():
        assert torch.equal(one.model(**kept).token_losses, one.model(**live).token_losses)


def test_frames_of_several_sizes_are_named(case, films, tmp_path):
    Image.open(films[0][0]).resize((32, 32)).save(tmp_path / "small.png")
    row = Row((), "what?", "b", "7", videos=((films[0][0], tmp_path / "small.png"),))
    with pytest.raises(InputError, match=r"frames of a film differ in size \(64 × 64, 32 × 32\)"):
        case("qwen2_5_vl").processor.encode([row])
