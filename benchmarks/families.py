"""The adapter on every vision-language family of transformers, at random toy size.

    python benchmarks/families.py --out docs/results/families.md [--only llava,qwen3_vl]

Each family is built with its own processor, attached, and checked with pictures, and where it has
ears with recordings too; results are kept beside the table as JSON lines, so that an interrupted
sweep goes on. What the checks mean is in `CHECKS`.
"""

import argparse
import json
import sys
import tempfile
import time
import warnings
import wave
from collections.abc import Callable, Iterable, Sequence
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from PIL import Image
from tiny_vlms import HEARING, build, model_class, supported
from torch import Tensor

import crome.attached as attached
from crome.attached.families import check_kind
from crome.attached.keeping import SMALL
from crome.attached.media import Media
from crome.attached.rows import new_row
from crome.features.media import CachedMediaProcessor, MediaCache, Prepared
from crome.model.stages import apply_stage
from crome.rows import Row

FLAT = ("GotOcr2Processor", "PPChart2TableProcessor", "PaliGemmaProcessor")
"""Processors that take no text alone, or no lists of lists."""
PARTS = {"image": "images", "audio": "audio"}
LENGTH = 5
TOLERANCE = 1e-4


class Case:
    """A family attached at toy size, with pictures or recordings, and questions.

    Args:
        kind: Model type.
        device: Where it is.
        medium: `image` or `audio`.
    """

    def __init__(self, kind: str, device: str = "cpu", medium: str = "image") -> None:
        self.kind, self.device, self.medium = kind, device, medium
        self.vlm, self.own = build(kind)
        self.vlm.to(device)
        self.model, self.processor = attached.attach(self.vlm, self.own, bottleneck=8)
        self.small, self.large = picture(60, 44, 1), picture(110, 60, 2)
        if medium == "audio":
            self.folder, rate = tempfile.TemporaryDirectory(), self.processor.sampling_rate
            self.small = recording(Path(self.folder.name), rate, 0.6, 1)
            self.large = recording(Path(self.folder.name), rate, 1.1, 2)

    def batch(self, rows: Sequence[tuple[Any, str]], answers: Any = None) -> dict[str, Any]:
        """Rows of (what is shown or None, question) as the model takes them."""
        shown, questions = zip(*rows, strict=True)
        media = {PARTS[self.medium]: shown}
        return self.placed(dict(self.processor(**media, text=questions, answers=answers)))

    def row(self, shown: Any, question: str, answer: str) -> Row:
        """The same as a row of data."""
        media = () if shown is None else (shown,)
        images, audios = (media, ()) if self.medium == "image" else ((), media)
        return Row(images, question, answer, question, audios=audios)

    def placed(self, value: Any) -> Any:
        """Tensors inside lists and dictionaries, where the model is."""
        if isinstance(value, Tensor):
            return value.to(self.device)
        if isinstance(value, dict):
            return {name: self.placed(inner) for name, inner in value.items()}
        return [self.placed(inner) for inner in value] if isinstance(value, list) else value

    def draw(self, seed: int = 0, std: float = 0.1) -> None:
        """Gives the adapter that trains an up-projection that does something."""
        generator = torch.Generator().manual_seed(seed)
        for weight in self.model.adapter.parameters():
            weight.data.copy_(std * torch.randn(weight.shape, generator=generator))

    def greedy(self, batch: dict[str, Any], **more: Any) -> Tensor:
        """Answers of `LENGTH` tokens."""
        batch = {k: v for k, v in batch.items() if k != "labels"}
        return self.model.generate(**batch, **more, **plain(self.processor))

    def native(self, medium: Any, question: str) -> dict[str, Any]:
        """What the family's own processor makes of a row, for the bare model."""
        media = Media() if medium is None else Media(**{PARTS[self.medium]: (medium,)})
        prompt = self.processor.template.render(
            self.processor.messages(new_row(0, question, media))
        )
        flat = type(self.own).__name__ in FLAT
        shown: dict[str, Any] = {}
        if medium is not None and self.medium == "image":
            shown = {"images": [medium] if flat else [[medium]]}
        elif medium is not None:
            rate = {"sampling_rate": self.processor.sampling_rate}
            shown = {"audio": [samples_in(medium)], "audio_kwargs": rate}
        own = self.own.tokenizer if flat and medium is None else self.own
        if "mm_token_type_ids" in self.processor.inputs:
            shown["return_mm_token_type_ids"] = True
        batch = dict(own(text=[prompt], return_tensors="pt", **shown))
        return self.placed({k: v for k, v in batch.items() if k in self.processor.inputs})


