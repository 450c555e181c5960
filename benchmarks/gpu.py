"""What one GPU says: correctness, training steps, serving, few-shot search; each case by itself.

    python benchmarks/gpu.py --json FILE [--markdown FILE] [--cases NAME …] [--repetitions 5]
    python benchmarks/gpu.py --json FILE --tiny      # the same code on any machine, in two minutes
    python benchmarks/gpu.py --packages              # what this machine lacks, one a line

One command for a card of 80 GB, without a network: random weights at real sizes. Each case is
written when it is done, and one that stands in the file is not run again, so a run that is cut goes
on where it was. A contender that fails costs its own time alone; its case is run again the next
time. `--fresh` starts over. Rows are those of the other benchmarks. Times are seconds
of the device (CUDA events), or of the clock where requests come and go.

| case | what |
|---|---|
| `correct-fp32` | losses and gradients of the shared step against each row alone, TF32 off |
| `correct-bf16` | the loss in bf16 against fp32 |
| `step` | crome-vicuna-7b from pixels and cached, against the stock step, LoRA r = 16, the floor |
| `engine-1`, `-8`, `-64` | so many clients of the serving engine against transformers' `generate` |
| `adapters-64` | 64 clients with an adapter each, against 64 with one |
| `compiled-1` | one client, against `generate` with a static cache and compiled decoding |
| `recorded-32` | 32 answers as `crome evaluate` makes them, their steps recorded and not |
| `attach-2b`, `-8b` | an adapter on Qwen3-VL's sizes, against LoRA r = 16 and the floor |
| `fewshot-search` | the ImageNet-sized search of Tip-Adapter's α and β on the device |
| `fewshot-fit` | a fit of XMAdapter on 1,000 classes × 16 pictures, against the same on the CPU |
| `tests` | the tests that are marked `gpu`, on the device |

Datasets, pyarrow and the command line's packages are not imported. The case `step` and `attach-…`
leave LoRA out where PEFT is absent, and say so.
"""

import argparse
import json
import sys
import time
import tomllib
import traceback
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
NEEDED = ("torch", "transformers", "safetensors", "pillow", "numpy", "scikit-learn", "scipy",
          "filelock", "huggingface_hub", "jinja2", "rich", "pyyaml")  # fmt: skip
"""Of the project's dependencies, those that the cases import."""
WANTED = ("peft", "pytest", "packaging")
"""Packages without which a case is shorter."""
CASES = (
    "correct-fp32", "correct-bf16", "step", "engine-1", "engine-8", "engine-64", "adapters-64",
    "compiled-1", "recorded-32", "attach-2b", "attach-8b", "fewshot-search", "fewshot-fit", "tests",
)  # fmt: skip
Rows = list[dict[str, Any]]


def lacking() -> list[str]:
    """Requirements that this machine does not meet, as pip takes them."""
    from packaging.requirements import Requirement

    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())
    known = {
        Requirement(line).name: Requirement(line) for line in settings["project"]["dependencies"]
    }
    found = []
    for name in (*NEEDED, *WANTED):
        wanted = known.get(name, Requirement(name))
        try:
            if not wanted.specifier.contains(version(name), prereleases=True):
                found.append(str(wanted))
        except PackageNotFoundError:
            found.append(str(wanted))
    return found


def main(words: list[str] | None = None) -> None:
    """Runs the cases that the file lacks."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--json", type=Path)
    parser.add_argument("--markdown", type=Path)
    parser.add_argument("--cases", nargs="+", choices=CASES, default=list(CASES))
    parser.add_argument("--repetitions", type=int, default=5)
    parser.add_argument("--tiny", action="store_true")
    parser.add_argument("--fresh", action="store_true")
    parser.add_argument("--packages", action="store_true", help="print what is missing, and stop")
    arguments = parser.parse_args(words)
    missing = lacking()
    if arguments.packages:
        print("\n".join(missing))
        return
    if blocking := [line for line in missing if line not in WANTED]:
        sys.exit(f"this machine lacks {', '.join(blocking)}; carry these as wheels.")
    if arguments.json is None:
        parser.error("--json is required")
    run(arguments)


def run(arguments: argparse.Namespace) -> None:
    """Runs cases one after another and writes each."""
    if find_spec("crome") is None:
        sys.path.insert(0, str(ROOT / "src"))
    import torch

    device = torch.device("cuda" if torch.cuda.is_available() and not arguments.tiny else "cpu")
    if device.type == "cpu" and not arguments.tiny:
        sys.exit("no CUDA device here; --tiny runs the same code on a CPU.")
    import gpu_cases

    where = about(device, arguments.tiny)
    results = {} if arguments.fresh else earlier(arguments.json, where)
    bench = gpu_cases.Workbench(device, arguments.tiny, arguments.repetitions)
    failed: list[str] = []
    for case in arguments.cases:
        if case in results and not failures(results[case]):
            print(f"{case}: in {arguments.json} already", file=sys.stderr)
            continue
        started = time.perf_counter()
        try:
            results[case] = bench.rows(case)
        except Exception:  # the others say something all the same; this one is run the next time
            traceback.print_exc()
            failed.append(case)
            continue
        failed += [case] if failures(results[case]) else []
        print(f"{case}: {time.perf_counter() - started:.0f} s", file=sys.stderr, flush=True)
        write(arguments, where, results)
    print(markdown(where, results))
    if failed:
        sys.exit(f"failed: {', '.join(failed)}; their errors are above.")


def failures(rows: Rows) -> list[str]:
    """Why contenders of a case failed; that memory was too small will not change."""
    found = [str(one.get("failed")) for one in rows if one.get("failed")]
    return [reason for reason in found if not reason.startswith("OutOfMemory")]


def write(arguments: argparse.Namespace, where: dict[str, Any], results: dict[str, Rows]) -> None:
    """Writes what is known so far, whole or not at all."""
    from crome.storage import write_json, write_text

    write_json(arguments.json, {"machine": where, "cases": results})
    if arguments.markdown:
        write_text(arguments.markdown, markdown(where, results))


def about(device: Any, tiny: bool) -> dict[str, Any]:
    """What the numbers are of: card, versions, size."""
    import measure
    import torch

    found = {k: v for k, v in measure.machine().items() if k != "load"}
    if device.type == "cuda":
        found |= {"card": torch.cuda.get_device_name(), "cuda": torch.version.cuda}
    return found | {"size": "tiny" if tiny else "real"}


def earlier(path: Path, where: dict[str, Any]) -> dict[str, Rows]:
    """Finished cases of a run that was cut, if it was on such a machine at such a size."""
    try:
        kept = json.loads(path.read_text())
        same = all(kept["machine"].get(k) == where.get(k) for k in ("card", "size", "torch"))
        return dict(kept["cases"]) if same else {}
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return {}


def markdown(where: dict[str, Any], results: dict[str, Rows]) -> str:
    """The rows as a table for `docs/results`, with what they were run on."""
    lines = [", ".join(f"{name} {value}" for name, value in where.items()), ""]
    lines += [
        "| case | what | ours | baseline | ratio | unit | more |",
        "|---|---|---:|---:|---:|---|---|",
    ]
    usual = ("case", "what", "ours", "baseline", "ratio", "unit")
    for rows in results.values():
        for one in rows:
            cells = ["" if one[key] is None else str(one[key]) for key in usual]
            more = ", ".join(f"{k} {v}" for k, v in one.items() if k not in usual and v is not None)
            lines.append(f"| {' | '.join(cells)} | {more} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
