"""`AttachedModel`: a vision-language model of transformers with the adapter before its LLM.

Forward, in order: the model's own tower and projector (once per distinct set of pictures, frozen)
→ adapter → the model's own `forward(mm_encoder_outputs=…)`, which does the rest as ever. No class
is patched and no pass is copied; with `W_u = 0` the result is the model's own, bit for bit.

Shapes: B rows, T tokens, I distinct sets of media, d width of the language model, A answer tokens,
V vocabulary, N options.
"""

import copy
import inspect
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import PreTrainedModel

from crome.adapter import CrossModalAdapter
from crome.attached import files
from crome.attached.encoding import Encoded, Encoder, join
from crome.attached.families import check_family, modalities, shares
from crome.attached.prefix import BLOCKS, pack, placeholders_of, window_of
from crome.errors import InputError
from crome.model.losses import IGNORED, answer_losses, predicting_rows
from crome.model.modeling import CromeOutput

Visual = dict[str, Encoded]


class AttachedModel(PreTrainedModel):
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
        have = modalities(vlm, self.encoder)
        named = list(have if branches is None else branches)
        if not named or set(named) - set(have):
            raise InputError(f"branches is {named!r}; {type(vlm).__name__} has {', '.join(have)}.")
        self.adapter_settings: dict[str, Any] = {
            "bottleneck": bottleneck,
            "branches": named,
            "gated": gated,
            "shared_up": shared_up,
            "activation": activation,
        }
        self.prompts = dict(prompts or {})
        self.adapter = self.new_adapter()
        self.task_adapters = nn.ModuleDict()
        self.active_adapter: str | None = None
        self.adapter_enabled = True
        self.identity: dict[str, Any] | None = None
        vlm.requires_grad_(False)
        self.adapter.to(self.place)
        accepted = inspect.signature(vlm.forward).parameters
        self.accepted = frozenset(accepted)
        self.rope = getattr(getattr(vlm, "model", vlm), "get_rope_index", None)
        self.positional = frozenset(
            inspect.signature(self.rope).parameters if self.rope is not None else ()
        )
        self.placeholders = placeholders_of(vlm.config)
        self.padding = next(
            n for n in range(len(self.placeholders) + 1) if n not in self.placeholders
        )
        self.shares_prefix = share_prefix and shares(vlm)
        self.window = window_of(vlm)
        self.eval()

    # ------------------------------------------------------------------ adapters

    @property
    def hidden_size(self) -> int:
        """Width d of the language model's embeddings."""
        return int(self.vlm.get_input_embeddings().weight.shape[-1])

    @property
    def place(self) -> torch.device:
        """Where the word embeddings are, and so what the adapter gives."""
        found: torch.device = self.vlm.get_input_embeddings().weight.device
        return found

    def new_adapter(self, settings: Mapping[str, Any] | None = None) -> CrossModalAdapter:
        """An identity adapter of this model's width, with these settings or the model's own."""
        chosen = {**(settings or self.adapter_settings)}
        return CrossModalAdapter(
            self.hidden_size, chosen.pop("bottleneck"), chosen.pop("branches"), **chosen
        )

    def save_adapter(self, path: str | os.PathLike[str], **metadata: Any) -> None:
        """Writes the active adapter: `adapter_model.safetensors` and `adapter_config.json`.

        Args:
            path: Folder, made if absent.
            metadata: Anything worth keeping beside it; must be JSON.
        """
        files.save(self, Path(path), metadata)

    def load_adapter(  # type: ignore[override]
        self, path: str | os.PathLike[str], name: str = "task"
    ) -> None:
        """Loads an adapter beside the others and makes it the active one.

        Args:
            path: A folder or a hub id.
            name: Under which rows and `set_adapter` choose it.

        Raises:
            InputError: The adapter belongs to another base, or its file is damaged.
        """
        self.task_adapters[name] = files.load(self, path)
        self.set_adapter(name)

    def set_adapter(self, name: str | None) -> None:  # type: ignore[override]
        """Chooses the adapter rows use by default; None is the one that trains."""
        if name is not None and name not in self.task_adapters:
            known = ", ".join(self.task_adapters) or "none"
            raise InputError(f"no adapter named {name!r} is loaded; loaded: {known}.")
        self.active_adapter = name

    def delete_adapter(self, name: str) -> None:  # type: ignore[override]
        """Unloads an adapter; where it was the active one, the one that trains is."""
        if name not in self.task_adapters:
            known = ", ".join(self.task_adapters) or "none"
            raise InputError(f"no adapter named {name!r} is loaded; loaded: {known}.")
        del self.task_adapters[name]
        if self.active_adapter == name:
            self.active_adapter = None

    def get_adapter(self, name: str | None) -> CrossModalAdapter | None:
        """The adapter module of that name, the one that trains for None."""
        if name is not None and name not in self.task_adapters:
            self.set_adapter(name)  # says what is loaded
        found: Any = self.adapter if name is None else self.task_adapters[name]
        return found

    @contextmanager
    def disable_adapter(self) -> Iterator[None]:
        """The bare model, as long as the block lasts."""
        before, self.adapter_enabled = self.adapter_enabled, False
        try:
            yield
        finally:
            self.adapter_enabled = before

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

    def get_input_embeddings(self) -> nn.Module:
        """The language model's word embeddings."""
        return self.vlm.get_input_embeddings()

    def get_output_embeddings(self) -> nn.Module:
        """The language model's head."""
        return self.vlm.get_output_embeddings()

    def save_pretrained(  # type: ignore[override]
        self, save_directory: str | os.PathLike[str], **kwargs: Any
    ) -> None:
        """Writes the adapter that trains; the base stays where it came from."""
        files.save(self, Path(save_directory), {}, self.adapter, kwargs.get("state_dict"))

    def load_trained(self, folder: str | os.PathLike[str]) -> None:
        """Reads what `save_pretrained` wrote into the adapter that trains."""
        self.adapter.load_state_dict(files.load(self, folder).state_dict())

    # ------------------------------------------------------------------ encoding and adapting

    def encode(self, media: Mapping[str, Tensor]) -> Visual:
        """Frozen features of one row's media, by modality; what a cache keeps."""
        return self.encoder(media, self.vlm.dtype)

    def adapted(
        self,
        encoded: Sequence[Visual],
        media_index: Tensor,
        adapter_names: Sequence[str | None] | None,
    ) -> list[Visual]:
        """Each row's features through its adapter; rows that show and ask for the same share them.

        Args:
            encoded: Of the I distinct sets of media.
            media_index: (B,) the set each row shows, -1 for none.
            adapter_names: One a row; the active one for all when None.
        """
        rows = media_index.tolist()
        names = [self.active_adapter] * len(rows) if adapter_names is None else list(adapter_names)
        if len(names) != len(rows):
            raise InputError(f"{len(names)} adapter names for {len(rows)} rows; give one a row.")
        wanted = dict.fromkeys(
            (name, row) for name, row in zip(names, rows, strict=True) if row >= 0
        )
        done: dict[tuple[str | None, int], Visual] = {}
        for name in dict.fromkeys(name for name, _ in wanted):
            sets = [row for other, row in wanted if other == name]
            for row, visual in zip(
                sets, self._through(name, [encoded[row] for row in sets]), strict=True
            ):
                done[name, row] = visual
        return [done[name, row] if row >= 0 else {} for name, row in zip(names, rows, strict=True)]

    def _through(self, name: str | None, visuals: Sequence[Visual]) -> list[Visual]:
        """Features through one adapter, all tokens of a modality in one product."""
        adapter = self.get_adapter(name)
        if adapter is None or not self.adapter_enabled:
            return list(visuals)
        results: list[Visual] = [dict(visual) for visual in visuals]
        for branch in adapter.down:
            held = [i for i, visual in enumerate(visuals) if branch in visual]
            tokens = [self.encoder.tokens(visuals[i][branch]) for i in held]
            flat = [x.reshape(-1, x.shape[-1]) for pieces in tokens for x in pieces]
            if not flat:
                continue
            weight = next(adapter.parameters())
            together = torch.cat(flat).to(weight.device, weight.dtype)
            out = adapter({branch: together})[branch].to(flat[0].dtype)
            parts = iter(out.split([len(x) for x in flat]))
            for i, pieces in zip(held, tokens, strict=True):
                shaped = [next(parts).view(x.shape) for x in pieces]
                results[i][branch] = self.encoder.replaced(visuals[i][branch], shaped)
        return results

    def _inputs(
        self,
        media: Sequence[Mapping[str, Tensor]] | None,
        media_index: Tensor | None,
        features: Sequence[Visual] | None,
        adapter_names: Sequence[str | None] | None,
        text: Mapping[str, Tensor],
    ) -> dict[str, Any]:
        """What the model takes beside ids and mask: encoder outputs, grids, token types."""
        inputs: dict[str, Any] = {k: v for k, v in text.items() if v is not None}
        if media_index is None or not media or not (media_index >= 0).any():
            return inputs
        encoded = self._features(media, media_index, features)
        rows = self.adapted(encoded or [], media_index, adapter_names)
        outputs = {}
        for modality in self.encoder.functions:
            shown = [row[modality] for row in rows if modality in row]
            if shown:
                outputs[modality] = join(shown)
        return inputs | {"mm_encoder_outputs": outputs} | self._grids(media, media_index)

    # ------------------------------------------------------------------ forward

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor,
        media: Sequence[Mapping[str, Tensor]] | None = None,
        media_index: Tensor | None = None,
        labels: Tensor | None = None,
        features: Sequence[Visual] | None = None,
        adapter_names: Sequence[str | None] | None = None,
        num_items_in_batch: Tensor | int | None = None,
        **text: Any,
    ) -> CromeOutput:
        """Loss on the answers, or logits.

        Args:
            input_ids: (B, T) with placeholders, padded on either side.
            attention_mask: (B, T).
            media: Tensors of the I distinct sets of media, from the processor.
            media_index: (B,) the set each row shows, -1 for none.
            labels: (B, T) with -100 outside answers.
            features: Frozen features of the sets instead of their pixels.
            adapter_names: An adapter for each row, None in it for the one that trains.
            num_items_in_batch: Answer tokens over all accumulated batches and devices.
            text: What the model reads beside each token (`token_type_ids` and the like).
        """
        if labels is None:
            inputs = self._inputs(media, media_index, features, adapter_names, text)
            call = {"input_ids": input_ids, "attention_mask": attention_mask, **inputs}
            with said():
                return CromeOutput(logits=self.vlm(**call, use_cache=False).logits)
        features = self._features(media, media_index, features)
        shown = (media, media_index, features, adapter_names)
        packed = self._packed(input_ids, attention_mask, labels, *shown, text)
        rows, targets = predicting_rows(labels)
        if packed is None:
            inputs = self._inputs(*shown, text)
            call = {"input_ids": input_ids, "attention_mask": attention_mask, **inputs}
        else:
            place, call = packed
            rows = place.flatten()[rows]
        with said():
            logits, losses = answer_losses(self.vlm, rows, targets, use_cache=False, **call)
        loss = reduced(losses, num_items_in_batch)
        if self.training and not loss.requires_grad:
            # Text-only batches touch what trains, so that all ranks have gradients.
            loss = loss + sum(0.0 * p.sum() for p in self.parameters() if p.requires_grad)
        return CromeOutput(loss=loss, logits=logits, token_losses=losses)

    def _packed(
        self,
        input_ids: Tensor,
        attention_mask: Tensor,
        labels: Tensor,
        media: Sequence[Mapping[str, Tensor]] | None,
        media_index: Tensor | None,
        features: Sequence[Visual] | None,
        adapter_names: Sequence[str | None] | None,
        text: Mapping[str, Tensor],
    ) -> tuple[Tensor, dict[str, Any]] | None:
        """Rows behind what they share, where model and rows let them: places, and the call."""
        if not self.shares_prefix or media_index is None or media is None or features is None:
            return None
        if self.window is not None and input_ids.shape[1] > self.window:
            return None  # layers that look back over a stretch would look back over other rows
        count = len(input_ids)
        names = [self.active_adapter] * count if adapter_names is None else list(adapter_names)
        sets = media_index.tolist()
        groups = [(kind, names[row]) if kind >= 0 else row for row, kind in enumerate(sets)]
        marks = self.placeholders
        plan = pack(input_ids, attention_mask, labels, groups, marks, self.hidden_size)
        if plan is None:
            return None
        positions = self._positions(input_ids, attention_mask, media, media_index, text)
        if positions is None:
            return None
        shown = torch.tensor(plan.shown)
        inputs = self._inputs(
            media, media_index[shown.to(media_index.device)], features,
            [names[row] for row in plan.shown],
            {name: plan.gathered(value) for name, value in text.items()},
        )  # fmt: skip
        call = {name: value for name, value in inputs.items() if name not in self.positional}
        call["input_ids"] = plan.gathered(input_ids, self.padding)
        call["position_ids"] = plan.gathered(positions)
        mask = plan.packing.mask(self.vlm.dtype)
        call["attention_mask"] = mask
        if BLOCKS in call:
            mask = plan.opened(mask, call.pop(BLOCKS))
            call["attention_mask"] = {"full_attention": mask, "sliding_attention": mask}
        return plan.place, call

    def _positions(
        self,
        input_ids: Tensor,
        attention_mask: Tensor,
        media: Sequence[Mapping[str, Tensor]],
        media_index: Tensor,
        text: Mapping[str, Tensor],
    ) -> Tensor | None:
        """(B, T) positions of each row alone, or (3, B, T) where a model has them."""
        count, length = input_ids.shape
        steps = torch.arange(length, device=input_ids.device).expand(count, -1)
        if self.rope is None:
            return steps
        grids = self._grids(media, media_index)
        if not grids:
            return steps
        beside = {k: v for k, v in text.items() if k in self.positional}
        found, _ = self.rope(input_ids=input_ids, attention_mask=attention_mask, **beside, **grids)
        return found if found.ndim == 3 and found.shape[1:] == input_ids.shape else None

    def _grids(
        self, media: Sequence[Mapping[str, Tensor]], media_index: Tensor
    ) -> dict[str, Tensor]:
        """What positions hang on besides the text, of every row in order."""
        order = [row for row in media_index.tolist() if row >= 0]
        grids = {}
        for name in self.positional & self.accepted:
            if values := [media[row][name] for row in order if name in media[row]]:
                grids[name] = torch.cat(values)
        return grids

    def _features(
        self,
        media: Sequence[Mapping[str, Tensor]] | None,
        media_index: Tensor | None,
        features: Sequence[Visual] | None,
    ) -> Sequence[Visual] | None:
        """The given features, or those of the pixels."""
        if features is not None or not media or media_index is None:
            return features
        return [self.encode(one) for one in media]

    @torch.no_grad()
    def generate(
        self,
        input_ids: Tensor,
        attention_mask: Tensor,
        media: Sequence[Mapping[str, Tensor]] | None = None,
        media_index: Tensor | None = None,
        features: Sequence[Visual] | None = None,
        adapter_names: Sequence[str | None] | None = None,
        **generation_kwargs: Any,
    ) -> Tensor:
        """Generates answers as transformers does it.

        Args:
            input_ids: As in `forward`, like the arguments that follow.
            attention_mask: See `forward`.
            media: See `forward`.
            media_index: See `forward`.
            features: See `forward`.
            adapter_names: See `forward`.
            generation_kwargs: Passed to the model's `generate`, with what it reads beside tokens.

        Returns:
            (B, new tokens) ids.
        """
        beside = {
            name: generation_kwargs.pop(name)
            for name in list(generation_kwargs)
            if is_beside(generation_kwargs[name], input_ids)
        }
        ids, mask, beside = left_padded(input_ids, attention_mask, beside)
        inputs = self._inputs(media, media_index, features, adapter_names, beside)
        with said():
            whole = self.vlm.generate(
                input_ids=ids, attention_mask=mask, **inputs, **generation_kwargs
            )
        return whole[:, ids.shape[1] :]

    @torch.no_grad()
    def option_losses(
        self,
        option_ids: Tensor,
        option_rows: Tensor,
        input_ids: Tensor,
        attention_mask: Tensor,
        media: Sequence[Mapping[str, Tensor]] | None = None,
        media_index: Tensor | None = None,
        features: Sequence[Visual] | None = None,
        adapter_names: Sequence[str | None] | None = None,
        **text: Any,
    ) -> Tensor:
        """Losses of candidate answers, for ranking them: the likeliest has the smallest sum.

        Args:
            option_ids: (N, A) the options of all rows, -100 behind each one's end.
            option_rows: (N,) the row each option answers.
            input_ids: (B, T) prompts without answers, padded on the right, as in `forward`.
            attention_mask: See `forward`.
            media: See `forward`.
            media_index: See `forward`.
            features: See `forward`.
            adapter_names: See `forward`.
            text: See `forward`.

        Returns:
            (N, A) cross-entropy of each token of each option, 0 behind its end.
        """
        features = self._features(media, media_index, features)
        wanted = option_ids != IGNORED
        prompts = tuple(x[option_rows] for x in (input_ids, attention_mask))
        ids, mask, labels = options_behind(*prompts, option_ids)
        room = (0, option_ids.shape[1])
        losses = option_ids.new_zeros(option_ids.shape, dtype=torch.float32)
        losses[wanted] = self(
            ids,
            mask,
            media=media,
            media_index=None if media_index is None else media_index[option_rows],
            labels=labels,
            features=features,
            adapter_names=adapter_names and [adapter_names[row] for row in option_rows.tolist()],
            **{name: F.pad(value[option_rows], room) for name, value in text.items()},
        ).token_losses
        return losses


