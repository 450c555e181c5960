"""The composite: parity with transformers, exactness of what is shared, padding, generation."""

import copy

import pytest
import torch
from transformers import (
    AutoModelForImageTextToText,
    InstructBlipConfig,
    InstructBlipForConditionalGeneration,
)

from crome.errors import InputError
from crome.model import bridge, prefix
from crome.model.adapter_files import bridge_device
from crome.model.losses import predicting_rows
from crome.model.modeling import CromeForConditionalGeneration
from crome.model.prefix import SharedPrefix, before_a_target
from crome.model.recompute import checkpoint_activations
from crome.model.splicing import splice

# Two ways to order the same fp32 sums; the worst difference seen is 2e-6 on logits of size 10.
CLOSE = {"rtol": 1e-5, "atol": 1e-5}
QUERY_ONLY = {"branches": ["query"], "adapter_bottleneck": None}
IMAGE_TOKEN = 319  # an id that the tests' tokenizer leaves free


def gradients(model, batch) -> dict[str, torch.Tensor]:
    """Of everything in the bridge."""
    model.zero_grad()
    model(**batch).loss.backward()
    return {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}


def train_bridge(model):
    """Lets every part of the bridge have gradients, dropout off."""
    for name, part in model.named_children():
        part.requires_grad_(name not in ("vision_model", "language_model"))
    return model.eval()


# ---------------------------------------------------------------------- parity with transformers


def stock_instructblip(model) -> InstructBlipForConditionalGeneration:
    """Transformers' model from the same weights."""
    config = InstructBlipConfig(
        vision_config=model.vision_model.config.to_dict(),
        qformer_config=model.qformer.config.to_dict(),
        text_config=model.language_model.config.to_dict(),
        num_query_tokens=model.query_tokens.shape[1],
        image_token_index=IMAGE_TOKEN,
    )
    stock = InstructBlipForConditionalGeneration(config)
    for name in ("vision_model", "qformer", "language_model"):
        setattr(stock, name, copy.deepcopy(getattr(model, name)))
    stock.language_projection.load_state_dict(model.query_projection.state_dict())
    stock.query_tokens.data.copy_(model.query_tokens)
    return stock.eval().to(model.device)


def stock_inputs(batch, queries: int) -> dict[str, torch.Tensor]:
    """The stock contract: placeholders in front of the text, a picture for every row."""
    width = {"input_ids": IMAGE_TOKEN, "attention_mask": 1, "labels": -100}
    pad = lambda name: torch.nn.functional.pad(batch[name], (queries, 0), value=width[name])  # noqa: E731
    decoder_only = batch["labels"].shape == batch["input_ids"].shape
    return {
        "pixel_values": batch["pixel_values"][batch["image_index"][:, 0]],
        "qformer_input_ids": batch["qformer_input_ids"],
        "qformer_attention_mask": batch["qformer_attention_mask"],
        "input_ids": pad("input_ids"),
        "attention_mask": pad("attention_mask"),
        "labels": pad("labels") if decoder_only else batch["labels"],
    }


@pytest.mark.gpu
@pytest.mark.parametrize("language", ["llama", "t5"])
@pytest.mark.parametrize("order", ["queries_first", "patches_first"])
def test_query_branch_alone_is_transformers_instructblip(build, rows, language, order):
    pair = build(language=language, visual_order=order, prompt_format="bare", **QUERY_ONLY)
    assert pair.model.query_tokens.std() > 0.01
    batch = pair.batch(rows)
    lengths = batch["attention_mask"].sum(1)
    assert len(lengths.unique()) == len(lengths)
    with torch.no_grad():
        theirs = stock_instructblip(pair.model)(**stock_inputs(batch, 3))
        ours = pair.model(**batch)
    torch.testing.assert_close(ours.loss, theirs.loss, **CLOSE)
    if language == "t5":
        targets = batch["labels"] != -100
        torch.testing.assert_close(ours.logits, theirs.logits[targets], **CLOSE)
        return
    with torch.no_grad():
        whole = pair.model(**{k: v for k, v in batch.items() if k != "labels"}).logits
    for mine, stock, length in zip(whole, theirs.logits, lengths.tolist(), strict=True):
        torch.testing.assert_close(mine[: 3 + length], stock[: 3 + length], **CLOSE)


