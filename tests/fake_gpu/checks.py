"""Placement on a device that is not the CPU, and how often a program waits for it.

`tests/test_fake_gpu.py` runs these in a process of their own, since PyTorch knows the device for
as long as a process lasts: python -m pytest -p tests.fake_gpu.device tests/fake_gpu/checks.py
"""

from collections import Counter
from functools import partial
from threading import Semaphore

import numpy as np
import pytest
import torch

from crome.checkpoints.loading import to_device
from crome.features.verbs import Caching, enable, prepare
from crome.fewshot import (
    APEClassifier,
    GDAClassifier,
    LinearProbeClassifier,
    TipAdapterClassifier,
    XMAdapterClassifier,
    ZeroShotClassifier,
)
from crome.model import slots
from crome.model.answering import answer, rank
from crome.model.attention import attention_picture
from crome.model.configuration import new_adapter
from crome.rows import Row
from crome.serving.engine.local import LocalEngine
from crome.serving.engine.protocol import Request
from crome.serving.engine.sampling import Sampling
from crome.serving.prompts import prompt_of
from crome.serving.vllm import prompts
from crome.studies.soft_prompt import add_soft_prompt
from crome.studies.text import bare, passage_losses, through
from tests.conftest import VOCABULARY
from tests.fake_gpu.device import DEVICE, WAITS, OnGpu
from tests.recording import recorded

METHODS = (
    XMAdapterClassifier, TipAdapterClassifier, ZeroShotClassifier, GDAClassifier, APEClassifier,
    LinearProbeClassifier,
)  # fmt: skip
QUESTIONS = ["Is there a star?", "What is the colour of the large square?", "How many?", "yes"]


def on_gpu(pair):
    to_device(pair.model, DEVICE)
    return pair


def asked(pictures, number):
    return [
        Row((pictures[i % 2],), QUESTIONS[i % 4], "blue", str(i), choices=("blue", "no, it is"))
        for i in range(number)
    ]


def test_the_device_refuses_company_and_counts():
    x, places = torch.randn(3, 4).to(DEVICE), torch.arange(2, device=DEVICE)
    assert x[places].shape == (2, 4)
    assert {type(value) for value in (x, places, x[places], x * 2)} == {OnGpu}
    with pytest.raises(RuntimeError, match="on the CPU"):
        x + torch.randn(3, 4)
    WAITS.clear()
    x.cpu(), x.sum().item(), x[x > 0], torch.ones(2).to(DEVICE)
    assert Counter(WAITS) == {"fetch": 1, "_local_scalar_dense.default": 1, "index.Tensor": 1}


@pytest.mark.parametrize("language", ["llama", "t5"])
def test_a_training_step_waits_as_often_for_many_rows_as_for_few(build, pictures, language):
    pair = on_gpu(build(language=language))
    pair.model.adapter.requires_grad_(True)
    counts = []
    for number in (4, 4, 8, 16):  # what is tried once is tried in the first
        rows = [(row.images[0], row.question, row.answer) for row in asked(pictures, number)]
        batch = pair.batch(rows)
        WAITS.clear()
        pair.model(**batch).loss.backward()
        counts.append(Counter(WAITS))
    assert all(p.grad.device == DEVICE for p in pair.model.adapter.parameters())
    assert counts[1] == counts[2] == counts[3]
    assert counts[1]["fetch"] == 1
    assert counts[1].total() <= 4


@pytest.mark.parametrize("language", ["llama", "t5"])
def test_answers_and_rankings_are_those_of_the_cpu(build, pictures, randomise, language):
    """With adapters by row and without; a token waits as often for many rows as for few."""
    pair = build(language=language)
    pair.model.task_adapters["own"] = new_adapter(pair.model.config)
    randomise(pair.model.task_adapters["own"])
    rows = [*asked(pictures, 4), Row((), "Is it?", "", "text", choices=("a", "b"))]
    options = [row.choices for row in rows]

    def found():
        """Answers and losses, without and with an adapter for each row."""
        for names in (None, ["own", None, "own", None, "own"]):
            yield answer(pair.model, pair.processor, rows, adapter_names=names)
            yield rank(pair.model, pair.processor, rows, options, adapter_names=names)

    expected = list(found())
    on_gpu(pair)
    for here, there in zip(found(), expected, strict=True):
        numbers = isinstance(there[0], tuple)
        assert here == ([pytest.approx(x, rel=1e-3) for x in there] if numbers else there)
    counts = {}
    for number in (4, 8):
        for longest in (4, 12):
            WAITS.clear()
            answer(
                pair.model, pair.processor, asked(pictures, number),
                max_new_tokens=longest, eos_token_id=[VOCABULARY - 1],
            )  # fmt: skip
            counts[number, longest] = Counter(WAITS)
    assert counts[4, 4] == counts[8, 4]
    assert counts[4, 12] == counts[8, 12]


