import json
from pathlib import Path

import pytest

from crome.errors import InputError
from crome.evaluation.tasks import llava_bench


def released(folder: Path, n: int = 3) -> str:
    categories = llava_bench.CATEGORIES
    files = {
        "questions": [
            {"question_id": k, "image": "1.jpg", "text": f"q{k}", "category": categories[k % 3]}
            for k in range(n)
        ],
        "context": [{"id": "1", "image": "1.jpg", "caption": "a red kite"}],
        "answers_gpt4": [{"question_id": k, "text": f"reference {k}"} for k in range(n)],
    }
    for name, rows in files.items():
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    return str(folder)


def test_reads_the_released_folder(tmp_path: Path) -> None:
    record = llava_bench.LLAVA_BENCH.read(released(tmp_path))[1]
    assert record == {
        "id": "1",
        "question": "q1",
        "category": "detail",
        "context": "a red kite",
        "reference": "reference 1",
        "images": ("images/1.jpg",),
    }
    (tmp_path / "context.jsonl").write_text('{"image": "2.jpg", "caption": "x"}\n')
    with pytest.raises(InputError, match="question 0 has no description"):
        llava_bench.LLAVA_BENCH.read(str(tmp_path))


def test_messages(tmp_path: Path) -> None:
    record = llava_bench.LLAVA_BENCH.read(released(tmp_path))[0]
    system, user = llava_bench.messages(record, "mine", None, 0)
    assert system == {"role": "system", "content": llava_bench.SYSTEM}
    assert user["content"] == (
        "[Context]\na red kite\n\n[Question]\nq0\n\n"
        "[Assistant 1]\nreference 0\n\n[End of Assistant 1]\n\n"
        "[Assistant 2]\nmine\n\n[End of Assistant 2]\n\n"
        f"[System]\n{llava_bench.OWN_PROMPT}\n\n"
    )


def test_official_wording_is_read_from_its_file(tmp_path: Path) -> None:
    record = llava_bench.LLAVA_BENCH.read(released(tmp_path))[0]
    file = tmp_path / "rule.json"
    rule = {f"llava_bench_{c}": {"role": "Bot", "prompt": "Rate."} for c in ("conv", "detail")}
    file.write_text(json.dumps(rule))
    with pytest.raises(InputError, match="no rule for the categories complex"):
        llava_bench.rules(str(file))
    file.write_text(json.dumps(rule | {"llava_bench_complex": {"prompt": "Rate."}}))
    _, user = llava_bench.messages(record, "mine", llava_bench.rules(str(file)), 0)
    assert "[Bot 2]\nmine" in user["content"]
    assert user["content"].endswith("[System]\nRate.\n\n")


@pytest.mark.parametrize(
    ("reply", "verdict"),
    [
        ("8 7.5\nBecause.", (8.0, 7.5)),
        ("8, 7", (8.0, 7.0)),
        ("8 7 6", None),
        ("Assistant 1: 8, Assistant 2: 7", None),
        ("8", None),
        ("11 3", None),
        ("\n8 7", None),
        ("", None),
    ],
)
def test_parse_verdict(reply: str, verdict: tuple[float, float] | None) -> None:
    assert llava_bench.parse_verdict(reply) == verdict


def test_tally_is_a_ratio_of_means(tmp_path: Path) -> None:
    records = llava_bench.LLAVA_BENCH.read(released(tmp_path, 6))
    run = {r["id"]: (10.0, 5.0) for r in records} | {"0": (2.0, 5.0)}
    scores = llava_bench.tally_verdicts("judge", records, [run, run])
    values = {name: m.value for name, m in scores.metrics.items()}
    assert values["llava-w/judgex2"] == pytest.approx(100 * 5 / 8.667)  # means to three decimals
    assert values["llava-w/judgex2/conv"] == pytest.approx(100 * 5 / 6)
    assert values["llava-w/judgex2/run-2/detail"] == 50
    low, high = scores.metrics["llava-w/judgex2"].interval or (0, 0)
    assert low < values["llava-w/judgex2"] < high


def test_official_reviews_without_a_verdict_are_missing(tmp_path: Path) -> None:
    file = tmp_path / "reviews.jsonl"
    file.write_text(
        '{"question_id": 0, "tuple": [8.0, 7.0]}\n{"question_id": 1, "tuple": [-1, -1]}\n'
    )
    assert llava_bench.recorded([str(file)]) == ("recorded", [{"0": (8.0, 7.0)}])
