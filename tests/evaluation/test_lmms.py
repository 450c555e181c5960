"""The plug-in of lmms-eval: behind a stand-in of its interface, and whole where it is installed.

The stand-in has what lmms-eval 0.7.3 documents: the base class `lmms` and `GenerationResult`. The
runs through the real evaluator need the extra (`pip install crome[lmms-eval]`).
"""

import sys
import types
from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import datasets
import pytest
from filelock import FileLock
from PIL import ImageFile

from crome.errors import InputError
from crome.model.answering import answer, rank
from crome.rows import Row

INSTALLED = find_spec("lmms_eval") is not None
QUESTION = "What is the colour of the large square?"


@dataclass
class GenerationResult:
    text: Any
    token_counts: Any = None


class Lmms:
    is_simple = True

    def __init__(self) -> None:
        self.task_dict: dict[str, Any] = {}


@pytest.fixture(autouse=True)
def cut_pictures_stay_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """lmms-eval has Pillow accept cut pictures, for as long as the process lives."""
    monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", False)


@pytest.fixture
def plugin(monkeypatch: pytest.MonkeyPatch) -> Any:
    """The plug-in's module on the real interface, or on the stand-in where it is not installed."""
    if not INSTALLED:
        names = ("lmms_eval", "lmms_eval.api", "lmms_eval.api.instance", "lmms_eval.api.model")
        modules = {name: types.ModuleType(name) for name in names}
        modules["lmms_eval.api.instance"].GenerationResult = GenerationResult
        modules["lmms_eval.api.model"].lmms = Lmms
        for name, module in modules.items():
            monkeypatch.setitem(sys.modules, name, module)
        monkeypatch.delitem(sys.modules, "crome.evaluation.toolkits.lmms_eval_model", raising=False)
    import crome.evaluation.toolkits.lmms_eval_model as module

    return module


@pytest.fixture
def model(plugin: Any, build: Callable[..., Any], pictures: list, monkeypatch) -> Any:
    """The plug-in's model on tiny towers, with a task of two records."""
    pair = build()
    monkeypatch.setattr(plugin, "load", lambda *_: (pair.model, pair.processor))
    model = plugin.CromeForLmmsEval("anything", batch_size=2)
    model.task_dict = {"t": {"test": [{"image": pictures[0]}, {"image": pictures[1]}]}}
    return model


def request(second: Any, record: int, question: str = QUESTION) -> Any:
    return SimpleNamespace(args=(question, second, lambda doc: [doc["image"]], record, "t", "test"))


def row(model: Any, record: int, question: str = QUESTION) -> Row:
    return Row((model.task_dict["t"]["test"][record]["image"],), question, "", str(record))


def test_generated_answers_are_those_of_the_prompt_path(model: Any) -> None:
    settings = {"max_new_tokens": 4, "temperature": 0, "do_sample": False, "until": ["\n\n"]}
    said = model.generate_until([request(settings, 0), request(settings, 1)])
    rows = [row(model, 0), row(model, 1)]
    assert said == answer(model.model, model.processor, rows, max_new_tokens=4)
    assert all(type(text) is str for text in said)


def test_answers_end_at_a_stop(plugin: Any) -> None:
    assert plugin._until("yes\n\nQuestion: next", ["\n\n"]) == "yes"
    assert plugin._until("yes. no", [".", ""]) == "yes"


def test_greedy_settings_leave_no_sampling(plugin: Any) -> None:
    settings = {"temperature": 0, "top_p": 1.0, "num_beams": 1, "until": "\n"}
    assert plugin._decoding(settings) == ({"max_new_tokens": 128}, ["\n"])
    beams = {"num_beams": 5, "max_new_tokens": 10, "do_sample": False}
    assert plugin._decoding(beams) == ({"num_beams": 5, "max_new_tokens": 10}, [])


def test_candidates_get_losses_in_the_form_that_gets_through(model: Any) -> None:
    """A loss, since the evaluator takes the smallest; wrapped, since it makes tuples strings."""
    options = [("blue", " a red star"), ("yes", "no", "12")]
    requests = [request(o, record) for record, of in enumerate(options) for o in of]
    results = model.loglikelihood(requests)
    assert len(results) == 5
    assert all(type(r).__name__ == "GenerationResult" for r in results)
    expected = rank(
        model.model, model.processor, [row(model, 0), row(model, 1)],
        [("blue", "a red star"), ("yes", "no", "12")],
    )  # fmt: skip
    assert [r.text for r in results] == [(loss, False) for of in expected for loss in of]
    assert all(loss > 0 for of in expected for loss in of)


def test_a_device_that_is_not_here_is_refused(plugin: Any, build, monkeypatch) -> None:
    pair = build()
    monkeypatch.setattr(plugin, "load", lambda *_: (pair.model, pair.processor))
    plugin.CromeForLmmsEval("x", device="cpu")
    with pytest.raises(InputError, match="device is 'tpu'"):
        plugin.CromeForLmmsEval("x", device="tpu")


