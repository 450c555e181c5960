"""The bridge to vLLM: prompt embeddings from here, decoding by an unmodified vLLM there.

The language model never learns that there was a picture: rows with one become embeddings of the
whole prompt, rows without one stay token ids. In process::

    llm = vllm.LLM(model=NAME, enable_prompt_embeds=True)
    llm.generate(prompts(model, processor, rows), vllm.SamplingParams(**sampling(processor)))

or over HTTP, to `vllm serve NAME --enable-prompt-embeds`, with `Server`. Embeddings are for engines
of one's own: that option is off in vLLM by default because whoever may send them bypasses the
tokenizer, so keep the engine's port private and let clients talk to `crome serve`.

Shapes: L prompt length with visual tokens, d width of the language model.
"""

import base64
import http.client
import io
import json
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from crome.checkpoints.devices import device_named
from crome.checkpoints.loading import Loaded, load
from crome.errors import InputError, JobError
from crome.model.modeling import CromeForConditionalGeneration
from crome.model.processing import CromeProcessor
from crome.rows import Row

Prompt = dict[str, Any]
"""vLLM's own form: {"prompt_embeds": (L, d)} or {"prompt_token_ids": […]}."""


def load_front_end(
    checkpoint: str,
    adapters: Mapping[str, Path | str] | None = None,
    dtype: str = "bfloat16",
    device: str = "cpu",
) -> Loaded:
    """Loads all that runs before the language model, and of that its embeddings only.

    The whole of it passes through host memory once, so that adapters can be checked against it.

    Args:
        checkpoint: A folder, a hub id, or a preset that has weights.
        adapters: Name → folder or hub id.
        dtype: As vLLM runs the language model: "bfloat16" or "float32".
        device: Where the front end computes; see `device_named`.

    Returns:
        A model that makes prompts and cannot generate, and its processor.
    """
    model, processor = load(checkpoint, dtype=dtype, device="cpu")
    if getattr(model.config, "text_config", model.config).is_encoder_decoder:
        raise InputError(
            f"{checkpoint} has an encoder-decoder, for which vLLM takes no embeddings; "
            "`crome serve` and `crome evaluate` run it."
        )
    for name, path in (adapters or {}).items():
        model.load_adapter(path, name)
    model.set_adapter(None)
    model.base_identity()  # it hangs on the layers, and later adapters are compared with it
    model.language_model.get_decoder().layers = nn.ModuleList()
    nn.Module.to(model, device_named(device))
    return model, processor


@torch.inference_mode()
def prompts(
    model: CromeForConditionalGeneration,
    processor: CromeProcessor,
    rows: Sequence[Row],
    adapter_names: Sequence[str | None] | None = None,
) -> list[Prompt]:
    """A vLLM prompt for each row; equal to what `generate` reads.

    Args:
        model: From `load_front_end`, or whole.
        processor: Of the model.
        rows: Questions with their images and earlier turns.
        adapter_names: An adapter for each row.
    """
    device = model.get_input_embeddings().weight.device
    batch = processor.encode(rows).to(device)
    embeds, mask = model.prompt_embeddings(**batch, adapter_names=adapter_names, side="right")
    ids = [row[seen.bool()] for row, seen in zip(
        batch["input_ids"], batch["attention_mask"], strict=True)]  # fmt: skip
    lengths = mask.sum(1).tolist()
    return [
        # A copy: a view would be sent with the whole batch behind it.
        {"prompt_embeds": embeds[number, : lengths[number]].cpu().clone()}
        if row.images
        else {"prompt_token_ids": ids[number].tolist()}
        for number, row in enumerate(rows)
    ]


def sampling(
    processor: CromeProcessor, max_new_tokens: int = 32, temperature: float = 0.0, **more: Any
) -> dict[str, Any]:
    """Sampling in vLLM's words, for `SamplingParams` and for requests alike.

    Args:
        processor: Knows which tokens end an answer; vLLM knows only the model's own end of text.
        max_new_tokens: Longest answer; vLLM's own default is 16.
        temperature: 0 for the likeliest answer; vLLM's own default is 1.
        more: Such as `top_p`, `seed`, `stop`.
    """
    return {
        "max_tokens": max_new_tokens,
        "temperature": temperature,
        "stop_token_ids": processor.end_ids,
        **more,
    }


def encode(embeds: Tensor) -> str:
    """A tensor (L, d) on the wire: base64 of what `torch.save` writes."""
    buffer = io.BytesIO()
    torch.save(embeds.clone(), buffer)  # of a view, all of what it is a view of would be written
    return base64.b64encode(buffer.getbuffer()).decode()


