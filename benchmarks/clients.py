"""Other people's clients against a running server: those that are installed, each in a few calls.

    python benchmarks/clients.py --url http://127.0.0.1:8000/v1 --model crome-tiny

Needs nothing of this package, so it may run in an environment of its own: pip install openai
aiohttp langchain-openai pydantic-ai-slim[openai] llama-index-llms-openai-like litellm
"""

import argparse
import asyncio
import sys
from collections.abc import Callable
from typing import Any

HELLO = {"role": "user", "content": "Hello?"}


def openai_client(url: str, model: str) -> Any:
    """Whole, its own answer sent back, and streamed."""
    from openai import OpenAI

    ask = OpenAI(base_url=url, api_key="none").chat.completions.create
    said = ask(model=model, messages=[HELLO], max_tokens=3).choices[0].message
    ask(model=model, messages=[HELLO, said, HELLO], max_tokens=3)
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


CLIENTS: dict[str, Callable[[str, str], Any]] = {
    "openai": openai_client, "aiohttp": aiohttp_client, "langchain-openai": langchain_client,
    "pydantic-ai": pydantic_ai_client, "llama-index": llama_index_client, "litellm": litellm_client,
}  # fmt: skip


def main() -> None:
    """Runs all that are installed, and says of each how it went."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--url", default="http://127.0.0.1:8000/v1")
    parser.add_argument("--model", default="crome-tiny")
    args = parser.parse_args()
    failed = False
    for name, client in CLIENTS.items():
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
