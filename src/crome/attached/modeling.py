"""`AttachedModel`: a vision-language model of transformers with the adapter before its LLM.

Forward, in order: the model's own tower and projector (once per distinct set of pictures, frozen)
→ adapter → the model's own `forward(mm_encoder_outputs=…)`, which does the rest as ever. No class
is patched and no pass is copied; with `W_u = 0` the result is the model's own, bit for bit.

Shapes: B rows, T tokens, I distinct sets of media, d width of the language model, A answer tokens,
V vocabulary, N options.
"""

import copy
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any, NoReturn, Self

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from crome.adapter import CrossModalAdapter
from crome.attached import files
from crome.attached.adapting import adapted, through
from crome.attached.apart import answers_apart, disturbed
from crome.attached.batches import (
    AnswerStream,
    MediaBatch,
    Parts,
    mismatch_named,
    require_shape,
)
from crome.attached.encoding import Encoder, Visual, join
from crome.attached.families import check_family, modalities, shares
from crome.attached.hearing import features_heard, heard_inputs
from crome.attached.lengths import lengths_of, one_at_a_time, require_positions
from crome.attached.opening import prompts
from crome.attached.positions import Positions
from crome.attached.prefix import placeholders_of, window_of
from crome.attached.reading import label_losses, logits, with_options
from crome.attached.settings import answer_in, answer_length, divided
from crome.attached.stacked import Stacked
from crome.errors import InputError
from crome.model.conventions import Conventions
from crome.model.families import forget_lengths
from crome.model.hub import upload_folder
from crome.model.kernels import use_kernels
from crome.model.language import head_rows
from crome.model.losses import IGNORED, mean_loss
from crome.model.modeling import CromeOutput
from crome.model.pretrained import refuse_keywords
from crome.model.task_adapters import NamedAdapters, TaskAdapters


