"""Two processes of one run: features are computed once, and both agree on what is kept."""

import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
from sharing import run


def test_two_processes_compute_once_and_agree(build, pictures, tmp_path):
    pair = build()
    pair.model.save_pretrained(tmp_path / "base")
    pair.processor.save_pretrained(tmp_path / "base")
    lines = []
    for number, picture in enumerate(pictures[:3]):
        picture.save(tmp_path / f"{number}.png")
        lines.append({"image": f"{number}.png", "question": "What?", "answer": "blue"})
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, lines)))
    assert run(2, tmp_path) == [0, 0]
    first, second = (json.loads((tmp_path / f"{rank}.json").read_text()) for rank in range(2))
    assert first["whole"][0] + second["whole"][0] == 3  # each picture once, by whichever
    assert (first["whole"][1], second["whole"][1]) == (True, True)
    for case in ("over its limit", "one fails"):
        assert (first[case][1], second[case][1]) == (False, False)
