"""The benchmark that `docs/howto/add-a-benchmark.md` builds works as it stands there."""

import json
import re
from pathlib import Path

from crome.evaluation.predictions import Prediction
from crome.evaluation.scoring import score_answers

PAGE = Path(__file__).parents[3] / "docs/howto/add-a-benchmark.md"


def test_the_example_of_the_page(tmp_path: Path) -> None:
    (code,) = re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.S)
    names: dict = {"__name__": "knots"}
    exec(compile(code, str(PAGE), "exec"), names)
    file = tmp_path / "knots.csv"
    options = json.dumps(["bowline", "reef"]).replace('"', '""')
    file.write_text(f'question,options,answer,image\nWhich?,"{options}",reef,1.jpg\n')
    task = names["KNOTS"]
    records = task.read(str(file))
    said = {"0": Prediction("0", response="b")}
    scores, baselines = score_answers(task, records, said)
    assert scores.metrics["knots/letter"].value == 1
    assert baselines["always B"]["knots/letter"] == 1
    assert task.question(records[0], "llava").prompt.startswith("Which?\nA. bowline\nB. reef")