def reduced(losses: Tensor, num_items_in_batch: Tensor | int | None) -> Tensor:
    """Mean of the answer tokens' losses, or their sum over a given number.

    Raises:
        InputError: There is no answer token.
    """
    if not len(losses):
        raise InputError("no token of this batch is an answer: labels are -100 throughout.")
    if num_items_in_batch is None:
        return losses.mean()
    if torch.is_tensor(num_items_in_batch):
        num_items_in_batch = num_items_in_batch.to(losses.device)
    return losses.sum() / num_items_in_batch


def is_beside(value: Any, input_ids: Tensor) -> bool:
    """Whether a value is read beside each token."""
    return isinstance(value, Tensor) and value.shape == input_ids.shape


def left_padded(
    input_ids: Tensor, attention_mask: Tensor, beside: Mapping[str, Tensor]
) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
    """Rows moved to the right, so that new tokens follow the last one of each."""
    if attention_mask[:, -1].all():
        return input_ids, attention_mask, dict(beside)
    steps = torch.arange(input_ids.shape[1], device=input_ids.device)
    shift = input_ids.shape[1] - last_real(attention_mask)[:, None]
    source = (steps - shift) % input_ids.shape[1]  # the padding comes to the front
    moved = {k: v.gather(1, source.to(v.device)) for k, v in beside.items()}
    return input_ids.gather(1, source), attention_mask.gather(1, source), moved


