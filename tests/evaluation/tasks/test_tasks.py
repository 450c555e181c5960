from pathlib import Path

import pytest

from crome.errors import InputError
from crome.evaluation.task import Task
from crome.evaluation.tasks import TASKS, get_task, read_records


def test_every_listed_task_loads_under_its_name() -> None:
    tasks = {name: get_task(name) for name in TASKS}
    assert len(tasks) >= 11
    for name, task in tasks.items():
        assert isinstance(task, Task)
        assert task.name == name
        assert task.protocols or task.judged


def test_unknown_task_is_named() -> None:
    with pytest.raises(InputError, match="task 'mmu' is unknown: choose from mmmu, mme"):
        get_task("mmu")


HOSTILE = [
    "",
    "\n\n",
    "{}\n",
    "[]\n",
    "null\n",
    "7\n",
    '"text"\n',
    '{"id": 1}\n',
    '{"question_id": null, "question": null, "answer": null, "options": 3, "index": "x"}\n',
    '{"id": "a", "question": "q", "answer": "A", "options": "[", "choices": 5}\n',
    '{"question_id": "1", "gt_answer": "A", "question_type_id": "first"}\n',
    '{"id": "a", "conversations": []}\n',
    '{"index": 1, "question": "q", "A": "x", "answer": "A", "image": "not base 64"}\n',
    '{"question_id": "1", "answers": []}\n',
    "\x00\x01",
]


@pytest.mark.parametrize("name", TASKS)
@pytest.mark.parametrize("suffix", [".jsonl", ".json", ".tsv", ".parquet"])
def test_hostile_references_are_wrong_input(tmp_path: Path, name: str, suffix: str) -> None:
    """Whatever a references file holds, it is scored as records or refused by its name."""
    task, file = get_task(name), tmp_path / f"references{suffix}"
    for content in HOSTILE:
        file.write_text(content)
        try:
            records = read_records(task, str(file))
        except InputError:
            continue
        assert records
        assert all(isinstance(record["id"], str) for record in records), content
