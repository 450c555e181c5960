"""Asks a running `crome serve` with OpenAI's client and prints the answer as it comes.

crome serve --adapter lamps=runs/lamps/adapter
python examples/client.py lamps/0121.png "May the machine run?" lamps
"""

import base64
import sys
from pathlib import Path

from openai import OpenAI


def main(picture: str, question: str, model: str, url: str = "http://127.0.0.1:8000/v1") -> None:
    """Asks one question about one picture.

    Args:
        picture: An image file.
        question: What to ask.
        model: Name of an adapter, or of the base; `GET /v1/models` lists them.
        url: Of the server.
    """
    client = OpenAI(base_url=url, api_key="none")
    data = base64.b64encode(Path(picture).read_bytes()).decode()
    pieces = client.chat.completions.create(
        model=model,
        max_tokens=32,
        stream=True,
        messages=[
            {
                "role": "user",
                "content": [
                    {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{data}"}},
                    {"type": "text", "text": question},
                ],
            }
        ],
    )
    for piece in pieces:
        print(piece.choices[0].delta.content or "", end="", flush=True)
    print()


if __name__ == "__main__":
    main(*sys.argv[1:])
