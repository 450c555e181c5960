"""Trains an adapter on rows, measures it on others before and after, and asks it.

    python examples/lamps.py lamps
    python examples/own_data.py lamps runs/lamps

The functions are those behind the verbs, and their arguments are the verbs' options.
"""

import sys
from pathlib import Path

from crome import CromeForConditionalGeneration, CromeProcessor
from crome.data.reader import read_rows
from crome.evaluation.evaluate import evaluate
from crome.model.answering import answer
from crome.training.train import Optimization, train


def main(data: str, out: str, checkpoint: str = "crome-tiny", steps: str = "-1") -> None:
    """Trains, measures and asks.

    Args:
        data: Folder with `rows.jsonl` and `held-out.jsonl`.
        out: Folder of the run.
        checkpoint: What to start from.
        steps: Steps of training; -1 for three passes over the rows.
    """
    rows, held_out, run = Path(data) / "rows.jsonl", Path(data) / "held-out.jsonl", Path(out)
    evaluate(run / "before", held_out, checkpoint=checkpoint)
    train(run, rows, checkpoint=checkpoint, optimization=Optimization(max_steps=int(steps)))
    evaluate(run / "after", held_out, checkpoint=checkpoint, adapter=run / "adapter")

    model = CromeForConditionalGeneration.from_pretrained(checkpoint)
    processor = CromeProcessor.from_pretrained(checkpoint)
    model.load_adapter(run / "adapter", name="lamps")
    asked = read_rows(held_out)[:4]
    for row, said in zip(asked, answer(model, processor, asked), strict=True):
        print(f"{row.question} {said} (expected: {row.answer})")


if __name__ == "__main__":
    main(*sys.argv[1:])
