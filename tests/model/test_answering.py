"""Ranking rows: one loss for each option, in order, whatever stands beside it."""

from dataclasses import replace

import pytest

from crome.errors import InputError
from crome.model.answering import answer, rank
from crome.rows import Row

OPTIONS = [["blue", "a red star"], ["yes", "no", "yes, there is"], ["1", "2"]]


@pytest.fixture
def asked(pictures):
    return [
        Row((pictures[0],), "What is the colour?", "", "a"),
        Row((pictures[0],), "Is there a star?", "", "b", history=(("What?", "no"),)),
        Row((), "How many?", "", "c"),
    ]


@pytest.mark.parametrize("language", ["llama", "t5"])
def test_a_batch_ranks_as_its_rows_do(build, asked, language):
    pair = build(language=language)
    together = rank(pair.model, pair.processor, asked, OPTIONS)
    assert [len(losses) for losses in together] == [2, 3, 2]
    for row, options, losses in zip(asked, OPTIONS, together, strict=True):
        (alone,) = rank(pair.model, pair.processor, [row], [options])
        assert losses == pytest.approx(alone, rel=1e-5)  # fp32 sums in another order


def test_sums_or_means_over_tokens(build, asked):
    pair = build()
    sums = rank(pair.model, pair.processor, asked, OPTIONS)
    means = rank(pair.model, pair.processor, asked, OPTIONS, per_token=True)
    for options, total, mean in zip(OPTIONS, sums, means, strict=True):
        lengths = [len(pair.processor.answer_ids(option)) for option in options]
        expected = [t / n for t, n in zip(total, lengths, strict=True)]
        assert mean == pytest.approx(expected, rel=1e-6)


def test_no_options_are_refused(build, asked):
    pair = build()
    with pytest.raises(InputError, match="row 2"):
        rank(pair.model, pair.processor, asked, [["a"], ["b"], []])


def test_a_row_that_is_too_long_is_named_by_its_id(build, asked):
    pair = build()
    rows = [*asked, replace(asked[0], id="endless", history=(("What? " * 100, "no"),) * 2)]
    with pytest.raises(InputError, match=r"row endless has .*the language model reads 256"):
        answer(pair.model, pair.processor, rows)
    with pytest.raises(InputError, match=r"row endless has .*the language model reads 256"):
        rank(pair.model, pair.processor, rows, [*OPTIONS, ["a", "b"]])
