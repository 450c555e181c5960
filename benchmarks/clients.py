"""Other people's clients against a running server: those that are installed, each in a few calls.

    python benchmarks/clients.py --url http://127.0.0.1:8000/v1 --model crome-tiny

Needs nothing of this package, so it may run in an environment of its own: pip install openai
aiohttp langchain-openai pydantic-ai-slim[openai] llama-index-llms-openai-like litellm instructor
llm. OpenAI's library for JavaScript is looked for by node in `--node_modules` (npm install openai).
"""

import argparse
import asyncio
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from shutil import which
from typing import Any

HELLO = {"role": "user", "content": "Hello?"}
PICTURE = (
    "data:image/png;base64,iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAIAAACQd1PeAAAADElEQVR4nGP4z8AAAAMBAQ"
    "DJ/pLvAAAAAElFTkSuQmCC"
)
SHOWN: Any = {"type": "image_url", "image_url": {"url": PICTURE}}
TEXT: Any = {"type": "text", "text": "What is this?"}
JAVASCRIPT = """
const OpenAI = require("openai");
const [url, model, picture] = process.argv.slice(1);
const chat = new OpenAI({ baseURL: url, apiKey: "none" }).chat.completions;
const hello = [{ role: "user", content: "Hello?" }];
const shown = [{ type: "image_url", image_url: { url: picture } }, { type: "text", text: "?" }];
(async () => {
  const ask = { model, max_tokens: 3, messages: hello };
  const said = (await chat.create(ask)).choices[0].message;
  await chat.create({ ...ask, messages: [...hello, said, ...hello] });
  await chat.create({ ...ask, messages: [{ role: "user", content: shown }] });
  let chunks = 0;
  for await (const chunk of await chat.create({ ...ask, stream: true })) chunks++;
  const final = await chat.stream(ask).finalMessage();
  console.log(chunks, "chunks,", final.role);
})().catch((error) => { console.error(String(error)); process.exit(1); });
"""


def openai_client(url: str, model: str) -> Any:
    """Whole, its own answer sent back, and streamed."""
    from openai import OpenAI

    ask = OpenAI(base_url=url, api_key="none").chat.completions.create
    said = ask(model=model, messages=[HELLO], max_tokens=3).choices[0].message
    ask(model=model, messages=[HELLO, said, HELLO], max_tokens=3)
    ask(model=model, messages=[{"role": "user", "content": [SHOWN, TEXT]}], max_tokens=3)
    with ask(model=model, messages=[HELLO], max_tokens=200, stream=True) as broken_off:
        next(iter(broken_off))
    answers = OpenAI(base_url=url, api_key="none").responses
    answers.create(model=model, input="Hello?", max_output_tokens=16)
    return len(list(ask(model=model, messages=[HELLO], max_tokens=3, stream=True)))


def aiohttp_client(url: str, model: str) -> Any:
    """Plain HTTP."""
    import aiohttp

    async def ask() -> int:
        body = {"model": model, "messages": [HELLO], "max_tokens": 3}
        async with (
            aiohttp.ClientSession() as session,
            session.post(url + "/chat/completions", json=body) as response,
        ):
            response.raise_for_status()
            return response.status

    return asyncio.run(ask())


def langchain_client(url: str, model: str) -> Any:
    """Whole, several turns with a system message, and streamed."""
    from langchain_openai import ChatOpenAI

    chat = ChatOpenAI(base_url=url, api_key="none", model=model, max_tokens=3)
    said = chat.invoke("Hello?")
    chat.invoke([("system", "Be brief."), ("human", "Hello?"), said, ("human", "And?")])
    return len(list(chat.stream("Hello?")))


def pydantic_ai_client(url: str, model: str) -> Any:
    """Instructions beside a system prompt, and a second turn."""
    from pydantic_ai import Agent
    from pydantic_ai.models.openai import OpenAIChatModel
    from pydantic_ai.providers.openai import OpenAIProvider

    provider = OpenAIProvider(base_url=url, api_key="none")
    agent = Agent(OpenAIChatModel(model, provider=provider), instructions="Be brief.",
                  system_prompt="Be kind.")  # fmt: skip
    said = agent.run_sync("Hello?", model_settings={"max_tokens": 3})
    agent.run_sync("And?", message_history=said.all_messages(), model_settings={"max_tokens": 3})
    return "two turns"


