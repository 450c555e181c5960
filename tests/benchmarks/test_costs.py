"""What a step costs, in operations: a guard that no clock can blur.

Floating-point operations of matrix products and attention are counted on the benchmark's mid-size
model at an eighth of its widths and a quarter of its picture, so ratios are those of that size and
not the published ones; they are exact and the same on every machine.
"""

import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
if not BENCHMARKS.is_dir():
    pytest.skip("benchmarks/ is not part of this installation", allow_module_level=True)
sys.path.insert(0, str(BENCHMARKS))

from sizes import MIDSIZE, SMALL, Size, stock, stock_batch  # noqa: E402

from training import Bench  # noqa: E402

EIGHTH = replace(
    MIDSIZE, vision=(4, 48), qformer=(2, 32), language=(4, 72), heads=(3, 1), vocabulary=6144,
    image_side=112, queries=8, bottleneck=32, prompt=8, answer=8,
)  # fmt: skip


def operations(step) -> int:
    step()  # whatever the first time alone needs
    with FlopCounterMode(display=False) as counter:
        step()
    return counter.get_total_flops()


@pytest.fixture(scope="module")
def counted() -> dict[str, int]:
    torch.manual_seed(0)
    bench = Bench(EIGHTH, "fp32")
    steps = {"ours": bench.ours, "cached": bench.cached, "stock": bench.stock()}
    return {n: operations(s) for n, s in (steps | {"floor": bench.floor()}).items()}


def test_a_step_needs_far_fewer_operations_than_the_stock_step(counted):
    """4.8 and 5.4 times fewer when written; a lost ingredient costs more than the margin."""
    assert counted["stock"] / counted["ours"] > 4.3
    assert counted["stock"] / counted["cached"] > 4.8


def test_a_cached_step_is_near_its_floor(counted):
    """1.04 when written: projections, adapter, and the few tokens of the opening."""
    assert counted["cached"] / counted["floor"] < 1.05


@pytest.mark.parametrize("head", [2, 80])
@pytest.mark.parametrize("questions", [2, 4, 8])
def test_the_language_model_reads_each_distinct_token_once(questions, head):
    """A question more on an image costs its own tokens, a long opening is read for all at once."""
    size = replace(SMALL, rows=16, questions=questions, head=head, prompt=head + 4)
    bench, seen = Bench(size, "fp32"), []
    bench.cached()  # what is tried once
    bench.model.language_model.get_decoder().register_forward_pre_hook(
        lambda _, args, kwargs: seen.append(kwargs["inputs_embeds"].shape[:2].numel()),
        with_kwargs=True,
    )
    bench.cached()
    ours, seen[:] = sum(seen), []
    bench.floor()()
    behind = size.queries + size.prompt - size.head + size.answer - 1  # the last predicts nothing
    distinct = size.images * size.patches + size.rows * behind
    assert seen == [distinct]
    assert ours == distinct + head * (1 if head == 80 else size.images)


def test_ours_and_stock_compute_the_same_loss():
    """The benchmark compares two ways to one number."""
    bench = Bench(replace(SMALL, prompt=8), "fp32")
    model, size = bench.model, bench.size
    for up in model.adapter.up.values():
        torch.nn.init.zeros_(up.weight)
    other = stock(model, torch.float32)
    other.language_projection.load_state_dict(model.query_projection.state_dict())
    other.patch_projection.load_state_dict(model.patch_projection.state_dict())
    theirs = other(**stock_batch(bench.batch, size, torch.float32)).loss
    # fp32 sums in another order, through another number of tokens
    torch.testing.assert_close(model(**bench.batch).loss, theirs, rtol=1e-5, atol=0)
    kept = {k: v for k, v in bench.batch.items() if k != "pixel_values"}
    torch.testing.assert_close(model(**kept, features=bench.kept).loss, theirs, rtol=1e-5, atol=0)


def test_every_ingredient_can_be_taken_away_alone():
    bench = Bench(SMALL, "fp32")
    cached = operations(bench.cached)
    more = {name: operations(step) for name, step in bench.ingredients().items()}
    assert operations(bench.cached) == cached  # and comes back
    same = {"without-chosen-attention"}  # the same operations in another order
    assert {name for name, count in more.items() if count <= cached} <= same


def test_sizes_are_the_published_ones():
    """21.6, 16.8 and 70.8 M of the reference measurement."""
    from sizes import config

    from crome.model.modeling import CromeForConditionalGeneration
    from crome.model.stages import count

    with torch.device("meta"):
        model = CromeForConditionalGeneration(config(Size()))
    millions = [count(p) / 1e6 for p in (model.vision_model, model.qformer, model.language_model)]
    assert millions == pytest.approx([21.6, 16.8, 70.8], rel=0.15)