# ---------------------------------------------------------------------- the adapter in its place


@pytest.mark.gpu
@pytest.mark.parametrize("language", ["llama", "t5"])
def test_conformance_2_zero_up_projection_equals_no_adapter_exactly(build, rows, language):
    pair = build(language=language, open_gates=False)
    batch = pair.batch(rows)
    closed = pair.model(**batch).logits
    without = build(language=language, adapter_bottleneck=None).model
    without.load_state_dict(pair.model.state_dict(), strict=False)
    assert torch.equal(closed, without(**batch).logits)
    torch.nn.init.normal_(pair.model.adapter.up["shared"].weight)
    assert not torch.allclose(closed, pair.model(**batch).logits)


@pytest.mark.parametrize(
    ("settings", "branches"),
    [({}, {"query", "patch"}), ({"branches": ["patch"]}, {"patch"}), (QUERY_ONLY, {"query"})],
)
def test_branches_are_settings_of_one_class(build, rows, settings, branches):
    model = build(**settings).model
    assert hasattr(model, "qformer") == hasattr(model, "query_projection") == ("query" in branches)
    assert hasattr(model, "patch_projection") == ("patch" in branches)
    if settings.get("adapter_bottleneck", 4) is not None:
        assert set(model.adapter.down) == branches


def test_conformance_5_sequence_and_labels(build, pictures):
    """32 + 256 visual positions, BOS at 288, answer and end labelled, all else -100."""
    pair = build(language="vicuna", num_query_tokens=32, prompt_format="bare")
    question, answer = "Is there a star?", "yes"
    batch = pair.batch([(pictures[0], question, answer), (None, "blue", answer)])
    features = pair.model.visual_features(batch["pixel_values"])
    features = features._replace(patches=torch.randn(1, 256, features.patches.shape[-1]))
    blocks = pair.model.visual_blocks(
        features, batch["image_index"], batch["qformer_input_ids"], batch["qformer_attention_mask"]
    )
    text = pair.model.get_input_embeddings()(batch["input_ids"])
    embeds, mask, labels = splice(
        text, batch["attention_mask"], batch["visual_position"], blocks,
        pair.model.visual_order, batch["labels"],
    )  # fmt: skip
    tokenizer = pair.processor.tokenizer
    q_ids, a_ids = (tokenizer(t, add_special_tokens=False)["input_ids"] for t in (question, answer))
    assert torch.equal(embeds[0, :256], blocks.tokens["patch"][0])
    assert torch.equal(embeds[0, 256:288], blocks.tokens["query"][0])
    ids = [tokenizer.bos_token_id, *q_ids, *a_ids, tokenizer.eos_token_id]
    assert torch.equal(embeds[0, 288:], pair.model.get_input_embeddings()(torch.tensor(ids)))
    ending = [*a_ids, tokenizer.eos_token_id]
    assert labels[0].tolist() == [-100] * (288 + 1 + len(q_ids)) + ending
    text_only = len(tokenizer("blue", add_special_tokens=False)["input_ids"]) + 1
    targets = [-100] * text_only + ending
    assert labels[1].tolist() == targets + [-100] * (labels.shape[1] - len(targets))
    assert mask.sum(1).tolist() == [288 + len(ids), text_only + len(ending)]


@pytest.mark.parametrize("language", ["llama", "t5"])
@pytest.mark.parametrize("share_prefix", [True, False])
def test_conformance_5_padding_on_the_left_does_not_change_the_loss(
    build, rows, language, share_prefix
):
    pair = build(language=language, share_prefix=share_prefix)
    batch = pair.batch(rows)
    moved = dict(batch)
    names = ["input_ids", "attention_mask"] + ["labels"] * (language != "t5")
    for row, length in enumerate(batch["attention_mask"].sum(1).tolist()):
        for name in names:
            moved[name] = moved[name].clone()
            moved[name][row] = moved[name][row].roll(batch["input_ids"].shape[1] - length)
    assert not torch.equal(moved["attention_mask"], batch["attention_mask"])
    torch.testing.assert_close(pair.model(**moved).loss, pair.model(**batch).loss, **CLOSE)


