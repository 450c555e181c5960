"""What all questions on an image begin with, read by the language model once.

Where patches stand in front of queries, a prompt is

    opening, patches | queries, question, answer

and everything in front of the bar is the same for every question on the image. Training, ranking
and greedy decoding therefore read one prefix per image. The opening (a chat template's system
message) is even the same for all images.

Shapes: B rows (questions), I images, h tokens of the opening, P patch tokens, m tokens behind them
(queries and text), d width of the language model, V vocabulary.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import count
from typing import Any, Self

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import DynamicCache, PreTrainedModel

from crome.model.batch import Layout
from crome.model.families import new_cache
from crome.model.kernels import packed
from crome.model.language import embed_words, head_rows
from crome.model.losses import IGNORED, answer_losses, predicting_rows
from crome.model.packing import Head, Packing
from crome.model.slots import slots_of
from crome.model.splicing import VisualBlocks

WORTH_A_PASS = 64
"""Reading the opening in a pass of its own pays when it saves at least so many tokens."""


@dataclass(frozen=True)
class SharedPrefix:
    """The prompts of a batch, cut where the questions on an image part.

    Attributes:
        opening: (1, h, d) text in front of the patches.
        patches: (I, P, d) patch tokens of each image.
        image: (B,) the image each row is about, on the CPU.
        suffix: (B, m, d) the rest of each row, padded on the right.
        real: (B, m) False where the suffix is padding, on the CPU.
    """

    opening: Tensor
    patches: Tensor
    image: Tensor
    suffix: Tensor
    real: Tensor

    @classmethod
    def cut(cls, text: Tensor, layout: Layout, blocks: VisualBlocks | None) -> Self | None:
        """Cuts a batch, or gives None where its rows do not allow it or nothing would be saved.

        Args:
            text: (B, T, d) embeddings of the text.
            layout: The batch's numbers.
            blocks: The visual tokens of its rows.
        """
        if blocks is None or "patch" not in blocks.tokens or not divides(layout, blocks):
            return None
        assert layout.visual_position is not None
        head = int(layout.visual_position[0])
        suffix, real = text[:, head:], layout.real[:, head:]
        if "query" in blocks.tokens:
            queries = blocks.tokens["query"].to(text.dtype)
            suffix = torch.cat([queries, suffix], 1)
            real = F.pad(real, (queries.shape[1], 0), value=True)
        patches = blocks.tokens["patch"].to(text.dtype)
        return cls(text[:1, :head], patches, blocks.index["patch"], suffix, real)

    def losses(
        self, language_model: PreTrainedModel, labels: Tensor, two_passes: bool = True
    ) -> tuple[Tensor | None, Tensor]:
        """Scores the answers, each image's prefix and its questions packed into one row.

        Autograd sums the gradients that an image's questions send back. Equal to independent rows
        up to the order of float additions; see `crome.model.packing`.

        Args:
            language_model: One that `obeys_packing`.
            labels: (B, T) of the text, on the CPU.
            two_passes: Whether the opening may be a pass of its own.

        Returns:
            (A, V) logits or None, and (A,) losses, as `answer_losses`.
        """
        behind = labels[:, self.opening.shape[1] :]
        behind = F.pad(behind, (self.suffix.shape[1] - behind.shape[1], 0), value=IGNORED)
        real = self.real & before_a_target(behind)
        opening = self.read_opening(language_model) if two_passes else None
        start = 0 if opening is None else self.opening.shape[1]
        prefix = self._prefixes() if opening is None else self.patches
        packing = Packing.plan(torch.ones(prefix.shape[:2], dtype=torch.bool), real, self.image)
        rows, targets = predicting_rows(behind)
        rows = packing.place.flatten()[rows].to(prefix.device)
        packing = packing.to(prefix.device)
        with packed(packing):
            return answer_losses(
                language_model,
                rows,
                targets.to(prefix.device),
                inputs_embeds=packing.fill(prefix, self.suffix),
                attention_mask=packing.no_mask(prefix.dtype, start),
                position_ids=packing.positions[None] + start,
                past_key_values=None if opening is None else Head(opening),
                use_cache=False,
            )

    def read(self, language_model: PreTrainedModel) -> tuple[DynamicCache, Tensor, Tensor]:
        """Runs opening and patches once per image.

        Returns:
            The cache, with a row for each question; the rest of each row (B, m, d); and the mask
            over both (B, h + P + m).
        """
        cache, prefix = self.read_opening(language_model), self.patches
        if cache is None:
            cache, prefix = new_cache(language_model), self._prefixes()
        else:
            cache.batch_repeat_interleave(len(prefix))
        decoder: Any = language_model.get_decoder()
        decoder(inputs_embeds=prefix, past_key_values=cache, use_cache=True)
        device = self.patches.device
        cache.batch_select_indices(self.image.to(device))
        before = self.opening.shape[1] + self.patches.shape[1]
        return cache, self.suffix, F.pad(self.real.long().to(device), (before, 0), value=1)

    def read_opening(self, language_model: PreTrainedModel) -> DynamicCache | None:
        """Runs the opening of all prompts on its own, where that saves enough."""
        saved = self.opening.shape[1] * (len(self.patches) - 1)
        if saved < WORTH_A_PASS or any(m._compiled_call_impl for m in language_model.modules()):
            return None
        cache = new_cache(language_model)
        decoder: Any = language_model.get_decoder()
        decoder(inputs_embeds=self.opening, past_key_values=cache, use_cache=True)
        return cache

    def _prefixes(self) -> Tensor:
        """(I, h + P, d) opening and patches of each image."""
        return torch.cat([self.opening.expand(len(self.patches), -1, -1), self.patches], 1)


def divides(layout: Layout, blocks: VisualBlocks) -> bool:
    """Whether every row is the same opening, one image, and text of its own behind it.

    The cut must lose no label: there may be none in the opening, and none on the token that the
    last patch predicts. It must also save something: some image must have two questions.
    """
    position, rows = layout.visual_position, len(layout.real)
    if position is None or len(blocks.tokens["patch"]) >= rows:
        return False
    if not torch.equal(blocks.rows, torch.arange(rows)):
        return False  # a row without an image, or with several
    head = int(position[0])
    # Padding on the left stands where the prefix would be.
    alike = (position == head).all() and layout.real[:, :1].all()
    if not alike or (layout.input_ids[:, :head] != layout.input_ids[:1, :head]).any():
        return False
    # Without queries, the first token behind the patches is predicted by the last patch.
    unlabelled = head if "query" in blocks.tokens else head + 1
    if unlabelled > head and not (
        unlabelled <= layout.real.shape[1] and layout.real[:, head].all()
    ):
        return False  # a row has no text behind the patches
    return layout.labels is None or not (layout.labels[:, :unlabelled] != IGNORED).any()


def before_a_target(labels: Tensor) -> Tensor:
    """(B, L) True for tokens in front of a labelled one; a causal model needs no others."""
    next_is_labelled = F.pad(labels[:, 1:] != IGNORED, (0, 1))
    return next_is_labelled.flip(1).cumsum(1).flip(1) > 0


def greedy(
    language_model: PreTrainedModel,
    cache: DynamicCache,
    suffix: Tensor,
    mask: Tensor,
    max_new_tokens: int,
    eos_token_id: list[int],
    pad_token_id: int,
) -> Tensor:
    """Greedy decoding behind a shared prefix; the same tokens as `generate` on whole rows.

    Rows are padded on the right of their suffix. The mask hides that padding, and positions count
    real tokens only.

    Args:
        language_model: A decoder with a plain growing cache.
        cache: From `SharedPrefix.read`, like `suffix` and `mask`.
        suffix: (B, m, d).
        mask: (B, cached + m).
        max_new_tokens: The most tokens a row may get.
        eos_token_id: The tokens at which a row ends.
        pad_token_id: Fills a row behind its end.

    Returns:
        (B, new tokens) ids.
    """
    model: Any = language_model
    cached = mask.shape[1] - suffix.shape[1]
    rows = torch.arange(len(suffix)) * suffix.shape[1] + mask[:, cached:].sum(1).cpu() - 1
    with head_rows(language_model, rows.to(suffix.device)):
        logits = model(
            inputs_embeds=suffix, attention_mask=mask, past_key_values=cache, use_cache=True
        ).logits
    ends = torch.tensor(eos_token_id, device=suffix.device)
    ids = logits.argmax(-1)
    generated, done = [ids], torch.isin(ids, ends)
    with decoding(language_model, cache, mask, max_new_tokens) as step:
        while len(generated) < max_new_tokens and not done.all():
            ids = torch.where(done, pad_token_id, step(ids).argmax(-1))
            generated.append(ids)
            done = done | torch.isin(ids, ends)
    return torch.stack(generated, 1)


@contextmanager
def decoding(
    language_model: PreTrainedModel, cache: DynamicCache, mask: Tensor, new_tokens: int
) -> Iterator[Callable[[Tensor], Tensor]]:
    """A function that feeds each row a token, (B,) ids → (B, V) logits of the next.

    On a GPU it works in `crome.model.slots` where the model allows that.

    Args:
        language_model: A decoder with a plain growing cache.
        cache: Of the prompts; it is emptied or grows.
        mask: (B, N) of the prompts.
        new_tokens: The most that follow.
    """
    with slots_of(language_model) as slots:
        if slots is None or not slots.take(cache, mask, new_tokens):
            yield partial(_grow, language_model, cache, [mask])
            return
        places = count(mask.shape[1])
        yield lambda ids: slots.step(ids, next(places))


def _grow(model: Any, cache: DynamicCache, masks: list[Tensor], ids: Tensor) -> Tensor:
    """A step behind a growing cache; the last of the masks is that of all tokens before it."""
    masks[0] = mask = F.pad(masks[0], (0, 1), value=1)
    logits: Tensor = model(
        inputs_embeds=embed_words(model, ids)[:, None],
        attention_mask=mask,
        position_ids=mask.sum(1, keepdim=True) - 1,
        past_key_values=cache,
        use_cache=True,
    ).logits
    return logits[:, -1]
