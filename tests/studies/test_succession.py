"""Tasks one after the other: what goes on, what starts anew, and what is kept."""

import json

import pytest

from crome.model.tensors import fingerprint
from crome.rows import Row
from crome.studies import succession as module
from crome.studies.succession import BEFORE, NAMES, follow, succession

SETTINGS = {"steps": 3, "batch_size": 4, "learning_rate": 1e-2, "seed": 0}


@pytest.fixture
def tasks(pictures, monkeypatch):
    def task(word):
        return lambda split: [
            Row((pictures[n % 4],), f"What {word} is it?", word, f"{word}/{split}/{n}")
            for n in range(8)
        ]

    made = {word: task(word) for word in ("blue", "round")}
    monkeypatch.setattr(module, "TASKS", made)
    return {name: rows("test") for name, rows in made.items()}


def test_one_adapter_goes_on_and_adapters_each_start_anew(build, tasks, monkeypatch):
    starts: dict[str, list[str]] = {}
    for method in ("adapter", "adapters"):
        pair = build()
        learn, seen = module.tune, starts.setdefault(method, [])

        def watched(model, *given, learn=learn, seen=seen, **settings):
            seen.append(fingerprint(model.adapter.state_dict()))
            learn(model, *given, **settings)
            seen.append(fingerprint(model.adapter.state_dict()))

        with monkeypatch.context() as patch:
            patch.setattr(module, "tune", watched)
            stages = follow(pair.model, pair.processor, method, tasks, **SETTINGS)
        assert list(stages) == [BEFORE, "blue", "round"]
        assert all(list(found) == ["blue", "round"] for found in stages.values())
    first, after_first, second, last = starts["adapter"]
    assert first != after_first == second != last
    first, after_first, second, last = starts["adapters"]
    assert first == second
    assert after_first != last


def test_an_adapter_each_keeps_what_it_answered(build, tasks, monkeypatch):
    """The first task is answered by its own adapter, whatever was learnt since."""
    used = []

    def scores(model, processor, rows):
        used.append((rows[0].answer, fingerprint(model.adapter.state_dict())))
        return [1.0] * len(rows)

    monkeypatch.setattr(module, "exact_matches", scores)
    pair = build()
    follow(pair.model, pair.processor, "adapters", tasks, **SETTINGS)
    blue = [adapter for task, adapter in used if task == "blue"]
    other = [adapter for task, adapter in used if task == "round"]
    assert blue[0] != blue[1] == blue[2]
    assert other[0] == other[1] == blue[0] != other[2]


def test_the_command_and_again(build, tasks, tmp_path, monkeypatch, capsys):
    pytest.importorskip("peft")
    loaded = []

    def load(*_, **__):
        loaded.append(build())
        return loaded[-1].model, loaded[-1].processor

    monkeypatch.setattr(module, "load", load)
    settings = {"steps": 3, "batch_size": 4, "test_rows": 8, "dtype": "float32"}
    succession(tmp_path, **settings)
    told = json.loads(capsys.readouterr().out)
    assert list(told) == list(NAMES.values())
    assert len(loaded) == 3
    written = json.loads((tmp_path / "succession.json").read_text())["methods"]
    assert set(written[NAMES["lora"]]) == {BEFORE, "blue", "round"}
    succession(tmp_path, **settings)
    assert json.loads(capsys.readouterr().out) == told
    assert len(loaded) == 3


def test_three_tasks_are_packaged():
    assert len(module.TASKS) == 3
    assert all(callable(task) for task in module.TASKS.values())