def options_behind(
    input_ids: Tensor, attention_mask: Tensor, option_ids: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Options behind the last token of prompts that are padded on the right.

    Args:
        input_ids: (N, T).
        attention_mask: (N, T).
        option_ids: (N, A), -100 behind each one's end.

    Returns:
        (N, T + A) ids, mask and labels.
    """
    room = (0, option_ids.shape[1])
    start = last_real(attention_mask)[:, None]
    place = start + torch.arange(option_ids.shape[1], device=start.device)
    ids = F.pad(input_ids, room).scatter(1, place, option_ids.clamp(min=0))
    wanted = (option_ids != IGNORED).to(attention_mask.dtype)
    mask = F.pad(attention_mask, room).scatter(1, place, wanted)
    labels = torch.full_like(ids, IGNORED).scatter(1, place, option_ids)
    return ids, mask, labels


def last_real(attention_mask: Tensor) -> Tensor:
    """(B,) one more than the last place of each row that is no padding."""
    steps = torch.arange(1, attention_mask.shape[1] + 1, device=attention_mask.device)
    return (attention_mask * steps).amax(1)


@contextmanager
def said() -> Iterator[None]:
    """Says what is meant where a model finds other media than its text has placeholders for."""
    try:
        yield
    except (ValueError, RuntimeError) as error:
        text = str(error)
        if "do not match" not in text or "tokens" not in text:
            raise
        raise InputError(
            f"{text.strip().splitlines()[0][:200]}: a prompt was cut inside its pictures, or the "
            "processor is not this model's; raise the limit, or load both from one checkpoint."
        ) from error