def zero_is_the_model(case: Case) -> None:
    """With `W_u = 0`: the model itself, bit for bit, logits and greedy tokens."""
    native = case.native(case.small, "what is it?")
    with torch.no_grad():
        expected = case.vlm(**native, use_cache=False).logits
        batch = case.batch([(case.small, "what is it?")])
        same(case.model(**batch).logits, expected)
        tokens = case.vlm.generate(**native, **plain(case.processor))
    same(case.greedy(batch), tokens[:, native["input_ids"].shape[1] :])


def gradient_in_the_adapter(case: Case) -> None:
    """The gradient reaches every tensor of the medium's branch, and nothing else has one."""
    case.draw()
    apply_stage(case.model, "finetune")
    case.model.train()
    case.model(**case.batch([(case.small, "what is it?")], ["a red one"])).loss.backward()
    case.model.eval()
    adapter = case.model.adapter
    for part in (adapter.down[case.medium], adapter.gate[case.medium], adapter.up["shared"]):
        grad = part.weight.grad
        assert grad is not None, "no gradient in the adapter"
        assert grad.abs().sum() > 0, "a gradient of zero in the adapter"
    assert all(p.grad is None for p in case.vlm.parameters()), "a gradient in the frozen model"
    case.model.zero_grad()


def rows_together_as_alone(case: Case) -> None:
    """Pictures of different sizes and text alone: losses and answers of each row alone."""
    case.draw()
    rows = [(case.small, "what is it?"), (case.large, "is it a large red one?"), (None, "why?")]
    answers = ["a red one", "no", "so"]
    with torch.no_grad():
        together = case.model(**case.batch(rows, answers)).token_losses
        alone = [
            case.model(**case.batch([row], [answer])).token_losses
            for row, answer in zip(rows, answers, strict=True)
        ]
    near(together, torch.cat(alone))
    whole = case.greedy(case.batch(rows))
    for i, row in enumerate(rows):
        one = case.greedy(case.batch([row]))
        same(whole[i : i + 1, : one.shape[1]], one)


def text_alone_is_the_model(case: Case) -> None:
    """A row without pictures: the bare model, whatever the adapter is, beside one that has some."""
    case.draw()
    native = case.native(None, "how are you?")
    with torch.no_grad():
        tokens = case.vlm.generate(**native, **plain(case.processor))
        expected = case.vlm(**native, use_cache=False).logits
        same(case.model(**case.batch([(None, "how are you?")])).logits, expected)
    answer = tokens[:, native["input_ids"].shape[1] :]
    same(case.greedy(case.batch([(None, "how are you?")])), answer)
    both = case.greedy(case.batch([(None, "how are you?"), (case.small, "what is it?")]))
    same(both[:1, : answer.shape[1]], answer)


def saved_and_loaded(case: Case) -> None:
    """Saved, loaded under a name: the same losses."""
    case.draw()
    batch = case.batch([(case.small, "what is it?")], ["a red one"])
    with tempfile.TemporaryDirectory() as folder, torch.no_grad():
        expected = case.model(**batch).token_losses
        case.model.save_adapter(folder)
        case.model.load_adapter(folder, name="saved")
        case.model.adapter.reset_parameters()
        same(case.model(**batch).token_losses, expected)
    case.model.delete_adapter("saved")


def cached_as_live(case: Case) -> None:
    """Features kept and given back: the same losses as from pixels.

    On a GPU up to rounding: pictures that are encoded together are summed in another order.
    """
    case.draw()
    compare = same if case.device == "cpu" else near
    rows = [(case.small, "what is it?"), (case.large, "is it red?"), (None, "why?")]
    batch = case.batch(rows, ["a red one", "no", "so"])
    with torch.no_grad():
        expected = case.model(**batch).token_losses
        kept = [case.model.encode(media) for media in batch["media"]]
        compare(case.model(**batch, features=kept).token_losses, expected)
        with tempfile.TemporaryDirectory() as folder:
            read = on_disk(case, rows, ["a red one", "no", "so"], Path(folder))
            compare(case.model(**read).token_losses, expected)


def on_disk(case: Case, rows: Any, answers: Sequence[str], folder: Path) -> dict[str, Any]:
    """A batch whose media are read from a cache that was just filled."""
    cache = MediaCache(case.model, case.processor, folder)
    asked = [case.row(*row, answer) for row, answer in zip(rows, answers, strict=True)]
    missing = cache.missing(case.processor, asked)
    prepared = Prepared(case.processor)(missing)
    assert sum(cache.fill(case.model, [prepared], len(missing))) == len(missing) == 2
    assert cache.verify(case.model, case.processor, asked) == 2
    read = dict(CachedMediaProcessor(case.processor, cache).encode(asked, answers=True))
    batch = case.placed(read)
    kept = [x for one in batch["media"] for x in one.values() if isinstance(x, Tensor)]
    assert all(x.numel() <= SMALL for x in kept), "pixels"
    return batch


