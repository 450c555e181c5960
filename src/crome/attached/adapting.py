"""Frozen features → adapted features: each row's media through the adapter of its name."""

from collections.abc import Callable, Sequence

import torch

from crome.adapter import CrossModalAdapter
from crome.attached.batches import MediaBatch
from crome.attached.encoding import Encoder, Visual


def adapted(
    encoder: Encoder,
    adapters: Callable[[str | None], CrossModalAdapter | None],
    media_batch: MediaBatch,
) -> list[Visual]:
    """Each row's features through its adapter; rows that show and ask for the same share them.

    Args:
        encoder: Knows where an output has its tokens.
        adapters: The adapter of a name; None for no adapter.
        media_batch: With features.

    Returns:
        Of every row, empty for text alone.
    """
    assert media_batch.features is not None
    pairs = list(zip(media_batch.adapter_names, media_batch.index.tolist(), strict=True))
    wanted = dict.fromkeys(pair for pair in pairs if pair[1] >= 0)
    done: dict[tuple[str | None, int], Visual] = {}
    for name in dict.fromkeys(name for name, _ in wanted):
        sets = [kind for other, kind in wanted if other == name]
        visuals = [visual for kind in sets if (visual := media_batch.features[kind]) is not None]
        results = through(encoder, adapters(name), visuals)
        done |= {(name, kind): result for kind, result in zip(sets, results, strict=True)}
    return [done.get(pair, {}) for pair in pairs]


def through(
    encoder: Encoder, adapter: CrossModalAdapter | None, visuals: Sequence[Visual]
) -> list[Visual]:
    """Features through one adapter, all tokens of a modality in one product."""
    if adapter is None:
        return list(visuals)
    results: list[Visual] = [dict(visual) for visual in visuals]
    for branch in adapter.down:
        held = [i for i, visual in enumerate(visuals) if branch in visual]
        tokens = [encoder.tokens(visuals[i][branch]) for i in held]
        flat = [x.reshape(-1, x.shape[-1]) for pieces in tokens for x in pieces]
        if not flat:
            continue
        weight = next(adapter.parameters())
        together = torch.cat(flat).to(weight.device, weight.dtype)
        out = adapter({branch: together})[branch].to(flat[0].dtype)
        parts = iter(out.split([len(x) for x in flat]))
        for i, pieces in zip(held, tokens, strict=True):
            shaped = [next(parts).view(x.shape) for x in pieces]
            results[i][branch] = encoder.replaced(visuals[i][branch], shaped)
    return results