def test_predicting_rows_are_one_before_their_targets():
    labels = torch.tensor([[-100, -100, 5, 6], [-100, 7, -100, -100]])
    positions, targets = predicting_rows(labels)
    assert (positions.tolist(), targets.tolist()) == ([1, 2, 4], [5, 6, 7])


def test_tokens_behind_the_last_prediction_are_left_out_of_packed_sequences():
    labels = torch.tensor([[-100, -100, 5, 6], [-100, 7, -100, -100], [-100] * 4])
    assert before_a_target(labels).int().tolist() == [[1, 1, 1, 0], [1, 0, 0, 0], [0] * 4]


# ---------------------------------------------------------------------- the shared image prefix


@pytest.mark.gpu
@pytest.mark.parametrize("branches", [["query"], ["patch"], ["query", "patch"]])
@pytest.mark.parametrize("per_image", [[1, 1], [2, 2], [4], [1, 3, 2]])
def test_a_shared_prefix_has_the_loss_and_gradients_of_independent_rows(
    build, rows, pictures, branches, per_image, monkeypatch
):
    pair = build(branches=branches)
    model = train_bridge(pair.model)
    texts = [row[1:] for row in rows * 2]
    shown = [picture for picture, n in zip(pictures, per_image, strict=False) for _ in range(n)]
    batch = pair.batch([(p, *t) for p, t in zip(shown, texts, strict=False)])
    shared, calls = SharedPrefix.losses, []
    monkeypatch.setattr(SharedPrefix, "losses", lambda *a: calls.append(1) or shared(*a))
    model.config.share_prefix = False
    loss, expected = model(**batch).loss, gradients(model, batch)
    assert not calls
    model.config.share_prefix = True
    torch.testing.assert_close(model(**batch).loss, loss, rtol=1e-5, atol=0)
    for name, gradient in gradients(model, batch).items():
        if name.endswith("key.bias"):
            continue  # softmax does not see it: its gradient is rounding around zero
        # relative to the tensor: single entries of it may cancel to nothing
        error = (gradient - expected[name]).norm() / (expected[name].norm() + 1e-6)
        assert error < 1e-5, name
    assert bool(calls) == ("patch" in branches and max(per_image) > 1)


@pytest.mark.gpu
@pytest.mark.parametrize("checkpointed", [False, True])
def test_an_opening_of_all_prompts_is_read_once_with_the_same_result(
    build, rows, checkpointed, monkeypatch
):
    pair = build(system_prompt="You look at pictures and answer in one word." * 3)
    model, batch = train_bridge(pair.model), pair.batch(rows)
    reading, opened = SharedPrefix.read_opening, []

    def read_opening(*arguments):
        read = reading(*arguments)
        opened.append(read is not None)
        return read

    monkeypatch.setattr(SharedPrefix, "read_opening", read_opening)
    if checkpointed:
        checkpoint_activations(model.language_model)
    runs = []
    for worth in (10**9, 1):  # never, always
        monkeypatch.setattr(prefix, "WORTH_A_PASS", worth)
        runs.append((model(**batch).loss.item(), gradients(model, batch), pair.say(rows)))
    (loss, expected, said), (loss_too, found, said_too) = runs
    assert opened == [False] * 3 + [True] * 3
    assert (loss_too, said_too) == (pytest.approx(loss, rel=1e-5), said)
    for name, gradient in found.items():
        error = (gradient - expected[name]).norm() / (expected[name].norm() + 1e-6)
        assert name.endswith("key.bias") or error < 1e-5, name


