"""Attention of packed questions on a GPU: the ways there are, against each other.

    python benchmarks/attention.py --json FILE [--tiny]

The language model's attention alone, forward and back, at the heads of a 7 B model in bfloat16:
4 images of 257 tokens with 4 questions each. `ours` is `Packing.attend`; `vs-dense` a mask over
all pairs of sequences that hold an image and its questions, `vs-flex` FlexAttention with a block
mask over the whole row, compiled, `vs-rows` independent rows without sharing, by the fused kernel.
"""

import argparse
from functools import partial

import torch
from measure import Cost, machine, row, write
from torch import Tensor
from torch.nn.attention.flex_attention import create_block_mask, flex_attention

from crome.model.kernels import fused
from crome.model.packing import Packing

CASES = {"short-answers": 80, "long-answers": 512}  # tokens of a question with its answer


def plan(images: int, prefix: int, questions: int, tokens: int) -> tuple[Packing, Tensor, Tensor]:
    """A packing, and the image and the question of each place (-1 for an image's own tokens)."""
    owner = torch.arange(images * questions) // questions
    packing = Packing.plan(
        torch.ones(images, prefix, dtype=torch.bool),
        torch.ones(len(owner), tokens, dtype=torch.bool),
        owner,
    )
    image = torch.cat(
        [torch.arange(images).repeat_interleave(prefix), owner.repeat_interleave(tokens)]
    )
    numbers = torch.arange(len(owner)).repeat_interleave(tokens)
    return packing, image, torch.cat([torch.full((images * prefix,), -1), numbers])


def timed(step, device: torch.device) -> Cost:
    """The least seconds of a few runs."""
    import time

    best = float("inf")
    for _ in range(8):
        if device.type == "cuda":
            torch.cuda.synchronize()
        began = time.perf_counter()
        step()
        if device.type == "cuda":
            torch.cuda.synchronize()
        best = min(best, time.perf_counter() - began)
    return Cost(best, best)


def ways(tokens: int, device: torch.device, tiny: bool) -> dict:
    """Each way as a step, forward and back; all give the same numbers."""
    images, prefix, questions, heads, width = (2, 5, 2, 2, 16) if tiny else (4, 257, 4, 32, 128)
    tokens = 6 if tiny else tokens
    dtype = torch.float32 if tiny else torch.bfloat16
    packing, image, question = plan(images, prefix, questions, tokens)
    packing, image, question = (x.to(device) for x in (packing, image, question))
    total = packing.total
    q, k, v = (
        torch.randn(1, heads, total, width, device=device, dtype=dtype, requires_grad=not tiny)
        for _ in range(3)
    )
    scale = width**-0.5

    def seen(b, h, i, j):  # which key a query sees
        return (
            (j <= i) & (image[i] == image[j]) & ((question[j] < 0) | (question[i] == question[j]))
        )

    block_mask = create_block_mask(seen, None, None, total, total, device=str(device))
    flex = flex_attention if tiny else torch.compile(flex_attention, dynamic=False)
    # One sequence an image, and one a row.
    order = torch.cat(
        [packing.prefix, packing.place.view(images, -1)], 1
    )  # (images, tokens of the sequence)
    steps = torch.arange(order.shape[1], device=device)
    same = question[order]
    dense = (steps[:, None] >= steps) & ((same[:, None] < 0) | (same[:, :, None] == same[:, None]))
    alone = torch.cat([packing.prefix[packing.owner], packing.place], 1)

    def gathered(x: Tensor, places: Tensor) -> Tensor:
        return x[0][:, places].transpose(0, 1).contiguous()

    sequences = [gathered(x, order).detach().requires_grad_(not tiny) for x in (q, k, v)]
    rows = [gathered(x, alone).detach().requires_grad_(not tiny) for x in (q, k, v)]
    outs = {
        "ours": (lambda: packing.attend(q, k, v, partial(fused, scale=scale)), (q, k, v)),
        "flex": (lambda: flex(q, k, v, block_mask=block_mask, scale=scale), (q, k, v)),
        "dense": (lambda: fused(*sequences, scale=scale, mask=dense[:, None]), sequences),
        "rows": (lambda: fused(*rows, scale=scale), rows),
    }
    back = {"dense": order, "rows": alone}
    expected = outs["ours"][0]().detach().float()
    for name, (way, _) in outs.items():
        found = way().detach().float()
        here = gathered(expected, back[name]) if name in back else expected
        torch.testing.assert_close(found, here, rtol=0.05, atol=0.02)

    def step(way, inputs) -> None:
        out = way()
        if out.requires_grad:  # on a CPU, FlexAttention has no way back
            torch.autograd.grad(out.sum(), inputs)

    return {name: partial(step, *way) for name, way in outs.items()}


def main() -> None:
    """Measure and write rows."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--json", required=True)
    parser.add_argument("--tiny", action="store_true", help="on a CPU: to see that it runs")
    arguments = parser.parse_args()
    device = torch.device("cpu" if arguments.tiny else "cuda")
    rows = []
    for case, tokens in CASES.items():
        costs = {n: timed(step, device) for n, step in ways(tokens, device, arguments.tiny).items()}
        rows += [
            row(case, f"vs-{name}", 1e3 * costs["ours"].wall, 1e3 * costs[name].wall, "ms")
            for name in ("flex", "dense", "rows")
        ]
    card = "cpu" if arguments.tiny else torch.cuda.get_device_name()
    about = machine() | {"device": card, "cuda": torch.version.cuda}
    write(arguments.json, [found | {"machine": about} for found in rows])


if __name__ == "__main__":
    main()
