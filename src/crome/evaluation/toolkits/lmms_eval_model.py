"""CROME as a model of lmms-eval 0.7 (`lmms-eval --model crome`).

Its likelihood path has two quirks, each with its remedy here (found in 0.7.3): the evaluator turns
a result tuple into a string unless it comes inside a `GenerationResult`, and it takes the smallest
value as the best, so that what it calls a log-likelihood must be a loss.
"""

from collections.abc import Iterable, Iterator, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

from lmms_eval.api.instance import GenerationResult
from lmms_eval.api.model import lmms

from crome.checkpoints.loading import load
from crome.errors import InputError
from crome.evaluation.predict import progress
from crome.model.answering import answer, rank
from crome.rows import Row

DECODING = ("do_sample", "temperature", "top_p", "num_beams")


class CromeForLmmsEval(lmms):
    """A checkpoint behind lmms-eval's interface for simple models.

    Args:
        checkpoint: A folder, a hub id, or a preset that has weights.
        adapter: Folder of a task adapter to use.
        dtype: See `crome evaluate`.
        attention: See `crome evaluate`.
        batch_size: Questions answered together.
        device: The GPU is used where there is one; anything else is refused.
        max_batch_size: lmms-eval passes it; not used.
    """

    is_simple = True

    def __init__(
        self,
        checkpoint: str = "crome-tiny",
        adapter: str | None = None,
        dtype: str = "bfloat16",
        attention: str = "auto",
        batch_size: int | str = 1,
        device: str | None = None,
        max_batch_size: int | None = None,
    ) -> None:
        super().__init__()
        self.model, self.processor = load(checkpoint, dtype, attention)
        here = self.model.get_input_embeddings().weight.device.type
        if device is not None and device.split(":")[0] != here:
            raise InputError(f"device is {device!r}; on this machine the model runs on {here!r}.")
        if adapter is not None:
            self.model.load_adapter(Path(adapter))
        self.batch_size = int(batch_size)

    def generate_until(self, requests: list[Any]) -> list[str]:
        """Answers of (prompt, settings, images, record, task, split) requests."""
        texts: list[str] = []
        for settings, group in groupby(requests, key=lambda request: dict(request.args[1])):
            decoding, stops = _decoding(settings)
            for batch in _split(group, self.batch_size):
                rows = [self._row(request) for request in batch]
                answers = answer(self.model, self.processor, rows, **decoding)
                texts += [_until(text, stops) for text in answers]
        return texts

    def loglikelihood(self, requests: list[Any]) -> list[Any]:
        """Losses of (prompt, candidate, images, record, task, split) requests.

        The candidates of a record come one after the other and share its prompt.
        """
        losses: list[Any] = []
        questions = [
            list(group) for _, group in groupby(requests, key=lambda r: (r.args[0], *r.args[3:6]))
        ]
        with progress() as bar:
            task = bar.add_task("ranking", total=len(questions))
            for batch in _split(questions, self.batch_size):
                rows = [self._row(group[0]) for group in batch]
                options = [[request.args[1].strip() for request in group] for group in batch]
                for of_row in rank(self.model, self.processor, rows, options):
                    losses += [GenerationResult(text=(loss, False)) for loss in of_row]
                bar.advance(task, len(batch))
        return losses

    def generate_until_multi_round(self, requests: list[Any]) -> list[str]:
        """Not offered.

        Raises:
            NotImplementedError: Always.
        """
        raise NotImplementedError("CROME answers lmms-eval's requests one turn at a time.")

    def _row(self, request: Any) -> Row:
        prompt, _, to_images, record, task, split = request.args
        images = to_images(self.task_dict[task][split][record]) or []
        return Row(tuple(images), prompt, "", f"{task}/{record}")


def _split(items: Iterable[Any], size: int) -> Iterator[list[Any]]:
    listed = list(items)
    for start in range(0, len(listed), size):
        yield listed[start : start + size]


def _decoding(settings: dict[str, Any]) -> tuple[dict[str, Any], Sequence[str]]:
    """Their generation settings in ours, and the texts that end an answer."""
    stops = settings.get("until") or []
    chosen = {k: settings[k] for k in DECODING if settings.get(k) is not None}
    if not chosen.get("do_sample"):  # temperature and the like would only draw a warning
        chosen = {k: v for k, v in chosen.items() if k == "num_beams" and v != 1}
    longest = {"max_new_tokens": int(settings.get("max_new_tokens", 128))}
    return chosen | longest, [stops] if isinstance(stops, str) else stops


def _until(text: str, stops: Sequence[str]) -> str:
    for stop in stops:
        text = text.split(stop)[0] if stop else text
    return text.strip()
