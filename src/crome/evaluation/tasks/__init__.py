"""The benchmarks, by name; each is one file, imported when it is asked for."""

from importlib import import_module

from crome.errors import InputError
from crome.evaluation.sources import LAYOUT_ERRORS
from crome.evaluation.task import Record, Task

# name → (module of this package, name of the Task in it)
TASKS = {
    "mmmu": ("mmmu", "MMMU"),
    "mme": ("mme", "MME"),
    "mmbench": ("mmbench", "MMBENCH"),
    "mm-vet": ("mm_vet", "MM_VET"),
    "hallusionbench": ("hallusionbench", "HALLUSIONBENCH"),
    "llava-w": ("llava_bench", "LLAVA_BENCH"),
    "seed-image": ("seed_bench", "SEED_IMAGE"),
    "seed-all": ("seed_bench", "SEED_ALL"),
    "scienceqa": ("scienceqa", "SCIENCEQA"),
    "scienceqa-img": ("scienceqa", "SCIENCEQA_IMG"),
    "ai2d": ("ai2d", "AI2D"),
    "vqav2": ("vqav2", "VQAV2"),
    "captions": ("captions", "CAPTIONS"),
    "pope": ("pope", "POPE"),
    "textvqa": ("vqav2", "TEXTVQA"),
    "gqa": ("gqa", "GQA"),
    "chartqa": ("chartqa", "CHARTQA"),
    "docvqa": ("docvqa", "DOCVQA"),
    "infovqa": ("docvqa", "INFOVQA"),
    "mmstar": ("mmstar", "MMSTAR"),
    "mathvista": ("mathvista", "MATHVISTA"),
    "realworldqa": ("realworldqa", "REALWORLDQA"),
    "rows": ("rows", "ROWS"),
}


def get_task(name: str) -> Task:
    """The task of that name.

    Raises:
        InputError: There is none.
    """
    if name not in TASKS:
        raise InputError(f"task {name!r} is unknown: choose from {', '.join(TASKS)}.")
    module, attribute = TASKS[name]
    return getattr(import_module(f"{__name__}.{module}"), attribute)


def read_records(task: Task, source: str) -> list[Record]:
    """Reads a task's records.

    Raises:
        InputError: There are none, or they are not in a layout that the task knows.
    """
    try:
        records = task.read(source)
    except InputError:
        raise
    except LAYOUT_ERRORS as error:
        raise InputError(
            f"{source}: not in a layout of {task.name} that is known here "
            f"({type(error).__name__}: {error})."
        ) from error
    if not records:
        raise InputError(f"{source}: none of its records belongs to {task.name}.")
    return records
