"""From the prompts of a batch to what the language model reads of them.

Shapes: B rows, T text tokens, L tokens of a row with its visual ones, d width of the language
model.
"""

from dataclasses import dataclass

from torch import Tensor, bincount

from crome.errors import InputError
from crome.model.batch import Layout, PromptBatch
from crome.model.bridge import Bridge
from crome.model.families import context_length, keeps_plainly, past_a_limit
from crome.model.kernels import obeys_packing
from crome.model.language import embed_words
from crome.model.prefix import SharedPrefix
from crome.model.splicing import VisualBlocks, splice
from crome.model.vision import VisualFeatures


@dataclass(frozen=True)
class Prompts:
    """A batch on its way to the language model.

    Attributes:
        batch: As it was given.
        layout: Its numbers, on the CPU.
        text: (B, T, d) word embeddings.
        blocks: Visual tokens; None where no row shows an image.
        lengths: (B,) tokens of each row with its visual ones, on the CPU.
    """

    batch: PromptBatch
    layout: Layout
    text: Tensor
    blocks: VisualBlocks | None
    lengths: Tensor


class Reader(Bridge):
    """How a `CromeForConditionalGeneration` lays out its prompts for the language model."""

    tower_fingerprints: dict[str, str | None] | None

    @property
    def visual_order(self) -> tuple[str, ...]:
        """Branches in the order in which the language model reads them."""
        patches_first = self.config.visual_order == "patches_first"
        return ("patch", "query") if patches_first else ("query", "patch")

    def prompts(self, batch: PromptBatch, labels: Tensor | None = None) -> Prompts:
        """A batch as embeddings of its words and blocks of visual tokens.

        Args:
            batch: The prompts.
            labels: Kept in the layout.

        Raises:
            InputError: A row is longer than the language model can read, or its image is missing.
        """
        layout = Layout.plan(batch, labels)
        blocks = self._blocks(batch, layout)
        text = embed_words(self.language_model, batch.input_ids)  # (B, T, d)
        lengths = layout.lengths
        if blocks is not None:
            block = sum(tokens.shape[1] for tokens in blocks.tokens.values())
            lengths = lengths + block * bincount(blocks.rows, minlength=len(lengths))
        self.require_room(lengths)
        return Prompts(batch, layout, text, blocks, lengths)

    def _blocks(self, batch: PromptBatch, layout: Layout) -> VisualBlocks | None:
        if layout.image_index is None:
            self.names_of_rows(batch.adapter_names, len(batch.input_ids))  # refuses a wrong number
            return None
        if batch.features is not None:  # which a cache has as a plain list
            features = VisualFeatures(*batch.features)  # type: ignore[arg-type]
        elif batch.pixel_values is not None:
            features = self.visual_features(batch.pixel_values)
        else:
            raise InputError("image_index names images, and there are no pixel_values.")
        shown = next(x for x in features if x is not None and x is not features.outputs)
        if int(layout.image_index.max()) >= len(shown):
            raise InputError(
                f"image_index names image {int(layout.image_index.max())}, and the batch has "
                f"{len(shown)}."
            )
        return self.visual_blocks(
            features,
            layout.image_index,
            batch.qformer_input_ids,
            batch.qformer_attention_mask,
            batch.adapter_names,
        )

    def require_room(self, lengths: Tensor, new_tokens: int = 0) -> None:
        """Refuses rows that are longer than the language model has positions for.

        Args:
            lengths: (B,) tokens of each row.
            new_tokens: That may follow them.

        Raises:
            InputError: With the longest.
        """
        limit = context_length(self.language_model.config)
        longest = int(lengths.max())
        if limit is not None and longest + new_tokens > limit:
            more = f" and an answer of up to {new_tokens}" if new_tokens else ""
            raise InputError(
                f"row {int(lengths.argmax())} of the batch has {longest} tokens with its "
                f"pictures{more}; the language model reads {limit}. Shorten the question or its "
                "history, show fewer pictures, or ask for a shorter answer."
            )

    def spliced(
        self, prompts: Prompts, side: str = "right", labels: Tensor | None = None
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        """Embeddings, mask and labels with the visual blocks at their place; see `splice`."""
        layout = prompts.layout
        return splice(
            prompts.text, layout.real.long(), layout.visual_position, prompts.blocks,
            self.visual_order, labels, side=side, length=int(prompts.lengths.max()),
        )  # fmt: skip

    def prefix(
        self, prompts: Prompts, new_tokens: int = 0, packed: bool = False
    ) -> SharedPrefix | None:
        """What the questions on an image share, where layout, model and rows let them.

        Args:
            prompts: The batch.
            new_tokens: That follow the prompts.
            packed: Whether it is for one pass over packed rows, or for a pass of its own, which
                cannot be where other processes hold layers.
        """
        model = self.language_model
        allowed = (
            self.config.share_prefix
            and self.visual_order[0] == "patch"
            and not self.config.text_config.is_encoder_decoder
            and keeps_plainly(model)
            and (obeys_packing(model) if packed else self.may_run_twice)
            and not past_a_limit(model.config, int(prompts.lengths.max()) + new_tokens)
        )
        return SharedPrefix.cut(prompts.text, prompts.layout, prompts.blocks) if allowed else None

    @property
    def may_run_twice(self) -> bool:
        """Not where other processes hold layers: all must run as many passes."""
        return self.tower_fingerprints is None
