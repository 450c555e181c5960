"""The engine that answers by a model's own `generate`: batches, adapters, sampling, failures."""

import itertools
import queue
import sys
import time
from pathlib import Path

import pytest
import torch
from PIL import Image

from crome.attached import attach
from crome.errors import InputError
from crome.model.answering import answer
from crome.rows import Row
from crome.serving.engine.batch import Row as EngineRow
from crome.serving.engine.protocol import ClosedError, DeadlineError, RemovedError, Request
from crome.serving.engine.sampling import Sampling
from crome.serving.engine.whole import GenerateEngine
from crome.serving.prompts import prompt_of

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
if not BENCHMARKS.is_dir():
    pytest.skip("benchmarks/ is not part of this installation", allow_module_level=True)
sys.path.insert(0, str(BENCHMARKS))

import tiny_vlms  # noqa: E402

TOKENS = 6


@pytest.fixture(scope="module", params=["llava", "gemma3"])
def pair(request, tmp_path_factory):
    """A tiny model with two adapters that change its answers."""
    model, processor = attach(*tiny_vlms.build(request.param), bottleneck=8)
    folder = tmp_path_factory.mktemp("adapters")
    for seed, name in enumerate("ab"):
        torch.manual_seed(seed)
        torch.nn.init.normal_(model.adapter.up["shared"].weight, std=2.0)
        model.save_adapter(folder / name)
    torch.nn.init.zeros_(model.adapter.up["shared"].weight)
    return model.eval(), processor, folder


@pytest.fixture
def engine(pair):
    model, processor, folder = pair
    engine = GenerateEngine(model, processor, max_batch=8)
    for name in "ab":
        engine.add_adapter(name, folder / name)
    yield engine
    engine.close(30)
    for name in list(model.task_adapters):
        model.delete_adapter(name)


def rows():
    small, wide = Image.new("RGB", (50, 50), "red"), Image.new("RGB", (90, 40), "blue")
    return [
        Row((small,), "What is it?", "", "1"),
        Row((wide,), "What colour is it, and why would you say that?", "", "2"),
        Row((), "Is it text?", "", "3"),
        Row((small,), "And now?", "", "4", history=(("What is it?", "red"),)),
    ]


def ask(engine, row, adapter=None, **settings):
    """Submits a row; its pieces come through the queue."""
    pieces = queue.Queue()
    prompt = prompt_of(engine.processor, row, adapter)
    ends = tuple(engine.processor.end_ids)
    request = Request(prompt, pieces.put, **{"max_new_tokens": TOKENS, "end_ids": ends, **settings})
    engine.submit(request)
    return request, pieces


def read(pieces, timeout=60):
    """All text of an answer, and how it ended."""
    text = ""
    while True:
        piece = pieces.get(timeout=timeout)
        text += piece.text
        if piece.finish is not None:
            return text, piece


def test_a_batch_of_adapters_answers_as_each_alone(pair, engine):
    model, processor, _ = pair
    names = [None, "a", "b", "a"]
    expected = [
        answer(model, processor, [row], max_new_tokens=TOKENS, adapter_names=[name])[0]
        for row, name in zip(rows(), names, strict=True)
    ]
    waiting = [ask(engine, row, name)[1] for row, name in zip(rows(), names, strict=True)]
    engine.start()
    assert [read(pieces)[0] for pieces in waiting] == expected
    assert len(set(expected)) > 1


@pytest.mark.parametrize(
    "settings",
    [
        {"repetition_penalty": 1.8}, {"no_repeat_ngram_size": 2}, {"min_new_tokens": 4},
        {"suppress_tokens": [70, 71, 72]}, {"begin_suppress_tokens": [70, 80]},
        {"exponential_decay_length_penalty": (1, 2.0)},
        {"num_beams": 2, "num_return_sequences": 1, "return_dict_in_generate": True},
    ],
)  # fmt: skip
def test_the_models_own_settings_are_obeyed(pair, engine, monkeypatch, settings):
    """As by `answer`, also where openings are read once; beams alone are not for a server."""
    model, processor, _ = pair
    plain = {"num_beams": 1, "return_dict_in_generate": False} if "num_beams" in settings else {}
    first = [answer(model, processor, [row], max_new_tokens=TOKENS)[0] for row in rows()]
    ends = [processor.answer_ids(text)[0] for text in first if text]
    monkeypatch.setitem(vars(processor), "end_ids", [*processor.end_ids, *ends[:1]])
    for name, value in settings.items():
        monkeypatch.setattr(model.vlm.generation_config, name, value)
    expected = []
    for row in rows():
        whole = {"max_new_tokens": TOKENS, "do_sample": False, **processor.generation_kwargs}
        (ids,) = model.generate(**processor.encode([row]), **whole, **plain).tolist()
        own = list(itertools.takewhile(lambda token: token not in processor.end_ids, ids))
        expected += processor.batch_decode([own])
    waiting = [ask(engine, row, sampling=engine.sampling)[1] for row in rows()]
    engine.start()
    assert [read(pieces)[0] for pieces in waiting] == expected


def test_requests_have_their_own_lengths_and_draws(engine):
    row = rows()[0]
    warm = Sampling(temperature=1.0, seed=3)
    asked = [
        ask(engine, row, max_new_tokens=1),
        ask(engine, row, sampling=warm),
        ask(engine, row, sampling=warm),
    ]
    engine.start()
    short, first, second = (read(pieces) for _, pieces in asked)
    assert short[1].finish == "length"
    assert first[0] == second[0]


def test_who_left_or_is_late_ends_no_other(engine):
    gone, _ = ask(engine, rows()[0])
    gone.cancel()
    _, late = ask(engine, rows()[1], deadline=time.monotonic() - 1)
    _, pieces = ask(engine, rows()[2])
    engine.start()
    assert isinstance(read(late)[1].error, DeadlineError)
    assert read(pieces)[1].finish in ("stop", "length")


def test_a_request_that_fails_ends_no_other(engine):
    _, broken = ask(engine, rows()[0], end_ids=None)
    _, whole = ask(engine, rows()[0])
    engine.start()
    assert read(broken)[1].finish == "error"
    assert read(whole)[1].finish in ("stop", "length")
    assert engine.alive


def test_a_request_that_cannot_begin_ends_no_other(engine, monkeypatch):
    def row_of(request, *rest):
        if request.max_new_tokens == 1:
            raise ValueError("no row can be made of it")
        return EngineRow(request, *rest)

    monkeypatch.setattr("crome.serving.engine.whole.Row", row_of)
    _, broken = ask(engine, rows()[0], max_new_tokens=1)
    _, whole = ask(engine, rows()[0])
    engine.start()
    assert read(broken)[1].finish == "error"
    assert read(whole)[1].finish in ("stop", "length")
    assert engine.alive


def test_a_removed_adapter_is_told(engine):
    _, pieces = ask(engine, rows()[0], "a")
    engine.remove_adapter("a")
    engine.start()
    assert isinstance(read(pieces)[1].error, RemovedError)


def test_what_it_cannot_do_is_said(engine):
    engine.start()
    with pytest.raises(InputError, match="no queries"):
        engine.attention(prompt_of(engine.processor, rows()[0]))
    engine.close(30)
    with pytest.raises(ClosedError):
        ask(engine, rows()[0])
