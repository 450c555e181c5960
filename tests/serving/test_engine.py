"""Iteration-level batching: company changes no answer, and nothing waits for ever."""

import threading

import pytest

from crome.data.rows import Row
from crome.serving.chat import answer, prompt_of
from crome.serving.engine import Engine, Request

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
        engine = Engine(pair.model, pair.processor, **settings)
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
    request = Request(
        prompt_of(pair.processor, row, adapter), caller,
        end_ids=pair.processor.end_ids, **{"max_new_tokens": 8} | settings,
    )  # fmt: skip
    engine.submit(request)
    caller.request = request
    return caller


def add_adapters(pair, randomise, number):
    from crome.model.modeling import new_adapter

    for i in range(number):
        adapter = new_adapter(pair.model.config)
        randomise(adapter)
        pair.model.task_adapters[f"a{i}"] = adapter.eval()
    return [None, *(f"a{i}" for i in range(number))]


@pytest.mark.parametrize(
    "language", ["llama", "vicuna", "tied", "qwen3", "gemma2", "gemma3", "mistral", "phi3"]
)
def test_mixed_adapters_answer_as_each_alone(build, pictures, randomise, engine_of, language):
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
