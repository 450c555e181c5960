"""Answers one batch whose rows each have another adapter, or none.

    python examples/mixed_adapters.py lamps/0121.png runs/lamps/adapter runs/weld/adapter

The language model is loaded once. Each row of the batch goes through its own adapter, and all rows
through the language model together.
"""

import sys
from pathlib import Path

from crome import CromeForConditionalGeneration, CromeProcessor
from crome.model.answering import answer
from crome.rows import Row

QUESTION = "Which lamp is lit?"


def main(picture: str, *adapters: str, checkpoint: str = "crome-tiny") -> None:
    """Asks the base and each adapter the same question about one picture.

    Args:
        picture: An image file.
        adapters: Folders of adapters of the checkpoint.
        checkpoint: The base.
    """
    model = CromeForConditionalGeneration.from_pretrained(checkpoint)
    processor = CromeProcessor.from_pretrained(checkpoint)
    names = [f"adapter {number}" for number, _ in enumerate(adapters, 1)]
    for name, folder in zip(names, adapters, strict=True):
        model.load_adapter(folder, name=name)
    rows = [Row((Path(picture),), QUESTION, "", str(n)) for n in range(len(names) + 1)]
    answers = answer(model, processor, rows, adapter_names=[None, *names])
    for name, text in zip(["base", *names], answers, strict=True):
        print(f"{name}: {text}")


if __name__ == "__main__":
    main(*sys.argv[1:])
