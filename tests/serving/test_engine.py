"""Iteration-level batching: company changes no answer, and nothing waits for ever."""

import threading
import time

import pytest

from crome.errors import InputError
from crome.model import slots
from crome.model.answering import answer
from crome.rows import Row
from crome.serving.engine.batch import Batch
from crome.serving.engine.caches import BoundedCache
from crome.serving.engine.local import LocalEngine
from crome.serving.engine.protocol import ClosedError, DeadlineError, RemovedError, Request
from crome.serving.engine.sampling import Sampling
from crome.serving.prompts import prompt_of

QUESTIONS = [
    "What is the colour?", "How many triangles are there? Answer with one word.",
    "Is there a star?", "yes", "Is there a circle in the picture? And now a longer question.",
]  # fmt: skip


class Caller:
    """Collects the pieces of one request."""

    def __init__(self):
        self.pieces = []
        self.done = threading.Event()

    def __call__(self, piece):
        self.pieces.append(piece)
        if piece.finish:
            self.done.set()

    def result(self, timeout=30):
        assert self.done.wait(timeout), "unanswered"
        return self.pieces[-1]

    @property
    def text(self):
        self.result()
        return "".join(piece.text for piece in self.pieces)

    @property
    def ids(self):
        self.result()
        return [token.id for piece in self.pieces for token in piece.tokens]


@pytest.fixture
def engine_of():
    engines = []

    def make(pair, **settings):
        engine = LocalEngine(pair.model, pair.processor, **settings)
        engine.start()
        engines.append(engine)
        return engine

    yield make
    for engine in engines:
        engine.close(30)


def rows_of(pictures):
    """Text-only, one picture, another, two pictures, and a second turn."""
    rows = [Row((), q, "", str(i)) for i, q in enumerate(QUESTIONS)]
    rows += [Row((pictures[i % 3],), q, "", str(i)) for i, q in enumerate(QUESTIONS)]
    rows.append(Row((pictures[1], pictures[2]), "Is there a star?", "", "two"))
    rows.append(Row((pictures[0],), "And now?", "", "turn", history=(("Is it?", "no"),)))
    return rows


def ask(engine, pair, row, adapter=None, **settings):
    caller = Caller()
    settings = {"max_new_tokens": 8, "end_ids": pair.processor.end_ids} | settings
    request = Request(prompt_of(pair.processor, row, adapter), caller, **settings)
    engine.submit(request)
    caller.request = request
    return caller


@pytest.fixture(params=["cache", "slots"])
def decoding(request, monkeypatch):
    """Behind a growing cache, and in slots with recorded steps."""
    if request.param == "cache":
        monkeypatch.setattr(slots, "RECORDERS", {})
    else:
        request.getfixturevalue("recording")
    return request.param


def add_adapters(pair, randomise, number):
    from crome.model.configuration import new_adapter

    for i in range(number):
        adapter = new_adapter(pair.model.config)
        randomise(adapter)
        pair.model.task_adapters[f"a{i}"] = adapter.eval().to(pair.model.device)
    return [None, *(f"a{i}" for i in range(number))]


@pytest.mark.gpu
@pytest.mark.parametrize(
    "language", ["llama", "vicuna", "tied", "qwen3", "gemma2", "gemma3", "mistral", "phi3"]
)
def test_mixed_adapters_answer_as_each_alone(
    build, pictures, randomise, engine_of, language, decoding
):
    """Tokens, not logits: in fp32 the two differ by rounding (1e-6), far from a tie here."""
    pair = build(language=language)
    names = add_adapters(pair, randomise, 4)
    asked = [(row, names[i % len(names)]) for i, row in enumerate(rows_of(pictures))]
    expected = [
        answer(pair.model, pair.processor, [row], max_new_tokens=8, adapter_names=[name])[0]
        for row, name in asked
    ]
    engine = engine_of(pair)
    callers = [ask(engine, pair, row, name) for row, name in asked]
    assert [caller.text for caller in callers] == expected
    assert len(set(expected)) > 4
    in_slots = decoding == "slots" and language not in ("gemma2", "gemma3", "mistral")
    assert (engine._slots is not None) == in_slots
    if in_slots:
        assert any(engine._slots._recordings.values())


@pytest.mark.gpu
def test_who_comes_later_joins_the_running_batch(build, pictures, engine_of, decoding):
    """A long answer goes on while short ones come and go, and all are as they are alone."""
    pair = build()
    rows = rows_of(pictures)
    expected = [answer(pair.model, pair.processor, [row], max_new_tokens=5)[0] for row in rows]
    long = answer(pair.model, pair.processor, [rows[0]], max_new_tokens=60, eos_token_id=-1)[0]
    engine = engine_of(pair, max_batch=3)
    first = ask(engine, pair, rows[0], max_new_tokens=60, end_ids=())
    callers = []
    for row in rows:
        while len(callers) > 4 and not callers[-3].done.is_set():
            time.sleep(0.001)
        callers.append(ask(engine, pair, row, max_new_tokens=5))
    assert [caller.text for caller in callers] == expected
    assert first.text == long
    # Shared steps: alone, the answers take 60 + 5 × 12 tokens, each but the first a step.
    assert engine.steps < 60 + 4 * len(rows)