def adapters_beside_each_other(case: Case) -> None:
    """Two adapters and the bare model in one batch: each row as alone."""
    question = "what is it?"
    with tempfile.TemporaryDirectory() as folder, torch.no_grad():
        for seed, name in enumerate(("one", "two")):
            case.draw(seed + 1)
            case.model.save_adapter(folder)
            case.model.load_adapter(folder, name=name)
            case.model.set_adapter(None)
        case.model.adapter.reset_parameters()
        rows = [(case.small, question)] * 3
        names = ["one", None, "two"]
        together = case.model(**case.batch(rows, ["red"] * 3), adapter_names=names).token_losses
        single = case.batch(rows[:1], ["red"])
        alone = [case.model(**single, adapter_names=[name]).token_losses for name in names]
    near(together, torch.cat(alone))
    assert not torch.allclose(alone[0], alone[2]), "two adapters that do the same"
    for name in ("one", "two"):
        case.model.delete_adapter(name)


def shared_as_independent(case: Case) -> str:
    """Questions on one picture behind one copy of it: losses and gradients of independent rows."""
    case.draw()
    asked = ["what is it?", "is it a large red one?", "why?"]
    rows = [(case.small, q) for q in asked] + [(None, "so?")] + [(case.large, q) for q in asked[:2]]
    batch = case.batch(rows, ["a red one", "no", "so", "yes", "blue", "it is"])
    options = case.placed(
        dict(
            case.processor.options(
                [["red", "a blue one"], ["no"], ["a", "b", "c"], ["x"], ["y"], ["z"]]
            )
        )
    )
    prompts = case.batch(rows)
    shared, found = case.model.shares_prefix, []
    for share in (False, shared):
        case.model.shares_prefix = share
        output = case.model(**batch)
        output.loss.backward()
        gradients = [p.grad.clone() for p in case.model.adapter.parameters() if p.grad is not None]
        case.model.zero_grad()
        found.append(
            [output.token_losses, *gradients, case.model.option_losses(**options, **prompts)]
        )
    for one, other in zip(*found, strict=True):
        near(other, one.detach(), 1e-5 * max(1.0, float(one.abs().max())))
    return "yes" if shared else "apart"  # masks or states may allow nothing else


CHECKS: dict[str, Callable[[Case], str | None]] = {
    "zero": zero_is_the_model,
    "gradient": gradient_in_the_adapter,
    "batch": rows_together_as_alone,
    "text": text_alone_is_the_model,
    "file": saved_and_loaded,
    "cache": cached_as_live,
    "adapters": adapters_beside_each_other,
    "shared": shared_as_independent,
}


GOOD = ("yes", "apart")


def plain(processor: Any) -> dict[str, Any]:
    """Greedy decoding of `LENGTH` tokens."""
    return {"max_new_tokens": LENGTH, "do_sample": False, **processor.generation_kwargs}


