"""Evaluation: questions on an image together, candidates of a question together.

    python benchmarks/generation.py --json FILE [--cases NAME …] [--repetitions 3] [--size small]

Cases are named as in `benchmarks/training.py`. `vs-one-at-a-time` answers 16 questions greedily, 8
tokens each, with the questions on an image in a batch against each question alone;
`batch-vs-unshared` has them in a batch both times, with and without the shared prefix;
`rank-4-vs-rows` ranks 4 candidates for each question against a whole row for each candidate.
`vs-stock-generate` is the batch against `InstructBlipForConditionalGeneration.generate` on the same
batch. Features are computed anew each time, once for each distinct image.
"""

import argparse
from typing import Any

import torch
from measure import alternate, cost_row, machine, write
from sizes import MIDSIZE, SMALL, batch, stock, stock_batch

from training import DTYPES, Bench, size_of

NEW, OPTIONS, LENGTH = 8, 4, 4
GREEDY: dict[str, Any] = {"do_sample": False, "max_new_tokens": NEW}


def run_case(case: str, arguments: argparse.Namespace) -> list[dict]:
    """All rows of a case."""
    size, dtype = size_of(case, arguments.base)
    bench = Bench(size, dtype)
    model = bench.model.eval()
    bench.attention("sdpa")  # without a backward pass it is never slower
    prompts = {k: v for k, v in batch(size).items() if k != "labels"}
    for name in ("input_ids", "attention_mask"):
        prompts[name] = prompts[name][:, : size.prompt]
    generator = torch.Generator().manual_seed(2)
    count = size.rows * OPTIONS
    options = torch.randint(5, size.vocabulary - 1, (count, LENGTH), generator=generator)
    owners = torch.arange(count) // OPTIONS
    greedy = GREEDY | {"eos_token_id": [size.vocabulary], "pad_token_id": 0}  # all go to the end

    def alone(row: int) -> dict[str, torch.Tensor]:
        image = int(prompts["image_index"][row])
        one = {k: v[row : row + 1] for k, v in prompts.items() if k != "pixel_values"}
        pixels = prompts["pixel_values"][image : image + 1]
        return one | {"pixel_values": pixels, "image_index": torch.zeros(1, 1, dtype=torch.long)}

    def one_at_a_time() -> None:
        for row in range(size.rows):
            model.generate(**alone(row), **greedy)

    def shared(value: bool, call: Any) -> Any:
        def step() -> None:
            model.config.share_prefix = value
            call()
            model.config.share_prefix = True

        return step

    def answers() -> None:
        model.generate(**prompts, **greedy)

    def ranking() -> None:
        model.option_losses(option_ids=options, option_rows=owners, **prompts)

    other = stock(model, DTYPES[dtype])
    given = stock_batch(batch(size), size, DTYPES[dtype])
    longest = given["input_ids"].shape[1] - size.answer
    given = {k: v for k, v in given.items() if k != "labels"}
    given |= {k: given[k][:, :longest] for k in ("input_ids", "attention_mask")}

    @torch.no_grad()
    def stock_generate() -> None:
        other.generate(**given, **GREEDY, min_new_tokens=NEW, pad_token_id=0)

    costs = alternate(
        {
            "batch": shared(True, answers),
            "alone": one_at_a_time,
            "unshared": shared(False, answers),
            "rank": shared(True, ranking),
            "rows": shared(False, ranking),
            "stock": stock_generate,
        },
        arguments.repetitions,
    )
    return [
        cost_row(case, "vs-one-at-a-time", costs["batch"], costs["alone"]),
        cost_row(case, "batch-vs-unshared", costs["batch"], costs["unshared"]),
        cost_row(case, "rank-4-vs-rows", costs["rank"], costs["rows"]),
        cost_row(case, "vs-stock-generate", costs["batch"], costs["stock"]),
    ]


def main() -> None:
    """Measure and write rows."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--json", required=True)
    parser.add_argument("--cases", nargs="*", default=["midsize-4q-bf16", "midsize-4q-fp32"])
    parser.add_argument("--repetitions", type=int, default=3)
    parser.add_argument("--size", choices=["midsize", "small"], default="midsize")
    arguments = parser.parse_args()
    arguments.base = {"midsize": MIDSIZE, "small": SMALL}[arguments.size]
    rows = [found for case in arguments.cases for found in run_case(case, arguments)]
    write(arguments.json, [r | {"machine": machine() | {"size": arguments.size}} for r in rows])


if __name__ == "__main__":
    main()