@pytest.mark.parametrize(
    ("why", "language", "change"),
    [
        ("sliding windows are no plain prefix", "mistral", {}),
        ("queries differ between questions", "llama", {"visual_order": "queries_first"}),
        ("the user said so", "llama", {"share_prefix": False}),
    ],
)
def test_a_prefix_is_not_shared_where(build, rows, why, language, change, monkeypatch):
    pair = build(language=language, **change)
    monkeypatch.setattr(SharedPrefix, "losses", lambda *a: pytest.fail(why))
    assert pair.model(**pair.batch(rows)).loss.isfinite()


@pytest.mark.parametrize("missing", ["text-only row", "several images", "one each"])
def test_a_prefix_is_not_shared_by_rows_without_one(build, rows, pictures, missing, monkeypatch):
    pair = build()
    monkeypatch.setattr(SharedPrefix, "losses", lambda *a: pytest.fail(missing))
    images = {"text-only row": None, "several images": pictures[1:3], "one each": pictures[2]}
    kept = rows[1:] if missing == "one each" else rows
    assert pair.model(**pair.batch([*kept, (images[missing], *rows[0][1:])])).loss.isfinite()


# ---------------------------------------------------------------------- attention


@pytest.mark.parametrize("made", ["from_backbones", "from_pretrained", "config alone"])
def test_the_language_model_keeps_its_attention(build, tiny_config, tmp_path, made):
    """Joining configs resets the choice of attention; None would drop the causal mask."""
    if made == "config alone":
        model = CromeForConditionalGeneration(tiny_config())
    else:
        model = build().model
    if made == "from_pretrained":
        model.save_pretrained(tmp_path)
        model = CromeForConditionalGeneration.from_pretrained(tmp_path)
    for part in (model.language_model, model.vision_model, model.qformer):
        assert part.config._attn_implementation is not None
    ids = torch.arange(10, 20)[None]
    changed = ids.clone()
    changed[0, -1] += 1
    before, after = (model(i, torch.ones_like(i)).logits for i in (ids, changed))
    assert torch.equal(before[:, :-1], after[:, :-1])
    assert not torch.equal(before[:, -1], after[:, -1])


def test_no_answer_token_leaks_back(build, rows):
    """A later token changes no earlier logit, with open gates and everything visual in front."""
    pair = build()
    batch = {k: v for k, v in pair.batch(rows).items() if k != "labels"}
    before = pair.model(**batch).logits
    last = batch["attention_mask"].sum(1) - 1
    batch["input_ids"][range(3), last] += 1
    after = pair.model(**batch).logits
    for row, length in enumerate((last + 7).tolist()):  # 4 patches and 3 queries in front
        assert torch.equal(before[row, :length], after[row, :length])
        assert not torch.equal(before[row, length], after[row, length])


def test_eager_and_sdpa_attention_agree(build, rows):
    pair = build()
    batch = pair.batch(rows)
    expected = pair.model(**batch).logits
    pair.model.language_model.set_attn_implementation("eager")
    assert pair.model.language_model.config._attn_implementation == "eager"
    torch.testing.assert_close(pair.model(**batch).logits, expected, **CLOSE)


# ---------------------------------------------------------------------- rows of every kind


@pytest.mark.gpu
@pytest.mark.parametrize("language", ["llama", "t5"])
def test_a_mixed_batch_has_the_losses_of_its_rows_alone(build, rows, pictures, language):
    """Text-only rows, one and several images; text in front of the visual block."""
    pair = build(language=language, prompt_format=["{bos}Look:", "{question}"])
    three = [*pictures[2:4], pictures[0]]
    mixed = [*rows, (None, "Is there a circle?", "no"), (three, "How?", "2")]
    together = pair.model(**pair.batch(mixed)).token_losses
    alone = [pair.model(**pair.batch([row])).token_losses for row in mixed]
    torch.testing.assert_close(together, torch.cat(alone), **CLOSE)


