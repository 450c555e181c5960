"""How often `crome compare` tells two runs apart that do not differ, by rows, scores and pictures.

`python benchmarks/compare.py --out docs/results/compare-calibration.md` writes the table.
"""

import argparse
import json
import platform
import time
from datetime import date
from pathlib import Path

from crome.evaluation.calibration import KINDS, QUESTIONS_PER_PICTURE, false_positives

ROWS = (5, 10, 20, 50, 100, 200, 500, 1000)
TEXT = """\
# Does `crome compare` keep its level?

Two runs that do not differ should be told apart in 5 % of cases. Both runs answer the same rows
with the same chances of being right, drawn independently; the table has the share of {draws:,}
pairs of runs that the test tells apart at p < 0.05, in per cent. A share of 5 % is known to
± {spread:.1f} (two standard errors).

- **right or wrong**: scores of 0 and 1, about half of them 1; **graded**: tenths from 0 to 1;
  **rarely right**: scores of 0 and 1, about one in ten 1.
- **on one picture each**: every row stands alone. **several on a picture**: {questions} rows on a
  picture on average, one to about ten; a run does better or worse on a picture as a whole. With 5
  and 10 rows that is one to four pictures.
- **as if independent**: the same clustered scores, compared without regard to pictures.

{table}

Made by `{command}` on {day} ({machine}, one core, {seconds:.0f} s), seed {seed}.

## Reading it

The test is the t test over pictures (CR2 standard error, Bell and McCaffrey's degrees of
freedom). Nowhere does it claim more than 6 %. Where it stays below 4 % there is nothing better to
be had:

- **0 and 1, five rows: 0.9 %.** Such scores come in steps. The test rejects when four or five
  rows change in the same direction and none in the other; the next outcome, three rows in one
  direction, has p = 0.0705. A test that rejected it too would claim 6.7 %
  (`false_positives("right or wrong", 5, clustered=False, level=0.071)`). So 0.9 % and 6.7 % are
  the only levels near 5 % that any test of five pairs can have here, a mid-p or permutation test
  included, unless it throws dice. With 6, 7 and 8 rows the rates are 2.0, 3.1 and 4.2 %.
- **Graded, five rows on pictures: 2.8 %.** In two draws of five all rows are on a single picture,
  and a single picture says nothing about others, so that such runs are never told apart. Of the
  draws with two pictures or more (`fewest_pictures=2`) the test claims 4.6 %.
- **Rarely right, up to 20 rows:** one to three rows change at all, too few to tell anything.
"""


def main() -> None:
    """Computes the table; prints it as JSON, and writes it as Markdown where asked."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, help="Markdown file to write")
    parser.add_argument("--draws", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    started, rows = time.perf_counter(), []
    for kind in KINDS:
        for label, clustered, ignored in (
            ("on one picture each", False, False),
            ("several on a picture", True, False),
            ("as if independent", True, True),
        ):
            rates = [
                false_positives(
                    kind, n, clustered=clustered, ignore_pictures=ignored, draws=arguments.draws,
                    seed=arguments.seed,
                )
                for n in ROWS
            ]  # fmt: skip
            rows.append((kind, label, rates))
            print(json.dumps({"scores": kind, "rows": label, "rates": rates}), flush=True)
    if arguments.out is not None:
        seconds = time.perf_counter() - started
        arguments.out.write_text(markdown(rows, arguments, seconds), encoding="utf-8")


def markdown(rows: list, arguments: argparse.Namespace, seconds: float) -> str:
    """The page with the table."""
    head = f"| scores | rows | {' | '.join(f'n = {n:,}' for n in ROWS)} |"
    lines = [head, f"|---|---|{'---:|' * len(ROWS)}"]
    for kind, label, rates in rows:
        cells = " | ".join(f"{100 * rate:.1f}" for rate in rates)
        lines.append(f"| {kind} | {label} | {cells} |")
    return TEXT.format(
        draws=arguments.draws,
        spread=200 * (0.05 * 0.95 / arguments.draws) ** 0.5,
        questions=QUESTIONS_PER_PICTURE,
        table="\n".join(lines),
        command=f"python benchmarks/compare.py --draws {arguments.draws}",
        day=date.today().isoformat(),
        machine=platform.machine(),
        seconds=seconds,
        seed=arguments.seed,
    )


if __name__ == "__main__":
    main()
