"""What a mixture of millions of rows costs: preparing it, its memory, resuming, and its order.

    python benchmarks/sampler.py --json FILE [--rows 8000000] [--folder FOLDER] [--keys_only]

Writes synthetic JSON lines of four sources (sizes 5 : 2 : 0.8 : 0.2) to a folder, prepares the
mixture from them as `crome train` would, then starts anew in processes of its own: at step 0, at
step 1,000,000 as 1, 2 and 4 processes read it, and some steps before that without stopping there.
The pictures do not exist and are not looked for: what is measured is rows. Times are wall-clock
seconds, with the process's CPU-seconds beside them; memory is over that of a process with the same
imports. With --keys_only no file is written or read: selection, layout and sampling of the keys.
"""

import argparse
import json
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path

SIZES = (5.0, 2.0, 0.8, 0.2)
BATCH = 16
STEP = 1_000_000
PER_IMAGE = 4


def write(folder: Path, rows: int) -> Path:
    """Writes the sources and the mixture; a tenth of the rows of each source are text-only."""
    sources = {}
    rng = random.Random(0)
    for number, share in enumerate(SIZES):
        count = round(rows * share / sum(SIZES))
        with (folder / f"{number}.jsonl").open("w") as file:
            for row in range(count):
                image = f'"image": "{number}/{row // 5:09d}.jpg", ' if row % 10 else ""
                file.write(
                    f'{{{image}"question": "What is written on sign {rng.random():.9f} of the '
                    f'street?", "answer": "the name of house {row}"}}\n'
                )
        sources[f"source-{number}"] = {"file": f"{number}.jsonl", "templates": "short-answer"}
    path = folder / "mixture.yaml"
    path.write_text(json.dumps({"max_questions_per_image": PER_IMAGE, "sources": sources}))
    return path


def run(code: str, *arguments: object) -> dict[str, float]:
    """Runs code in a process of its own, which prints a JSON object last."""
    command = [sys.executable, "-c", PREAMBLE + code, *map(str, arguments)]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    return dict(json.loads(done.stdout.splitlines()[-1]))


PREAMBLE = """
import json, resource, sys, time
from hashlib import sha256
from pathlib import Path
from crome.data.mixture.build import build_mixture
from crome.data.stream import RowStream

def peak():  # bytes; of it `mine` is the process's own, the rest pages of mapped files
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024

def mine():
    status = Path("/proc/self/status").read_text().split()
    return int(status[status.index("RssAnon:") + 1]) * 1024

path, cache = Path(sys.argv[1]), Path(sys.argv[2])
before, own = peak(), mine()
started, cpu = time.perf_counter(), time.process_time()
"""

PREPARE = """
mixture = build_mixture(path, check="none", cache=cache)
mixture.stream()
print(json.dumps({"seconds": time.perf_counter() - started, "cpu": time.process_time() - cpu,
                  "memory": peak() - before, "rows": len(mixture)}))
"""

RESUME = """
step, batch, count, processes = map(int, sys.argv[3:7])
stream = build_mixture(path, check="none", cache=cache).stream(epochs=10_000)
ids, first, first_cpu = [], None, None
for t in range(step, step + count):
    for rank in range(processes):
        size = batch // processes
        start = (t * processes + rank) * size
        ids += [stream[i].id + stream[i].question for i in range(start, start + size)]
        if first is None:
            first, first_cpu = time.perf_counter() - started, time.process_time() - cpu
print(json.dumps({"first": first, "first_cpu": first_cpu, "memory": peak() - before,
                  "own": mine() - own, "rows_per_cpu_second":
                  (len(ids) - batch) / max(1e-9, time.process_time() - cpu - first_cpu),
                  "order": sha256("|".join(ids[-4800:]).encode()).hexdigest()}))
"""


