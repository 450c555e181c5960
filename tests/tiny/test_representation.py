"""The stage before the language model: what a question is made of, and what trains."""

import json

import pytest
import torch

from crome.checkpoints.loading import load
from tools.tiny import representation
from tools.tiny.pictures import PicturePack
from tools.tiny.representation import Heads, Question, Words, parts, represent
from tools.tiny.scenes import Scenes


@pytest.fixture(scope="module")
def asked() -> list[tuple]:
    """(scene, question with its parts) of fifty generated pictures."""
    scenes = Scenes(PicturePack.builtin(), 3, questions_per_image=12, single=0.8, painted=0.9)
    words = Words([thing.name for thing in scenes.things])
    found = []
    for index in range(50):
        scene, _, rows = scenes.draw(index)
        found += [
            (scene, Question(q, a, kind, parts(scene, kind, q, a, words))) for kind, _, q, a in rows
        ]
    return found


def test_a_yes_is_agreement_or_negation_but_not_both(asked):
    yes_no = [q for _, q in asked if q.parts.agree is not None]
    assert len(yes_no) > 100
    for question in yes_no:
        assert (question.answer == "yes") == (question.parts.agree != question.parts.negated)


def test_colours_agree_where_the_one_seen_is_the_one_asked_about(asked):
    seen = 0
    for scene, question in asked:
        p = question.parts
        if question.kind in ("exists-color", "absent-color") and p.seen_color and p.asked_color:
            assert p.agree == (p.seen_color == p.asked_color), (question, scene)
            seen += 1
    assert seen > 20


def test_no_part_is_invented(asked):
    for scene, question in asked:
        if len(scene.items) > 1:
            assert question.parts.seen_color is question.parts.seen_name is None
        if question.kind == "caption":
            assert question.parts.agree is question.parts.negated is None
    words = Words(["dog", "hot dog"])
    assert words.one(words.names, "Is there a hot dog?") == "hot dog"
    assert words.one(words.colors, "Is it red or blue?") is None
    assert words.one(words.colors, "Is it bored?") is None


def test_a_probe_learns_only_from_questions_that_have_its_part(asked):
    questions = [q for _, q in asked]
    heads = Heads(8, questions)
    known = [q for q in questions if q.answer in heads.answers]
    without = [q for q in known if q.parts.agree is None][:4]
    losses = heads.losses(torch.randn(4, 8), without)
    assert "agree" not in losses
    assert losses["answer"].shape == (4,)


def test_trains_the_q_former_alone_and_draws_the_projections_anew(build, tmp_path, monkeypatch):
    pair = build(vision="eva")
    pair.model.save_pretrained(tmp_path / "base")
    pair.processor.save_pretrained(tmp_path / "base")
    monkeypatch.setattr(representation.PicturePack, "load", lambda _: PicturePack.builtin())
    represent(
        tmp_path / "out", tmp_path, checkpoint=str(tmp_path / "base"),
        count=24, steps=3, images_per_step=8, objects=None,
    )  # fmt: skip
    before, (after, _) = pair.model.state_dict(), load(str(tmp_path / "out"), dtype="float32")
    moved = {k for k, v in after.state_dict().items() if not torch.equal(v, before[k])}
    assert "query_tokens" in moved
    assert any(name.startswith("qformer.encoder") for name in moved)
    assert {"query_projection.weight", "patch_projection.weight"} <= moved
    assert not any(name.startswith(("vision_model", "language_model")) for name in moved)
    assert all((up.weight == 0).all() for up in after.adapter.up.values())
    log = [json.loads(line) for line in (tmp_path / "out" / "log.jsonl").open()]
    assert [line["step"] for line in log] == [1, 2, 3]
    assert {"answer", "agree", "negated", "asked_color"} <= set(log[0])
