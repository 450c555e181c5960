"""Runs of the verb in processes of their own, forked from one that has imported everything.

Many processes talk over gloo on the CPU, under the variables that torchrun sets. A process group
starts in a second from the fork server, against half a minute with fresh interpreters.
"""

import multiprocessing
import os
import signal
import socket
import sys
import threading
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))  # the server finds this file by its name
CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(["crome.training.train", "accelerate", "processes"])


def train_in(processes: int, out: Path, *, die: Any = None, **settings: Any) -> list[int | None]:
    """Trains in so many processes and returns their exit codes.

    Args:
        processes: How many.
        out: The run's folder.
        die: Seconds after a first checkpoint appears at which each process is killed (-9), or the
            name of a function of the trainer's in whose place it is.
        settings: Arguments of `train`.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    started = [
        CONTEXT.Process(target=work, args=(rank, processes, port, out, die, settings))
        for rank in range(processes)
    ]
    for process in started:
        process.start()
    for process in started:
        process.join(120)
        process.kill()
    return [process.exitcode for process in started]


def work(rank: int, processes: int, port: int, out: Path, die: Any, settings: Any) -> None:
    """One process of a run."""
    os.environ["HF_HUB_OFFLINE"] = "1"
    if processes > 1:
        os.environ |= {
            "RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(processes),
            "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port),
        }  # fmt: skip
    from crome.training import trainer
    from crome.training.train import train

    if isinstance(die, str):
        if die == "replace":  # of the trainer's own, not of every file that is written
            trainer.os = SimpleNamespace(**vars(os) | {"replace": suicide})
        else:
            setattr(trainer, die, suicide)
    elif die is not None:
        threading.Thread(target=watch, args=(out, die), daemon=True).start()
    train(out, **settings)


def suicide(*_: Any, **__: Any) -> None:
    """Ends this process as a power cut would."""
    os.kill(os.getpid(), signal.SIGKILL)


def watch(out: Path, seconds: float) -> None:
    """Ends this process some time after its first checkpoint."""
    while not list(out.glob("checkpoint-*")):
        time.sleep(0.005)
    time.sleep(seconds)
    suicide()