KEYS = """
import numpy as np
from crome.data.sampler import Layout, Sampler, lay_out, square_root_weights
from crome.data.mixture.selection import scrambled, select

rows = int(sys.argv[3])
sizes = [round(rows * share / 8) for share in (5.0, 2.0, 0.8, 0.2)]
numbers = [np.arange(size, dtype=np.uint64) for size in sizes]
images = [scrambled(n // np.uint64(5) + np.uint64(i * 10**9 + 1)) for i, n in enumerate(numbers)]
for keys in images:
    keys[::10] = 0
texts = [scrambled(n + np.uint64(i * 10**10 + 7)) for i, n in enumerate(numbers)]
kept = select(images, texts, list("abcd"), cap=4)
selected, start = time.process_time() - cpu, time.process_time()
layouts = [lay_out(keys[part.rows], 4) for keys, part in zip(images, kept)]
laid_out = time.process_time() - start
weights = square_root_weights([len(layout.rows) for layout in layouts])
start = time.process_time()
sampler = Sampler(layouts, 4, 0, weights)
[sampler(16_000_000 + i) for i in range(16)]
first = time.process_time() - start

def read(first, steps, processes):
    size = 16 // processes
    return [sampler((step * processes + rank) * size + i) for step in range(first, first + steps)
            for rank in range(processes) for i in range(size)]

start = time.process_time()
orders = [read(1_000_000, 300, processes) for processes in (1, 2, 4)]
draw = (time.process_time() - start) / 14_400
orders.append(read(999_800, 500, 1)[-4800:])
print(json.dumps({"selected": selected, "laid_out": laid_out, "first": first, "draw": draw,
                  "memory": peak() - before, "orders": len(set(map(tuple, orders)))}))
"""


def measure_keys(rows: int) -> list[dict[str, object]]:
    """Rows of results without files."""
    found = run(KEYS, ".", ".", rows)
    units = {"selected": "CPU-s", "laid_out": "CPU-s", "first": "CPU-s", "draw": "CPU-s a row",
             "memory": "bytes", "orders": "orders"}  # fmt: skip
    return [
        {"case": f"{rows:,} keys", "what": what, "ours": found[what], "baseline": None,
         "ratio": None, "unit": unit}
        for what, unit in units.items()
    ]  # fmt: skip


def measure(path: Path, cache: Path, rows: int) -> list[dict[str, object]]:
    """Rows of results."""
    case = f"{rows:,} rows"
    found: list[dict[str, object]] = []

    def add(what: str, ours: float, unit: str, bound: float | None = None) -> None:
        ratio = ours / bound if bound else None
        found.append(
            {"case": case, "what": what, "ours": ours, "baseline": bound, "ratio": ratio,
             "unit": unit}
        )  # fmt: skip
        print(f"{what:<52} {ours:>14,.3f} {unit}", flush=True)

    made = run(PREPARE, path, cache)
    add("prepare: read, check, select, lay out", made["seconds"], "s")
    add("prepare: CPU", made["cpu"], "CPU-s")
    add("prepare: peak memory", made["memory"] / 1e9, "GB", 2.0)
    add("rows kept", made["rows"], "rows")
    size = sum(f.stat().st_size for f in cache.rglob("*") if f.is_file())
    add("on disk", size / 1e9, "GB")
    start = run(RESUME, path, cache, 0, BATCH, 300, 1)
    add("start at step 0: first batch", start["first"], "s")
    orders = []
    for processes in (1, 2, 4):
        resumed = run(RESUME, path, cache, STEP, BATCH, 300, processes)
        orders.append(resumed["order"])
        add(
            f"resume at step {STEP:,}, {processes} processes: first batch",
            resumed["first"],
            "s",
            5.0,
        )
        add(f"resume at step {STEP:,}, {processes} processes: CPU", resumed["first_cpu"], "CPU-s")
    add("peak memory of a resumed run, mapped pages too", resumed["memory"] / 1e9, "GB", 2.0)
    add("memory of its own", resumed["own"] / 1e9, "GB")
    add("rows read", resumed["rows_per_cpu_second"], "rows/CPU-s")
    earlier = run(RESUME, path, cache, STEP - 200, BATCH, 500, 1)
    orders.append(earlier["order"])
    add("orders among 1, 2, 4 processes and not interrupted", len(set(orders)), "orders", 1.0)
    return found


def main() -> None:
    """Measure and write rows."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", required=True)
    parser.add_argument("--rows", type=int, default=8_000_000)
    parser.add_argument("--folder", type=Path)
    parser.add_argument("--keys_only", action="store_true")
    arguments = parser.parse_args()
    if arguments.keys_only:
        found = measure_keys(arguments.rows)
        Path(arguments.json).write_text(json.dumps(found, indent=1))
        return
    with tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
        started = time.perf_counter()
        path = write(Path(folder), arguments.rows)
        print(f"written in {time.perf_counter() - started:.0f} s", flush=True)
        found = measure(path, Path(folder) / "cache", arguments.rows)
    Path(arguments.json).write_text(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
