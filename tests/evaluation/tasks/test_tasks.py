import pytest

from crome.errors import InputError
from crome.evaluation.task import Task
from crome.evaluation.tasks import TASKS, get_task


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