def llama_index_client(url: str, model: str) -> Any:
    """One completion."""
    from llama_index.llms.openai_like import OpenAILike

    llm = OpenAILike(api_base=url, api_key="none", model=model, is_chat_model=True, max_tokens=3)
    return len(llm.complete("Hello?").text)


def litellm_client(url: str, model: str) -> Any:
    """Whole, and its own answer sent back as it keeps it."""
    import litellm

    settings = {"api_base": url, "api_key": "none", "max_tokens": 3}
    said = litellm.completion("openai/" + model, [HELLO], **settings).choices[0].message
    turns = [HELLO, said.model_dump(), HELLO]
    return litellm.completion("openai/" + model, turns, **settings).usage.completion_tokens


def instructor_client(url: str, model: str) -> Any:
    """Structured output: a schema, and an answer that is read by it; no answer may be cut off."""
    import instructor
    from openai import OpenAI
    from pydantic import BaseModel

    class Colour(BaseModel, extra="forbid"):  # an untrained model would add fields for ever
        is_red: bool

    client = instructor.from_openai(
        OpenAI(base_url=url, api_key="none"), mode=instructor.Mode.JSON_SCHEMA
    )
    return client.chat.completions.create(
        model=model, messages=[HELLO], response_model=Colour, max_tokens=64, max_retries=0
    )


def llm_client(url: str, model: str) -> Any:
    """The command `llm`, with the model named in its own file of further models."""
    if find_spec("llm") is None:
        raise ImportError
    with tempfile.TemporaryDirectory() as folder:
        entry = f"- model_id: ours\n  model_name: {model}\n  api_base: {url}\n"
        (Path(folder) / "extra-openai-models.yaml").write_text(entry)
        command = [sys.executable, "-m", "llm", "-m", "ours", "Hello?", "-o", "max_tokens", "3"]
        environment = {**os.environ, "LLM_USER_PATH": folder, "OPENAI_API_KEY": "none"}
        return len(run(command, environment))


def curl_client(url: str, model: str) -> Any:
    """One streamed answer."""
    if which("curl") is None:
        raise ImportError
    body = json.dumps({"model": model, "messages": [HELLO], "max_tokens": 3, "stream": True})
    kind = "Content-Type: application/json"
    said = run(["curl", "-sSfN", f"{url}/chat/completions", "-H", kind, "-d", body])
    assert said.endswith("data: [DONE]\n\n"), said
    return said.count("data: ")


def javascript_client(url: str, model: str, modules: str) -> Any:
    """OpenAI's library for JavaScript: whole, its own answer sent back, a picture, streamed."""
    if which("node") is None or not (Path(modules) / "openai").is_dir():
        raise ImportError
    environment = {**os.environ, "NODE_PATH": str(Path(modules).resolve())}
    return run(["node", "-e", JAVASCRIPT, url, model, PICTURE], environment).strip()


def run(command: list[str], environment: dict[str, str] | None = None) -> str:
    """What a command prints; an error tells what it said."""
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    if done.returncode:
        raise RuntimeError(f"{done.stdout[-200:]} {done.stderr[-500:]}")
    return done.stdout


CLIENTS: dict[str, Callable[[str, str], Any]] = {
    "openai": openai_client, "aiohttp": aiohttp_client, "langchain-openai": langchain_client,
    "pydantic-ai": pydantic_ai_client, "llama-index": llama_index_client, "litellm": litellm_client,
    "instructor": instructor_client, "llm": llm_client, "curl": curl_client,
}  # fmt: skip


def main() -> None:
    """Runs all that are installed, and says of each how it went."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--url", default="http://127.0.0.1:8000/v1")
    parser.add_argument("--model", default="crome-tiny")
    parser.add_argument("--node_modules", default="node_modules")
    args = parser.parse_args()
    failed = False
    javascript = partial(javascript_client, modules=args.node_modules)
    for name, client in {**CLIENTS, "openai (JavaScript)": javascript}.items():
        try:
            print(f"{name}: works ({client(args.url, args.model)})", flush=True)
        except ImportError:
            print(f"{name}: not installed, skipped", flush=True)
        except Exception as error:
            failed = True
            print(f"{name}: FAILED, {type(error).__name__}: {error}", flush=True)
    sys.exit(failed)


if __name__ == "__main__":
    main()