# ---------------------------------------------------------------------- the real evaluator

needs_lmms_eval = pytest.mark.skipif(
    not INSTALLED, reason="lmms-eval is not installed: pip install crome[lmms-eval]"
)
MME_LOCAL = """
include: {tasks}/mme/mme.yaml
task: mme_local
dataset_path: {data}
dataset_kwargs: {{load_from_disk: true}}
"""
SEED_LOCAL = """
include: {tasks}/seedbench/seedbench_ppl.yaml
task: seed_local
dataset_path: {data}
dataset_kwargs: {{load_from_disk: true}}
"""


@needs_lmms_eval
def test_the_evaluator_runs_both_answer_modes_on_local_records(
    build: Callable[..., Any], pictures: list, tmp_path: Path, monkeypatch
) -> None:
    """Four fabricated records a task, through entry point, evaluator and aggregation."""
    # The evaluator makes all locks on one file the same lock, for as long as the process lives.
    monkeypatch.setattr(type(FileLock), "__call__", type(FileLock).__call__)
    import lmms_eval.tasks
    from lmms_eval.evaluator import simple_evaluate
    from lmms_eval.models import MODEL_REGISTRY_V2
    from lmms_eval.tasks import TaskManager

    from crome.evaluation.toolkits.lmms_eval import manifest

    MODEL_REGISTRY_V2.register_manifest(manifest(), overwrite=True)
    pair = build()
    pair.model.save_pretrained(tmp_path / "base")
    pair.processor.save_pretrained(tmp_path / "base")
    mme = [
        {"question_id": f"{k // 2}.png", "image": pictures[k // 2], "answer": a,
         "question": "Is there a star? Please answer yes or no.", "category": "existence"}
        for k, a in enumerate(["Yes", "No"] * 2)
    ]  # fmt: skip
    choices = {"choice_a": "blue", "choice_b": "red", "choice_c": "no", "choice_d": "12"}
    seed = [
        {"question_id": str(k), "image": [pictures[k]], "question": QUESTION, "answer": "ABCD"[k],
         "data_type": "image", **choices}
        for k in range(4)
    ]  # fmt: skip
    tasks = Path(lmms_eval.tasks.__file__).parent
    for name, rows, template in (("mme", mme, MME_LOCAL), ("seed", seed, SEED_LOCAL)):
        data = tmp_path / name
        datasets.DatasetDict({"test": datasets.Dataset.from_list(rows)}).save_to_disk(str(data))
        (tmp_path / f"{name}_local.yaml").write_text(template.format(tasks=tasks, data=data))
    monkeypatch.chdir(tmp_path)
    results = simple_evaluate(
        model="crome",
        model_args=f"checkpoint={tmp_path / 'base'},dtype=float32",
        tasks=["mme_local", "seed_local"],
        batch_size=2,
        device="cpu",
        task_manager=TaskManager(include_path=str(tmp_path)),
    )
    assert results is not None
    points = results["results"]["mme_local"]["mme_perception_score,none"]
    assert 0 <= points <= 200
    rows = [
        Row((record["image"][0],), f"{QUESTION} Answer :", "", record["question_id"])
        for record in seed
    ]
    losses = rank(pair.model, pair.processor, rows, [tuple(choices.values())] * 4)
    best = [of.index(min(of)) for of in losses]
    right = sum(letter == "ABCD"[k] for letter, k in zip("ABCD", best, strict=True))
    assert results["results"]["seed_local"]["acc,none"] == right / 4


@needs_lmms_eval
def test_cross_check_scores_the_same_predictions() -> None:
    from crome.evaluation.predictions import Prediction
    from crome.evaluation.tasks import get_task
    from crome.evaluation.toolkits.cross_check import CHECKS, cross_check

    options = {"A": "red", "B": "blue"}
    records = [{"id": k, "options": options, "answer": "B", "question": "?"} for k in "ab"]
    said = {"a": Prediction("a", response="B. blue"), "b": Prediction("b", response="A")}
    toolkit, theirs = cross_check(get_task("ai2d"), records, said)
    assert toolkit.startswith("lmms-eval-0.")
    assert theirs == {"exact_match": 0.5}
    assert len(CHECKS) == 8


def test_cross_check_names_what_it_cannot_do() -> None:
    from crome.evaluation.tasks import get_task
    from crome.evaluation.toolkits.cross_check import cross_check

    with pytest.raises(InputError, match=r"scores mme, mmmu.*; mm-vet needs"):
        cross_check(get_task("mm-vet"), [], {})
    if not INSTALLED:
        with pytest.raises(InputError, match=r"install crome\[lmms-eval\]"):
            cross_check(get_task("ai2d"), [], {})
    with pytest.raises(InputError, match="not for"):
        cross_check(get_task("ai2d"), [{"id": "a"}], {})
