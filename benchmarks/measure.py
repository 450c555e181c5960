"""What all benchmarks share: alternating contenders, minima, memory in processes of their own."""

import json
import multiprocessing
import os
import platform
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

# Waiting threads that spin would be counted, and would slow whatever else runs on the machine.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ.setdefault("GOMP_SPINCOUNT", "0")

Step = Callable[[], Any]


@dataclass
class Cost:
    """The least that a step was seen to take."""

    cpu: float
    """CPU-seconds of the process: background load does not count."""
    wall: float


def alternate(steps: Mapping[str, Step], repetitions: int, warm_up: int = 1) -> dict[str, Cost]:
    """Runs each step in turn, over and over, so that load of the machine meets all alike.

    Args:
        steps: Name → a function without arguments.
        repetitions: Timed runs of each.
        warm_up: Untimed runs of each before.

    Returns:
        Minima by name.
    """
    costs = {name: Cost(float("inf"), float("inf")) for name in steps}
    for round_ in range(-warm_up, repetitions):
        for name, step in steps.items():
            cpu, wall = time.process_time(), time.perf_counter()
            step()
            cpu, wall = time.process_time() - cpu, time.perf_counter() - wall
            if round_ >= 0:
                costs[name] = Cost(min(costs[name].cpu, cpu), min(costs[name].wall, wall))
        print(f"round {round_ + 1} of {repetitions}", file=sys.stderr, end="\r", flush=True)
    print(file=sys.stderr)
    return costs


def peak_memory(work: Callable[..., None], *arguments: Any) -> float:
    """GB of resident memory that work needs at most, in a new process."""
    context = multiprocessing.get_context("spawn")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_report_peak, args=(sender, work, arguments))
    process.start()
    sender.close()
    try:
        return float(receiver.recv())
    except EOFError:
        raise RuntimeError(f"{work.__name__}{arguments} died; see its error above.") from None
    finally:
        process.join()


def _report_peak(sender: Any, work: Callable[..., None], arguments: tuple[Any, ...]) -> None:
    work(*arguments)
    # Not getrusage: its maximum begins with what the parent had when it forked.
    with open("/proc/self/status") as file:
        peak = next(line for line in file if line.startswith("VmHWM"))
    sender.send(int(peak.split()[1]) / 1e6)


def row(case: str, what: str, ours: float, baseline: float | None, unit: str, **more: Any) -> dict:
    """A result: `ratio` says how many times better ours is."""
    ratio = round(baseline / ours, 3) if baseline is not None and ours else None
    numbers = {"ours": round(ours, 4), "baseline": baseline and round(baseline, 4)}
    return {"case": case, "what": what, **numbers, "ratio": ratio, "unit": unit, **more}


def cost_row(case: str, what: str, ours: Cost, baseline: Cost, **more: Any) -> dict:
    """A result in CPU-seconds, with wall seconds beside it."""
    walls = {"wall_ours": round(ours.wall, 4), "wall_baseline": round(baseline.wall, 4)}
    return row(case, what, ours.cpu, baseline.cpu, "CPU-s", **walls, **more)


def machine() -> dict[str, Any]:
    """What it ran on."""
    import torch
    import transformers

    with open("/proc/cpuinfo") as file:
        names = [line.split(":")[1].strip() for line in file if line.startswith("model name")]
    return {
        "cpu": names[0] if names else platform.processor(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "amx": torch.cpu._is_amx_tile_supported(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "date": time.strftime("%Y-%m-%d"),
        "load": os.getloadavg()[0],
    }


def write(path: str, rows: list[dict]) -> None:
    """Writes the rows and prints them as a table."""
    with open(path, "w") as file:
        json.dump(rows, file, indent=1)
    print(f"{'case':28}{'what':26}{'ours':>10}{'baseline':>10}{'ratio':>8}  unit")
    for r in rows:
        shown = ["" if r[k] is None else f"{r[k]:.3g}" for k in ("ours", "baseline", "ratio")]
        print(f"{r['case']:28}{r['what']:26}{shown[0]:>10}{shown[1]:>10}{shown[2]:>8}  {r['unit']}")