class AttachedModel(Conventions, TaskAdapters, PreTrainedModel):  # type: ignore[misc, override]
    """A frozen vision-language model and adapters before its language model.

    Args:
        vlm: A model of transformers with `get_image_features` and `mm_encoder_outputs`.
        bottleneck: Inner width m of the adapter.
        branches: Modalities that get a branch; by default all that the model has.
        gated: See `CrossModalAdapter`.
        shared_up: See `CrossModalAdapter`.
        activation: See `CrossModalAdapter`.
        share_prefix: Whether what rows on the same pictures begin with is read once, where the
            family allows it; exact up to float rounding.
        prompts: How prompts are made, kept in adapter files; see `crome.attached.prompts`.

    Raises:
        InputError: The family has no way in, or lacks a modality that is named.
    """

    GENERATOR = "vlm"
    main_input_name = "input_ids"
    accepts_loss_kwargs = True  # the Trainer then passes num_items_in_batch
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_flex_attn = True
    _supports_attention_backend = True
    _can_set_experts_implementation_cached_value = True  # the choice is the model's inside
    vlm: Any
    adapter: CrossModalAdapter

    def __init__(
        self,
        vlm: PreTrainedModel,
        *,
        bottleneck: int = 256,
        branches: Sequence[str] | None = None,
        gated: bool = True,
        shared_up: bool = True,
        activation: str = "silu",
        share_prefix: bool = True,
        prompts: Mapping[str, Any] | None = None,
    ) -> None:
        check_family(vlm)
        super().__init__(copy.deepcopy(vlm.config))
        self.loss_type = None  # type: ignore[assignment]
        self.vlm = vlm
        self.encoder = Encoder(vlm)
        self._stacked = Stacked(self.encoder)
        have = modalities(vlm, self.encoder)
        named = list(dict.fromkeys(have if branches is None else branches))
        if not named or set(named) - set(have):
            raise InputError(f"branches is {named!r}; {type(vlm).__name__} has {', '.join(have)}.")
        self.adapter_settings: dict[str, Any] = {
            "bottleneck": bottleneck, "branches": named, "gated": gated, "shared_up": shared_up,
            "activation": activation,
        }  # fmt: skip
        self.prompts = dict(prompts or {})
        self.adapter = self.new_adapter()
        self.task_adapters = NamedAdapters()
        self.identity: dict[str, Any] | None = None
        vlm.requires_grad_(False)
        use_kernels(vlm)
        self.adapter.to(self.place)
        self.positions = Positions(vlm)
        self.placeholders = placeholders_of(vlm.config)
        self._may_share = share_prefix
        self.window = window_of(vlm)
        self.eval()

    @cached_property
    def shares_prefix(self) -> bool:
        """Whether rows on the same pictures are read behind one copy of them; tried once."""
        return self._may_share and shares(self.vlm)

    # ------------------------------------------------------------------ adapters

    def base_identity(self) -> dict[str, Any]:
        """What an adapter of this model is valid for."""
        return files.identity(self)

    @property
    def hidden_size(self) -> int:
        """Width d of the language model's embeddings."""
        return int(self.vlm.get_input_embeddings().weight.shape[-1])

    @property
    def place(self) -> torch.device:
        """Where the word embeddings are, and so what the adapter gives."""
        return self.vlm.get_input_embeddings().weight.device

    def new_adapter(self, settings: Mapping[str, Any] | None = None) -> CrossModalAdapter:
        """An identity adapter of this model's width, with these settings or the model's own."""
        chosen = {**(settings or self.adapter_settings)}
        sizes = chosen.pop("bottleneck"), chosen.pop("branches")
        try:
            return CrossModalAdapter(self.hidden_size, *sizes, **chosen)
        except RuntimeError as error:  # of PyTorch's allocator
            raise InputError(
                f"bottleneck is {sizes[0]:,}, and memory has no room for it."
            ) from error

    def write_adapter(
        self, folder: Path, adapter: CrossModalAdapter, metadata: dict[str, Any]
    ) -> None:
        """Writes an adapter and the model it belongs to."""
        files.save(self, folder, metadata, adapter)

    def read_adapter(self, folder: Path) -> CrossModalAdapter:
        """Builds the adapter in a folder, refusing one of another model."""
        return files.load(self, folder)

    # ------------------------------------------------------------------ modes, parts

    def train(self, mode: bool = True) -> Self:
        """Sets the mode of the adapter; the frozen model stays in eval mode."""
        super().train(mode)
        self.vlm.eval()
        return self

    @property
    def language_model(self) -> Any:
        """The frozen language model inside, for activation checkpointing and compilation."""
        return self.vlm.get_decoder()

    def parts(self) -> dict[str, nn.Module | nn.Parameter]:
        """The frozen model and the adapter, for tables of parameters."""
        return {"vision_language_model": self.vlm, "adapter": self.adapter}

    @property
    def stages(self) -> tuple[str, ...]:
        """The one stage of training: the adapter alone."""
        return ("finetune",)

    def save_pretrained(  # type: ignore[override]
        self,
        save_directory: str | os.PathLike[str],
        *,
        state_dict: dict[str, Tensor] | None = None,
        push_to_hub: bool | str = False,
        **keywords: Any,
    ) -> None:
        """Writes the adapter that trains; the base stays where it came from.

        Args:
            save_directory: Folder, made if absent.
            state_dict: The model's tensors, gathered by a distributed engine.
            push_to_hub: As of `save_adapter`.
            keywords: Those of transformers that change nothing here; others are refused.

        Raises:
            InputError: A keyword that cannot be honoured.
        """
        keywords.pop("base", None)  # runs name it; the adapter's file does so anyway
        refuse_keywords("an adapter", keywords)
        if keywords.get("is_main_process", True):
            files.save(self, Path(save_directory), {}, self.adapter, state_dict)
            if push_to_hub:
                upload_folder(Path(save_directory), push_to_hub)

    @classmethod
    def from_pretrained(cls, *_: Any, **__: Any) -> NoReturn:
        """Refused with an `InputError`: transformers loads the model, `load_adapter` the rest."""
        raise InputError("load the base with transformers, then crome.attach, then load_adapter.")

    def load_trained(self, folder: str | os.PathLike[str]) -> None:
        """Reads what `save_pretrained` wrote into the adapter that trains."""
        self.adapter.load_state_dict(files.load(self, folder).state_dict())

    # ------------------------------------------------------------------ encoding and adapting

    def encode(self, media: Mapping[str, Tensor]) -> Visual:
        """Frozen features of one row's media, by modality; what a cache keeps."""
        return self.encoder(media, self.vlm.dtype)

    def encode_all(self, media: Sequence[Mapping[str, Tensor]]) -> list[Visual]:
        """Frozen features of several rows' media, in few passes where that is faster."""
        if self.place.type != "cuda":
            return [self.encode(one) for one in media]
        return self._stacked(media, self.vlm.dtype)

    @torch.no_grad()
    def get_image_features(self, **media: Tensor) -> list[Tensor]:
        """The tokens of pictures behind the active adapter, as the language model reads them.

        Args:
            media: The processor's tensors of one row, an entry of its `media`.

        Returns:
            One (N, d) for each picture or tile, or all in one tensor, as the family has it.
        """
        adapter = self.get_adapter(self.active_adapter)
        (visual,) = through(self.encoder, adapter, [self.encode(media)])
        return self.encoder.tokens(visual["image"])

    def encoded(self, media_batch: MediaBatch | None) -> MediaBatch | None:
        """With the features of its media, computed where they are not given."""
        if media_batch is None:
            return None
        known = media_batch.features or [None] * len(media_batch.media)
        pairs = zip(media_batch.media, known, strict=True)
        found = iter(self.encode_all([media for media, features in pairs if features is None]))
        return replace(media_batch, features=[next(found) if f is None else f for f in known])

    def inputs(self, media_batch: MediaBatch | None, text: Mapping[str, Tensor]) -> dict[str, Any]:
        """What the model takes beside ids and mask: encoder outputs, grids, token types."""
        media_batch = self.encoded(media_batch)
        if media_batch is None:
            return dict(text)
        rows = adapted(self.encoder, self.get_adapter, media_batch)
        outputs, heard = {}, {}
        for modality, found in self.encoder.together(rows).items():
            if modality == "audio":
                heard = heard_inputs(self.vlm, [self.encoder.tokens(one) for one in found])
            else:
                outputs[modality] = join(found)
        grids = self.positions.taken(self.positions.grids(media_batch))
        return {**text, "mm_encoder_outputs": outputs, **heard, **grids}

    def call(
        self, ids: Tensor, mask: Tensor, media_batch: MediaBatch | None, text: Mapping[str, Tensor]
    ) -> dict[str, Any]:
        """All that the model takes for whole rows."""
        own = self.positions.own(ids, mask, media_batch, text)
        return {"input_ids": ids, "attention_mask": mask, **own, **self.inputs(media_batch, text)}

    @contextmanager
    def running(self) -> Iterator[None]:
        """While the model's own `forward` or `generate` takes what `call` gave."""
        with mismatch_named(), one_at_a_time(self), features_heard(self.vlm, self.encoder):
            yield

    # ------------------------------------------------------------------ forward

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        labels: Tensor | None = None,
        num_items_in_batch: Tensor | int | None = None,
        output_hidden_states: bool = False,
        **batch: Any,
    ) -> CromeOutput:
        """Loss on the answers, or logits.

        Args:
            input_ids: (B, T) with placeholders, padded on either side.
            attention_mask: (B, T); None where nothing is padding.
            labels: (B, T) with -100 outside answers.
            num_items_in_batch: Answer tokens over all accumulated batches and devices.
            output_hidden_states: Whether to return those of the language model's layers, of a pass
                without labels.
            batch: `media` and `media_index` from the processor, or `features` of the media;
                `adapter_names`, one a row, None in it for the adapter that trains; and what the
                model reads beside each token (`token_type_ids` and the like).

        Raises:
            InputError: Parts of the batch disagree, or a row is longer than the model can read.
        """
        parts = Parts.read(self, input_ids, attention_mask, batch)
        require_positions(self, *parts)
        if labels is None:
            return logits(self, parts, output_hidden_states)
        require_shape("labels", labels, input_ids)
        answered, losses = label_losses(self, parts, labels)
        loss = mean_loss(losses, num_items_in_batch)
        if self.training and not loss.requires_grad:
            # Text-only batches touch what trains, so that all ranks have gradients.
            loss = loss + sum(0.0 * p.sum() for p in self.parameters() if p.requires_grad)
        return CromeOutput(loss=loss, logits=answered, token_losses=losses)

    def lengths(
        self, input_ids: Tensor, attention_mask: Tensor | None = None, **batch: Any
    ) -> Tensor:
        """(B,) positions that rows take.

        As many as tokens, but where a model has positions in a plane, in which a picture's tokens
        take only as many as its longer side.

        Args:
            input_ids: As in `forward`.
            attention_mask: As in `forward`.
            batch: The rest of a processor's batch.
        """
        return lengths_of(self, *Parts.read(self, input_ids, attention_mask, batch))

    @torch.no_grad()
    def generate(
        self, input_ids: Tensor | None = None, attention_mask: Tensor | None = None, **kwargs: Any
    ) -> Tensor:
        """Generates answers as transformers does it.

        Args:
            input_ids: As in `forward`.
            attention_mask: As in `forward`.
            kwargs: The rest of a batch, as in `forward`, and whatever the model's own `generate`
                takes; bound the length with `max_new_tokens`.

        Returns:
            (B, new tokens) ids.

        Raises:
            InputError: Parts disagree, or a row and its answer are longer than the model can read.
        """
        batch, settings = divided(self, kwargs)
        parts = Parts.read(self, input_ids, attention_mask, batch)
        length = answer_length(settings, self.vlm.generation_config, parts.ids.shape[1])
        require_positions(self, *parts, new_tokens=length)
        if disturbed(self, parts.mask, length):
            return answers_apart(self, parts, settings)
        if settings.get("streamer") is not None:
            settings["streamer"] = AnswerStream(settings["streamer"])
        # `generate` gives the head strided inputs, which are slow in bfloat16 on a CPU.
        hidden = self.vlm.get_output_embeddings() is None
        forget_lengths(self.language_model)
        with self.running():
            call = prompts(self, parts, settings)
            with nullcontext() if hidden else head_rows(self.vlm, None):
                found = self.vlm.generate(**call, **settings)
        return answer_in(found, call["input_ids"].shape[1])

    @torch.no_grad()
    def option_losses(
        self,
        option_ids: Tensor,
        option_rows: Tensor,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        **batch: Any,
    ) -> Tensor:
        """Losses of candidate answers, for ranking them: the likeliest has the smallest sum.

        Args:
            option_ids: (N, A) the options of all rows, -100 behind each one's end.
            option_rows: (N,) the row each option answers.
            input_ids: (B, T) prompts without answers, padded on the right.
            attention_mask: (B, T).
            batch: As in `forward`.

        Returns:
            (N, A) cross-entropy of each token of each option, 0 behind its end.
        """
        parts = Parts.read(self, input_ids, attention_mask, batch)
        require_positions(self, *parts, new_tokens=option_ids.shape[1])
        losses = option_ids.new_zeros(option_ids.shape, dtype=torch.float32)
        rows = with_options(self, parts, option_ids, option_rows)
        losses[option_ids != IGNORED] = self(**rows).token_losses
        return losses