class Server:
    """A vLLM server's completions endpoint.

    Args:
        url: Its base address, up to and including `/v1`.
        model: The name it serves the language model under.
        key: Sent as a bearer token.
        timeout: Seconds without a byte from it before a request has failed.

    Raises:
        InputError: `url` is no http address.
    """

    def __init__(self, url: str, model: str, key: str | None = None, timeout: float = 600) -> None:
        if not url.startswith(("http://", "https://")):
            raise InputError(f"url is {url!r}; expected something like http://localhost:8000/v1.")
        self._url = url.rstrip("/") + "/completions"
        self._model = model
        self._headers = {"Content-Type": "application/json"}
        if key is not None:
            self._headers["Authorization"] = f"Bearer {key}"
        self._timeout = timeout

    def complete(self, prompts: Sequence[Prompt], **sampling: Any) -> list[str]:
        """Answers to a batch, in its order.

        Args:
            prompts: From `prompts`; vLLM takes at most VLLM_MAX_COMPLETION_PROMPTS at once.
            sampling: From `sampling`.

        Raises:
            JobError: The server refused, cannot be reached, or sent something else.
        """
        if not prompts:
            return []
        # In one request vLLM answers embeddings first, whatever the order of the fields.
        order = sorted(range(len(prompts)), key=lambda n: "prompt_embeds" not in prompts[n])
        with closing(self._post(prompts, sampling)) as response:
            body = _json(self._read(response))
        choices = {choice.get("index"): choice.get("text") for choice in body.get("choices", [])}
        texts = [choices.get(place) for place in range(len(prompts))]
        if len(choices) != len(prompts) or not all(isinstance(text, str) for text in texts):
            raise JobError(
                f"{self._url} sent {len(choices)} answers to {len(prompts)} prompts; is it vLLM?"
            )
        answers = dict(zip(order, texts, strict=True))
        return [str(answers[number]).strip() for number in range(len(prompts))]

    def stream(self, prompt: Prompt, **sampling: Any) -> Iterator[str]:
        """Pieces of one answer as they come.

        Raises:
            JobError: The server refused, cannot be reached, or broke off.
        """
        with closing(self._post([prompt], {**sampling, "stream": True})) as response:
            for line in self._lines(response):
                if line == "[DONE]":
                    return
                body = _json(line)
                if "error" in body:
                    raise JobError(f"{self._url}: {body['error']}")
                yield from (c["text"] for c in body.get("choices", []) if c.get("text"))
        raise JobError(f"{self._url} broke off in the middle of an answer.")

    def _post(
        self, prompts: Sequence[Prompt], sampling: Mapping[str, Any]
    ) -> http.client.HTTPResponse:
        fields = {
            "prompt_embeds": [encode(p["prompt_embeds"]) for p in prompts if "prompt_embeds" in p],
            "prompt": [p["prompt_token_ids"] for p in prompts if "prompt_token_ids" in p],
        }
        body = {"model": self._model, **sampling, **{k: v for k, v in fields.items() if v}}
        request = urllib.request.Request(self._url, json.dumps(body).encode(), self._headers)
        try:
            return urllib.request.urlopen(request, timeout=self._timeout)
        except urllib.error.HTTPError as error:
            text = error.read(500).decode(errors="replace")
            hint = " Start it with --enable-prompt-embeds." if "prompt-embeds" in text else ""
            raise JobError(f"{self._url}: HTTP {error.code}: {text}{hint}") from error
        except (OSError, http.client.HTTPException) as error:
            raise JobError(f"{self._url} cannot be reached: {error}.") from error

    def _read(self, response: http.client.HTTPResponse) -> bytes:
        try:
            return response.read()
        except (OSError, http.client.HTTPException) as error:
            raise JobError(f"{self._url} broke off in the middle of a reply: {error}.") from error

    def _lines(self, response: http.client.HTTPResponse) -> Iterator[str]:
        """The data of server-sent events."""
        try:
            for line in response:
                if line.startswith(b"data:"):
                    yield line[5:].strip().decode(errors="replace")
        except (OSError, http.client.HTTPException) as error:
            raise JobError(f"{self._url} broke off in the middle of an answer: {error}.") from error


def _json(text: str | bytes) -> dict[str, Any]:
    try:
        body = json.loads(text)
    except ValueError:
        body = None
    if not isinstance(body, dict):
        raise JobError(f"expected JSON from vLLM, got {text[:200]!r}.")
    return body
