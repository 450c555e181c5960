"""Processes that prepare the same features together, over gloo, forked from one that is ready."""

import json
import multiprocessing
import os
import socket
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))  # the server finds this file by its name
CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(["crome.features.verbs", "crome.checkpoints.loading", "sharing"])

CASES = {"whole": (20.0, False), "over its limit": (1e-6, False), "one fails": (20.0, True)}
"""GB that the cache may take, and whether the second process cannot fill it."""


def run(processes: int, folder: Path) -> list[int | None]:
    """Runs all cases in so many processes, and returns their exit codes."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    started = [
        CONTEXT.Process(target=work, args=(rank, processes, port, folder))
        for rank in range(processes)
    ]
    for process in started:
        process.start()
    for process in started:
        process.join(150)
        process.kill()
    return [process.exitcode for process in started]


def work(rank: int, processes: int, port: int, folder: Path) -> None:
    """One process: what it computed in each case, and whether it ends with kept features."""
    import torch

    from crome.checkpoints.loading import load
    from crome.data.reader import read_rows
    from crome.features.verbs import Caching, agree, enable, prepare

    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    torch.distributed.init_process_group("gloo", rank=rank, world_size=processes)
    model, plain = load(str(folder / "base"), "float32")
    model.requires_grad_(False)
    computed: list[int] = []
    model.vision_model.register_forward_hook(
        lambda module, args, kwargs, out: computed.append(len(kwargs["pixel_values"])),
        with_kwargs=True,
    )
    rows = read_rows(folder / "rows.jsonl")
    results = {}
    for case, (limit, fails) in CASES.items():
        computed.clear()
        processor = enable(model, plain, Caching(folder=folder / case, limit_gb=limit))
        prepare(model, processor, rows, check=0)
        if fails and rank == 1:
            processor.cache = None  # as where its disk is full
        agree(processor)
        kept = processor.cache is not None and "features" in processor.encode(rows)
        results[case] = [sum(computed), kept]
    (folder / f"{rank}.json").write_text(json.dumps(results))