def test_recorded_steps_wait_for_the_end_alone(build, pictures, monkeypatch):
    pair = build()
    rows = asked(pictures, 4)
    expected = answer(pair.model, pair.processor, rows, max_new_tokens=12)
    on_gpu(pair)
    counts = []
    for recorders in ({}, {DEVICE.type: recorded}):
        monkeypatch.setattr(slots, "RECORDERS", recorders)
        settings = {"max_new_tokens": 12, "eos_token_id": [VOCABULARY - 1]}
        for _ in range(2):
            WAITS.clear()
            answer(pair.model, pair.processor, rows, **settings)
        counts.append(Counter(WAITS)["_local_scalar_dense.default"])
        assert answer(pair.model, pair.processor, rows, max_new_tokens=12) == expected
    assert counts[1] <= counts[0] - 11


@pytest.mark.parametrize("recorders", [{}, {DEVICE.type: recorded}], ids=["cache", "slots"])
def test_the_engine_answers_as_on_the_cpu(build, pictures, monkeypatch, recorders):
    pair = build()
    rows = asked(pictures, 6)
    expected = [answer(pair.model, pair.processor, [row], max_new_tokens=6)[0] for row in rows]
    on_gpu(pair)
    monkeypatch.setattr(slots, "RECORDERS", recorders)
    engine = LocalEngine(pair.model, pair.processor, prefill_tokens=16)
    engine.start()
    texts, left = [""] * len(rows), Semaphore(0)

    def deliver(number, piece):
        texts[number] += piece.text
        if piece.error:
            texts[number] = repr(piece.error)
        if piece.finish:
            left.release()

    for number, row in enumerate(rows):
        sampling = Sampling(temperature=1e-6, seed=1) if number == 3 else Sampling()
        engine.submit(
            Request(
                prompt_of(pair.processor, row), partial(deliver, number), 6, sampling,
                end_ids=pair.processor.end_ids,
            )
        )  # fmt: skip
    for _ in rows:
        assert left.acquire(timeout=60)
    engine.close(30)
    assert texts == expected


@pytest.mark.parametrize("kind", ["qwen3_vl", "llava", "paligemma", "gemma3", "internvl"])
def test_an_attached_adapter_is_where_its_model_is(case, kind):
    own = case(kind)
    own.draw()
    questions = [(own.small, "what is it?"), (own.small, "and what else is it?"), (None, "well?")]
    answers = ["a", "b c", "d"]
    expected = own.model(**own.batch(questions, answers)).loss
    ids = own.greedy(own.batch(questions))
    to_device(own.model, DEVICE)
    own.device = DEVICE
    counts = []
    for times in (1, 1, 3):
        batch = own.batch(questions * times, answers * times)
        WAITS.clear()
        own.model.zero_grad()
        loss = own.model(**batch).loss
        loss.backward()
        counts.append(Counter(WAITS))
    assert loss.item() == pytest.approx(expected.item(), rel=1e-3)
    assert own.greedy(own.batch(questions)).cpu().equal(ids)
    assert counts[1] == counts[2], counts[2] - counts[1]


def test_features_are_kept_and_read(build, pictures, tmp_path):
    pair = on_gpu(build())
    processor = enable(pair.model, pair.processor, Caching(folder=tmp_path))
    rows = asked(pictures, 4)
    expected = answer(pair.model, pair.processor, rows)
    prepare(pair.model, processor, rows)
    assert answer(pair.model, processor, rows) == expected


def test_studies_read_texts_there(build):
    pair = build()
    read = bare(pair.model.language_model), through(pair.model)
    expected = [passage_losses(one, [[5, 6, 7], [8, 9]]) for one in read]
    on_gpu(pair)
    found = [passage_losses(one, [[5, 6, 7], [8, 9]]) for one in read]
    assert found == [pytest.approx(losses, rel=1e-4) for losses in expected]
    add_soft_prompt(pair.model, 2)
    assert pair.model.adapter.vectors.device == DEVICE


def test_adapters_are_saved_and_loaded(build, tmp_path, pictures):
    pair = on_gpu(build())
    pair.model.save_adapter(tmp_path / "a")
    pair.model.load_adapter(tmp_path / "a", "again")
    assert {p.device for p in pair.model.task_adapters["again"].parameters()} == {DEVICE}
    pair.model.save_pretrained(tmp_path / "b")
    assert attention_picture(pair.model, pair.processor, asked(pictures, 1)[0]) is not None
    assert len(prompts(pair.model, pair.processor, asked(pictures, 2))) == 2


@pytest.mark.parametrize("method", METHODS)
def test_few_shot_classifiers_compute_there(method):
    rng = np.random.default_rng(0)
    text, y = rng.normal(size=(4, 16)).astype("float32"), np.arange(16) % 4
    x = (text[y] + 0.3 * rng.normal(size=(16, 16))).astype("float32")
    arguments = () if method is LinearProbeClassifier else (text,)
    expected = method(*arguments).fit(x, y).predict_proba(x)
    WAITS.clear()
    found = method(*arguments, device=DEVICE.type).fit(x, y).predict_proba(x)
    assert WAITS or method is LinearProbeClassifier
    np.testing.assert_allclose(found, expected, atol=1e-3)