def test_several_images_are_shown_in_order(build, pictures):
    pair = build()
    ask = lambda images: pair.model(**pair.batch([(images, "Which?", "blue")])).loss  # noqa: E731
    a, b = pictures[:2]
    losses = [ask([a, b]), ask([b, a]), ask([a]), ask([b])]
    assert len({round(loss.item(), 4) for loss in losses}) == 4


def test_equal_pictures_cost_one_pass_through_the_encoder(build, rows, monkeypatch):
    pair = build()
    seen = []
    pair.model.vision_model.register_forward_hook(
        lambda module, args, kwargs, out: seen.append(len(kwargs["pixel_values"])), with_kwargs=True
    )
    pair.model(**pair.batch(rows))
    assert seen == [2]


@pytest.mark.gpu
def test_features_stand_for_pixels(build, rows):
    pair = build()
    batch = pair.batch(rows)
    expected = pair.model(**batch).loss
    features = pair.model.visual_features(batch.pop("pixel_values"))
    assert torch.equal(pair.model(**batch, features=features).loss, expected)


def test_num_items_in_batch_divides_the_sum(build, rows):
    pair = build()
    output = pair.model(**pair.batch(rows), num_items_in_batch=torch.tensor(100))
    torch.testing.assert_close(output.loss, output.token_losses.sum() / 100)


def test_an_encoder_decoder_wants_labels(build, rows):
    pair = build(language="t5")
    with pytest.raises(InputError, match="needs labels in forward; use generate"):
        pair.model(**pair.batch([row[:2] for row in rows]))


# ---------------------------------------------------------------------- generation


@pytest.mark.gpu
@pytest.mark.parametrize("language", ["llama", "vicuna", "t5"])
@pytest.mark.parametrize("decoding", [{}, {"num_beams": 3}])
def test_conformance_13_a_batch_says_what_its_rows_say_alone(
    build, rows, pictures, language, decoding
):
    pair = build(language=language)
    mixed = [*rows, (None, "Is there a circle in the picture? no", ""), (pictures[:2], "How?", "")]
    together = pair.say(mixed, **decoding)
    assert together == [pair.say([row], **decoding)[0] for row in mixed]
    assert len({tuple(said) for said in together}) > 1


@pytest.mark.gpu
@pytest.mark.parametrize("branches", [["patch"], ["query", "patch"]])
def test_greedy_behind_a_shared_prefix_says_the_same(build, rows, pictures, branches, monkeypatch):
    pair = build(branches=branches)
    asked = [*rows, (pictures[0], "no"), (pictures[1], "yes yes yes Is there a red triangle?")]
    alone = [pair.say([row])[0] for row in asked]
    read, calls = SharedPrefix.read, []
    monkeypatch.setattr(SharedPrefix, "read", lambda *a: calls.append(1) or read(*a))
    assert pair.say(asked) == alone
    assert calls
    # What else a language model wants of its decoding is still done.
    pair.model.language_model.generation_config.suppress_tokens = [said[0] for said in alone]
    suppressed = [pair.say([row])[0] for row in asked]
    assert pair.say(asked) == suppressed != alone


@pytest.mark.parametrize("language", ["llama", "t5"])
def test_text_alone_is_answered_as_by_the_bare_language_model(build, rows, language):
    pair = build(language=language)
    bare = [(None, row[1]) for row in rows]
    said = pair.say(bare)
    for row, tokens in zip(bare, said, strict=True):
        batch = pair.batch([row])
        ids = pair.model.language_model.generate(
            input_ids=batch["input_ids"], attention_mask=batch["attention_mask"],
            max_new_tokens=6, do_sample=False, **pair.processor.generation_kwargs,
        )[0].tolist()  # fmt: skip
        ids = ids[1:] if language == "t5" else ids[batch["input_ids"].shape[1] :]
        assert ids[: len(tokens)] == tokens
        assert len(tokens) > 0
    mixed = [*rows, *bare]
    assert pair.say(mixed)[3:] == said


