"""Evaluations in processes of their own, as torchrun starts them."""

import multiprocessing
import os
import socket
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))  # the server finds this file by its name
CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(["crome.evaluation.evaluate", "runs"])


def evaluate_in(processes: int, out: Path, **settings: Any) -> list[int | None]:
    """Evaluates in so many processes and returns their exit codes."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    started = [
        CONTEXT.Process(target=work, args=(rank, processes, port, out, settings))
        for rank in range(processes)
    ]
    for process in started:
        process.start()
    for process in started:
        process.join(150)
        process.kill()
    return [process.exitcode for process in started]


def work(rank: int, processes: int, port: int, out: Path, settings: Any) -> None:
    """One process of a run."""
    os.environ |= {
        "HF_HUB_OFFLINE": "1", "RANK": str(rank), "LOCAL_RANK": str(rank),
        "WORLD_SIZE": str(processes), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port),
    }  # fmt: skip
    from crome.errors import InputError
    from crome.evaluation.evaluate import evaluate

    try:
        evaluate(out, **settings)
    except InputError:
        sys.exit(2)
