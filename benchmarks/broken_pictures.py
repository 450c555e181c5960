"""Odd and broken pictures through every reader: read, refused in one line, or neither.

    python benchmarks/broken_pictures.py FOLDER [--json FILE]

The test suites of image libraries hold hundreds of them; `pip download --no-binary pillow pillow`
brings Pillow's, in `Tests/`. The readers are that of `train`, `evaluate`, `ask` and few-shot
classification, that of shards, and that of the server. Then `crome validate` names what is broken,
and the packaged base encodes all that is readable, as it does before a run. What is neither is
listed, and the exit code is then 1.
"""

import base64
import json
import resource
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

from crome.data.validate import validate
from crome.errors import InputError
from crome.features.store import FeatureStore
from crome.features.verbs import build
from crome.images import load_image
from crome.serving.pictures import Pictures

SLOW = 5.0
"""Processor seconds that a picture may take."""
OTHERS = {".py", ".txt", ".md", ".rst", ".c", ".h", ".json"}

READERS: dict[str, Callable[[Path], Any]] = {
    "files": load_image,
    "shards": lambda path: load_image(path.read_bytes()),
    "server": lambda path: Pictures().open(
        f"data:image/png;base64,{base64.b64encode(path.read_bytes()).decode()}"
    ),
}
KNOWN = ("read", "refused")


def outcome(read: Callable[[Path], Any], path: Path) -> str:
    """`read`, `refused`, or what else happened."""
    started = time.process_time()
    try:
        found = read(path)
    except InputError as error:
        said = "refused" if "\n" not in str(error) else f"several lines: {error}"
    except Exception as error:
        said = f"{type(error).__name__}: {error}"
    else:
        said = "read" if found.mode == "RGB" else f"mode {found.mode}"
    took = time.process_time() - started
    return said if took < SLOW else f"{said} after {took:.1f} s"


def encoded(files: list[Path], folder: Path) -> dict[str, int]:
    """Rows of all files: those that `validate` names, and those whose features are computed."""
    rows = [{"image": str(path), "question": "What is it?", "answer": "it"} for path in files]
    data = folder / "rows.jsonl"
    data.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    named = 0
    try:
        validate(data, limit=0)
    except InputError as error:
        named = int(str(error).split(": ")[1].split()[0].replace(",", ""))
    build(data, on_bad_row="skip", questions=False, folder=folder / "features")
    kept = sum(map(len, map(FeatureStore, (folder / "features").glob("images-*"))))
    return {"named by validate": named, "distinct pictures with features": kept}


def main(folder: Path, out: Path | None) -> int:
    """Prints the counts, and what is neither read nor refused."""
    files = sorted(p.absolute() for p in folder.rglob("*") if p.is_file())
    files = [path for path in files if path.suffix.lower() not in OTHERS]
    counts: dict[str, Any] = {"files": len(files)}
    wrong = []
    for name, read in READERS.items():
        found = {path: outcome(read, path) for path in files}
        counts[name] = dict(
            Counter(s if s in ("read", "refused") else "other" for s in found.values())
        )
        wrong += [
            f"{name}: {path.relative_to(folder.absolute())}: {said}"
            for path, said in found.items()
            if said not in KNOWN
        ]
    with tempfile.TemporaryDirectory() as place:
        counts |= encoded(files, Path(place))
    counts["peak_mb"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
    print("\n".join([*wrong, json.dumps(counts, indent=2)]))
    if out is not None:
        out.write_text(json.dumps(counts | {"other": wrong}, indent=2) + "\n")
    return int(bool(wrong))


if __name__ == "__main__":
    words = sys.argv[1:]
    sys.exit(main(Path(words[0]), Path(words[2]) if words[1:2] == ["--json"] else None))