@pytest.mark.gpu
def test_prefixes_are_read_once_and_change_nothing(build, pictures, engine_of, decoding):
    """Warm or cold, bit for bit; never across tenants or adapters."""
    pair = build()
    engine = engine_of(pair)
    row = rows_of(pictures)[5]

    def logprobs(**prompt):
        caller = Caller()
        request = Request(prompt_of(pair.processor, row, **prompt), caller, 6, Sampling(logprobs=0))
        engine.submit(request)
        caller.result()
        tokens = [t.logprob for p in caller.pieces for t in p.tokens]
        return tokens, request.prompt.reused

    cold, reused = logprobs()
    assert reused == 0
    warm, reused = logprobs()
    assert warm == cold
    assert reused > 4  # the patches and the prompt's head
    assert logprobs(tenant="other") == (cold, 0)
    features = engine.prefill.features  # not even these are shared: a hit can be timed
    assert (features.misses, features.hits) == (2, 1)


def test_caches_stay_within_their_bytes():
    cache = BoundedCache(100)
    for number in range(10):
        cache.put(number, "x", 30)
        cache.get(0)
    assert cache.bytes <= 100
    assert cache.get(0) == "x"  # used most
    assert cache.get(9) == "x"
    assert cache.get(1) is None
    cache.put("large", "x", 101)
    assert cache.get("large") is None
    cache.clear()
    assert (len(cache), cache.bytes) == (0, 0)


def test_seeded_draws_do_not_depend_on_company(build, pictures, engine_of):
    pair = build()
    engine = engine_of(pair)
    rows, sampling = rows_of(pictures), Sampling(1.0, seed=5)
    alone = ask(engine, pair, rows[6], sampling=sampling).ids
    crowd = [ask(engine, pair, row, sampling=Sampling(1.0)) for row in rows]
    among = ask(engine, pair, rows[6], sampling=sampling).ids
    assert among == alone
    assert all(caller.result().finish for caller in crowd)


def test_cancelled_and_late_requests_leave(build, pictures, engine_of):
    pair = build()
    engine = engine_of(pair, max_batch=1)
    rows = rows_of(pictures)
    running = ask(engine, pair, rows[0], max_new_tokens=200, end_ids=())
    late = ask(engine, pair, rows[1], deadline=time.monotonic() + 0.05)
    gone = ask(engine, pair, rows[2])
    gone.request.cancel()
    assert isinstance(late.result().error, DeadlineError)  # while the first still runs
    assert not running.done.is_set()
    running.request.cancel()
    assert ask(engine, pair, rows[3]).text
    assert not running.done.is_set()
    assert not gone.pieces
    slow = ask(engine, pair, rows[0], max_new_tokens=10**6, end_ids=(),
               deadline=time.monotonic() + 0.3)  # fmt: skip
    assert isinstance(slow.result().error, DeadlineError)
    assert slow.ids  # it had begun


def test_a_failure_is_told_to_those_it_hits_and_nobody_else(
    build, pictures, engine_of, monkeypatch
):
    pair = build()
    engine = engine_of(pair)
    rows = rows_of(pictures)
    broken = ask(engine, pair, rows[5], adapter="never loaded")
    assert isinstance(broken.result().error, RemovedError)
    expected = ask(engine, pair, rows[0]).text
    running = ask(engine, pair, rows[0], max_new_tokens=10**6, end_ids=())
    while not engine.running:
        time.sleep(0.001)
    monkeypatch.setattr(Batch, "step", lambda self: 1 / 0)
    assert isinstance(running.result().error, ZeroDivisionError)
    monkeypatch.undo()
    assert ask(engine, pair, rows[0]).text == expected


def test_slots_that_fail_are_given_up_and_no_answer_is_lost(
    build, pictures, engine_of, recording, monkeypatch
):
    pair = build()
    rows = rows_of(pictures)
    expected = [answer(pair.model, pair.processor, [row], max_new_tokens=8)[0] for row in rows]
    engine = engine_of(pair)
    taken = iter(range(100))
    own = slots.Slots.step

    def failing(self, ids, longest):
        if next(taken) == 3:
            raise RuntimeError("out of something")
        return own(self, ids, longest)

    monkeypatch.setattr(slots.Slots, "step", failing)
    assert [caller.text for caller in [ask(engine, pair, row) for row in rows]] == expected
    assert engine._slots is None


def test_closing_answers_what_was_taken(build, pictures, engine_of):
    pair = build()
    engine = engine_of(pair)
    callers = [ask(engine, pair, row) for row in rows_of(pictures)]
    engine.close(30)
    assert all(caller.result(0).finish in ("stop", "length") for caller in callers)
    with pytest.raises(ClosedError):
        ask(engine, pair, rows_of(pictures)[0])
    assert not engine.alive


def test_an_encoder_decoder_is_refused(build):
    pair = build(language="t5")
    with pytest.raises(InputError, match="keys and values alone"):
        LocalEngine(pair.model, pair.processor)


def test_no_request_is_lost_between_threads(build, pictures, engine_of):
    """The queue stays the one that a thread which is just adding to it has in its hands."""
    pair = build()
    engine = engine_of(pair)
    queue, row = engine._intake.waiting, rows_of(pictures)[0]
    callers, lock = [], threading.Lock()

    def many():
        for _ in range(25):
            caller = ask(engine, pair, row, max_new_tokens=1)
            with lock:
                callers.append(caller)

    threads = [threading.Thread(target=many) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(caller.result().finish for caller in callers)
    assert engine._intake.waiting is queue