def test_greedy_answers_are_the_best_teacher_forced_tokens(build, rows, pictures):
    """Cached decoding equals the whole sequence recomputed."""
    pair = build()
    question = rows[1][1]
    (said,) = pair.say([(pictures[0], question)])
    batch = pair.batch([(pictures[0], question)])
    prompt = batch["input_ids"]
    batch["input_ids"] = torch.cat([prompt, torch.tensor([said])], 1)
    batch["attention_mask"] = torch.ones_like(batch["input_ids"])
    logits = pair.model(**batch).logits[0, 7 + prompt.shape[1] - 1 : -1]
    assert logits.argmax(-1).tolist() == said


def test_sampling_follows_the_seed(build, rows):
    pair = build()

    def sample(seed: int) -> list[list[int]]:
        torch.manual_seed(seed)
        return pair.say(rows, do_sample=True, temperature=2.0)

    assert sample(1) == sample(1) != sample(2)


def test_streaming_gives_the_tokens_of_the_answer(build, rows):
    class Streamer:
        tokens: list[int] = []  # noqa: RUF012
        ended = False

        def put(self, value):
            self.tokens += value.flatten().tolist()

        def end(self):
            self.ended = True

    pair, streamer = build(), Streamer()
    (said,) = pair.say(rows[:1], streamer=streamer)
    assert streamer.tokens[: len(said)] == said
    assert streamer.ended


# ---------------------------------------------------------------------- adapters in one batch


@pytest.mark.gpu
@pytest.mark.parametrize("language", ["llama", "t5"])
def test_mixed_adapters_in_a_batch_equal_each_row_alone(build, rows, tmp_path, randomise, language):
    pair = build(language=language)
    for name in ("left", "right"):
        randomise(pair.model.adapter)
        pair.model.save_adapter(tmp_path / name)
    for name in ("left", "right"):
        pair.model.load_adapter(tmp_path / name, name)
    randomise(pair.model.adapter)
    names = ["left", None, "right"]
    batch = pair.batch(rows)
    together = pair.model(**batch, adapter_names=names).token_losses
    said = pair.say(rows, names=names)
    alone = []
    for row, name, tokens in zip(rows, names, said, strict=True):
        pair.model.set_adapter(name)
        alone.append(pair.model(**pair.batch([row])).token_losses)
        assert pair.say([row]) == [tokens]
    torch.testing.assert_close(together, torch.cat(alone), **CLOSE)
    pair.model.set_adapter("left")
    assert not torch.allclose(pair.model(**batch).token_losses, together)
    with pytest.raises(InputError, match=r"'centre' is loaded; loaded: left, right"):
        pair.model.set_adapter("centre")


# ---------------------------------------------------------------------- building


def test_fresh_projections_match_the_scale_of_word_embeddings(build):
    model = build(language="gemma3", open_gates=False).model
    words = model.get_input_embeddings()(torch.arange(320)).pow(2).mean().sqrt()
    assert words > 0.5  # Gemma multiplies on lookup: 0.2 · √32
    for projection in (model.query_projection, model.patch_projection):
        x = torch.randn(500, projection.in_features)
        assert projection(x).pow(2).mean().sqrt().item() == pytest.approx(words.item(), rel=0.2)


def test_words_are_looked_up_where_the_language_model_is(build, monkeypatch):
    """A language model that a library placed is on a device of its own; the bridge stays."""
    model = build(open_gates=False).model
    model.get_input_embeddings().to("meta")
    asked = []

    def embed_words(_, ids):
        asked.append(ids.device.type)
        return torch.ones(4, 32)

    monkeypatch.setattr(bridge, "embed_words", embed_words)
    assert model.match_embedding_scale() == 1
    assert asked == ["meta"]
    assert bridge_device(model).type == "cpu"


def test_queries_start_different(build):
    queries = build().model.query_tokens[0]
    assert queries.std().item() == pytest.approx(0.02, rel=0.4)
    assert len(queries.unique(dim=0)) == len(queries)


def test_it_is_found_by_the_auto_class(tiny_config):
    model = AutoModelForImageTextToText.from_config(tiny_config())
    assert isinstance(model, CromeForConditionalGeneration)