def picture(width: int, height: int, seed: int) -> Image.Image:
    """A picture of noise."""
    pixels = np.random.RandomState(seed).randint(0, 255, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def recording(folder: Path, rate: int, seconds: float, seed: int) -> Path:
    """A file of noise."""
    values = np.random.RandomState(seed).randint(-9000, 9000, round(rate * seconds))
    with wave.open(str(folder / f"{seed}.wav"), "wb") as file:
        file.setparams((1, 2, rate, 0, "NONE", ""))
        file.writeframes(values.astype("<i2").tobytes())
    return folder / f"{seed}.wav"


def samples_in(path: Path) -> Any:
    """The samples of such a file, read by other means than the package's."""
    with wave.open(str(path), "rb") as file:
        return np.frombuffer(file.readframes(10**9), "<i2").astype(np.float32) / 2**15


def same(found: Tensor, expected: Tensor) -> None:
    """Refuses any difference."""
    assert found.shape == expected.shape, f"{tuple(found.shape)} and not {tuple(expected.shape)}"
    assert torch.equal(found, expected), f"differs by {(found - expected).abs().max():.2g}"


def near(found: Tensor, expected: Tensor, tolerance: float = TOLERANCE) -> None:
    """Refuses a difference beyond float noise."""
    assert found.shape == expected.shape, f"{tuple(found.shape)} and not {tuple(expected.shape)}"
    worst = ((found - expected).abs() / expected.abs().clamp(min=1)).max()
    assert worst <= tolerance, f"differs by {worst:.2g}"


def examine(kind: str, medium: str = "image") -> dict[str, Any]:
    """Builds a family and runs every check on it."""
    started = time.perf_counter()
    result: dict[str, Any] = {"family": kind, "class": model_class(kind).__name__}
    result["medium"] = medium
    try:
        check_kind(kind)
        case = Case(kind, medium=medium)
        result["branches"] = case.model.adapter_settings["branches"]
    except Exception as error:  # whatever a family's code trips over
        return result | {"build": short(error)}
    for name, check in CHECKS.items():
        try:
            result[name] = check(case) or "yes"
        except Exception as error:
            result[name] = short(error)
    return result | {"seconds": round(time.perf_counter() - started, 1)}


def short(error: Exception) -> str:
    """One line of an error."""
    text = str(error).strip().split("\n")[0]
    named = "" if isinstance(error, AssertionError) else f"{type(error).__name__}: "
    return f"{named}{text}"[:160]


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the sweep and writes the table."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--out", type=Path, default=None)
    parser.add_argument("--only", default="", help="model types, separated by commas")
    parser.add_argument("--anew", action="store_true", help="forget earlier results")
    chosen = parser.parse_args(arguments)
    transformers.logging.set_verbosity_error()
    warnings.filterwarnings("ignore")
    kinds = chosen.only.split(",") if chosen.only else supported()
    tries = [(kind, "image") for kind in kinds]
    tries += [(kind, "audio") for kind in kinds if kind in HEARING]
    log = None if chosen.out is None else chosen.out.with_suffix(".jsonl")
    done: dict[tuple[str, str], dict[str, Any]] = {}
    if log is not None and log.exists() and not chosen.anew:
        known = map(json.loads, log.read_text().splitlines())
        done = {(r["family"], r.get("medium", "image")): r for r in known}
    for key in tries:
        if key not in done or chosen.only:
            done[key] = examine(*key)
            wrong = {
                k: v for k, v in done[key].items() if k in (*CHECKS, "build") and v not in GOOD
            }
            print(*key, wrong or "ok", flush=True)
            if log is not None:
                log.parent.mkdir(parents=True, exist_ok=True)
                log.write_text("".join(json.dumps(r) + "\n" for r in done.values()))
    if chosen.out is not None:
        chosen.out.write_text(page(list(done.values())))
    print(f"{len(whole(done.values()))} of {len(done)} pass every check")
    return 0


def whole(results: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """Results in which every check passes."""
    return [r for r in results if all(r.get(name) in GOOD for name in CHECKS)]


def page(results: Sequence[dict[str, Any]]) -> str:
    """Results as Markdown: families with pictures, and those with ears again with recordings."""
    heard = [r for r in results if r.get("medium") == "audio"]
    seen = [r for r in results if r not in heard]
    built = sum("build" not in r for r in seen)
    lines = [
        "# Families with an attached adapter", "",
        f"{len(whole(seen))} of {len(seen)} families pass every check with pictures; {built} could "
        f"be built at toy size. {len(whole(heard))} of {len(heard)} families with ears pass every "
        "check with recordings.",
        "The adapter was put on every family of transformers whose class takes "
        "`mm_encoder_outputs`, with random weights and the family's own processor; those that are "
        "refused say why. Videos are shown to seven families by "
        "`tests/attached/test_video.py`, where torchvision is there.", "",
        f"`python benchmarks/families.py --out docs/results/families.md` on {date.today()}, with "
        f"transformers {transformers.__version__}, torch {torch.__version__}, float32 on a CPU, "
        "seed 0, and with torchvision, num2words and timm, which some families ask for.", "",
        *(f"* **{name}**: {(check.__doc__ or '').strip()}" for name, check in CHECKS.items()), "",
        *table(seen), "", "## With recordings", "",
        "The same checks with recordings of 0.6 and 1.1 seconds, read from files, where pictures "
        "of two sizes are otherwise.", "", *table(heard),
    ]  # fmt: skip
    return "\n".join(lines) + "\n"


def table(results: Sequence[dict[str, Any]]) -> list[str]:
    """The lines of a table."""
    lines = [
        "| family | branches | " + " | ".join(CHECKS) + " |",
        "|" + "---|" * (2 + len(CHECKS)),
    ]
    for r in sorted(results, key=lambda r: str(r["family"])):
        cells = [r["build"]] if "build" in r else [r.get(name, "") for name in CHECKS]
        if cells[0] not in GOOD:
            cells = cells[:1]  # what cannot read its media fails everything for one reason
        cells += [""] * (len(CHECKS) - len(cells))
        named = ", ".join(r.get("branches", []))
        lines.append(f"| {r['family']} | {named} | " + " | ".join(map(escaped, cells)) + " |")
    return lines


def escaped(cell: str) -> str:
    """A cell's text without what Markdown would read."""
    return cell.replace("|", "/")[:90]


if __name__ == "__main__":
    sys.exit(main())
