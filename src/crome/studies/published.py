"""The tables of arXiv 2408.06610 as printed, with decimal points that the print lost put back.

A row has a name, what tells it from others, the printed number of each column (None for none), and
the recipe of this project that would fill it, where there is one: the folder below `runs/` that the
recipe writes.
"""

from typing import NamedTuple

Numbers = tuple[float | None, ...]


class PublishedRow(NamedTuple):
    """One row of a table."""

    name: str
    about: str
    numbers: Numbers
    recipe: str | None = None


class PublishedTable(NamedTuple):
    """One table: its caption, its columns by the names of `COLUMNS`, its rows, and what to know."""

    caption: str
    columns: tuple[str, ...]
    rows: tuple[PublishedRow, ...]
    notes: tuple[str, ...] = ()


class Column(NamedTuple):
    """Where a column's number is in a `scores.json`: of which benchmark, and which of its metrics.

    Attributes:
        task: Name of the benchmark, as `--benchmark` takes it.
        ending: How the metric's name ends; the first metric where this is empty.
    """

    task: str
    ending: str = ""


COLUMNS = {
    "MMMU": Column("mmmu"),
    "MME P": Column("mme", "/perception"),
    "MME C": Column("mme", "/cognition"),
    "MMBench": Column("mmbench"),
    "MM-Vet": Column("mm-vet"),
    "HallusionBench": Column("hallusionbench", "/aAcc"),
    "LLaVA-W": Column("llava-w"),
    "SEED image": Column("seed-image"),
    "ScienceQA-IMG": Column("scienceqa-img"),
    "AI2D": Column("ai2d"),
}
EIGHT = tuple(COLUMNS)[:8]
RESTORED = "Decimal points that the print lost are put back; MME has sums, the others are per cent."

_7B, _13B, _T5 = "vicuna-7b", "vicuna-13b", "flan-t5-xxl"
_INSTRUCTBLIP_7B: Numbers = (30.6, None, None, 33.9, 26.2, 53.6, 60.9, 53.4)
_BLIVA_7B: Numbers = (27.3, 813.4, 224.6, 60.1, 30.4, 33.9, 80.1, 59.4)
_LLAVA16_7B: Numbers = (35.8, 1519, 332, 67.4, 43.9, None, 81.6, 70.2)
_LLAVA16_13B: Numbers = (36.2, 1575, 326, 70.0, 48.4, None, 87.3, 71.9)
_CROME_7B: Numbers = (38.8, 1590.6, 358.4, 67.1, 47.3, 48.3, 79.2, 68.2)
_CROME_13B: Numbers = (41.2, 1643.2, 369.5, 71.2, 55.1, 49.2, 86.8, 72.5)
_CROME_T5: Numbers = (38.1, 1521.3, 361.4, 65.5, 45.2, 51.3, 76.4, 73.5)

TABLES: dict[int, PublishedTable] = {
    1: PublishedTable("zero-shot on eight benchmarks", EIGHT, (
        PublishedRow("GPT-4V", "", (56.8, 1771.5, None, 77.0, 67.7, 65.8, 93.1, 69.1)),
        PublishedRow("Gemini Pro Vision", "", (47.9, 1626.9, 531.1, 73.6, 64.3, 63.9, 79.9, 70.7)),
        PublishedRow("Qwen-VL-Plus", "", (46.5, 2229.8, None, 67.0, 55.7, 56.4, 73.3, 72.7)),
        PublishedRow("BLIP-2", "Vicuna-13B", (35.7, 1293.8, 290.0, None, 22.4, None, 38.1, 46.4)),
        PublishedRow("BLIVA", "Vicuna-7B, 1.2M", _BLIVA_7B, "bliva-vicuna-7b/instruct-d2"),
        PublishedRow("BLIVA", "Flan-T5-XXL, 1.2M",
                     (None, 1337.7, 331.4, 62.2, 30.3, None, None, None),
                     "bliva-flan-t5-xxl/instruct-d2"),
        PublishedRow("InstructBLIP", "Vicuna-7B, 1.2M", _INSTRUCTBLIP_7B,
                     "instructblip-vicuna-7b/base"),
        PublishedRow("InstructBLIP", "Vicuna-13B, 1.2M",
                     (32.1, None, None, None, 25.6, None, 58.2, None)),
        PublishedRow("IDEFICS-80B", "LLaMA-65B, 1M",
                     (24.0, None, None, 54.5, 39.7, 46.1, None, None)),
        PublishedRow("Qwen-VL-Chat", "Qwen-7B, 50M",
                     (35.9, 1487.6, 360.7, 61.8, 47.3, 56.4, None, 65.4)),
        PublishedRow("LLaVA-1.5", "Vicuna-7B, 665K",
                     (None, None, None, 64.3, 30.5, None, 63.4, 58.6)),
        PublishedRow("LLaVA-1.5", "Vicuna-13B, 665K",
                     (36.4, 1531, 295, 67.8, 35.4, 46.7, 70.7, 61.6)),
        PublishedRow("LLaVA-1.6", "Vicuna-7B, 760K", _LLAVA16_7B),
        PublishedRow("LLaVA-1.6", "Vicuna-13B, 760K", _LLAVA16_13B),
        PublishedRow("CROME", "Vicuna-7B, 8M", _CROME_7B, f"{_7B}/instruct-d3"),
        PublishedRow("CROME", "Vicuna-13B, 8M", _CROME_13B, f"{_13B}/instruct-d3"),
        PublishedRow("CROME", "Flan-T5-XXL, 8M", _CROME_T5, f"{_T5}/instruct-d3"),
    ), (RESTORED, "GPT-4V and Qwen-VL-Plus have one number for both MME columns in the print.")),
    2: PublishedTable("the effect of instruction data", EIGHT, (
        PublishedRow("InstructBLIP", "Flan-T5-XXL, 1.2M",
                     (35.7, 1212.8, 291.8, None, 25.6, None, 58.2, 52.7),
                     "instructblip-flan-t5-xxl/base"),
        PublishedRow("BLIVA", "Flan-T5-XXL, 1.2M",
                     (None, 1337.7, 331.4, 62.2, 30.3, None, None, None),
                     "bliva-flan-t5-xxl/instruct-d2"),
        PublishedRow("CROME", "Flan-T5-XXL, 1.2M",
                     (33.1, 1380.6, 329.2, 63.1, 34.7, 40.1, 70.2, 62.7), f"{_T5}/instruct-d2"),
        PublishedRow("CROME", "Flan-T5-XXL, 8M", _CROME_T5, f"{_T5}/instruct-d3"),
        PublishedRow("InstructBLIP", "Vicuna-7B, 1.2M", _INSTRUCTBLIP_7B,
                     "instructblip-vicuna-7b/base"),
        PublishedRow("BLIVA", "Vicuna-7B, 1.2M", _BLIVA_7B, "bliva-vicuna-7b/instruct-d2"),
        PublishedRow("LLaVA-1.6", "Vicuna-7B, 760K", _LLAVA16_7B),
        PublishedRow("CROME", "Vicuna-7B, 1.2M",
                     (32.4, 1170.4, 246.1, 62.8, 32.6, 42.3, 65.2, 60.3), f"{_7B}/instruct-d2"),
        PublishedRow("CROME", "Vicuna-7B, 8M", _CROME_7B, f"{_7B}/instruct-d3"),
        PublishedRow("LLaVA-1.6", "Vicuna-13B, 760K", _LLAVA16_13B),
        PublishedRow("CROME", "Vicuna-13B, 8M", _CROME_13B, f"{_13B}/instruct-d3"),
    ), (RESTORED,)),
    3: PublishedTable("ScienceQA, questions with an image", ("ScienceQA-IMG",), (
        PublishedRow("LLaVA-1.6-7B", "zero-shot", (70.1,)),
        PublishedRow("InstructBLIP-Vicuna-7B", "zero-shot", (60.5,), "instructblip-vicuna-7b/base"),
        PublishedRow("BLIVA-Vicuna-7B", "zero-shot", (57.3,), "bliva-vicuna-7b/instruct-d2"),
        PublishedRow("CROME-Vicuna-7B", "zero-shot", (61.2,), f"{_7B}/instruct-d3"),
        PublishedRow("Multimodal-T-SciQ-Large", "738M trained", (96.2,)),
        PublishedRow("MC-CoT-F-Large", "738M trained", (94.9,)),
        PublishedRow("LLaMA-Adapter", "1.8M trained", (85.2,)),
        PublishedRow("LaVIN-7B", "3.8M trained", (89.4,)),
        PublishedRow("LaVIN-13B", "5.4M trained", (90.8,)),
        PublishedRow("PILL-7B", "45M trained", (91.2,)),
        PublishedRow("CROME-Vicuna-7B", "5.24M trained", (93.2,), f"{_7B}/scienceqa"),
    ), ("The other fine-tuned models are averages over all questions, not those with an image.",)),
    4: PublishedTable("AI2D", ("AI2D",), (
        PublishedRow("Qwen-VL-Chat", "zero-shot", (57.7,)),
        PublishedRow("InstructBLIP-Vicuna-7B", "zero-shot", (36.1,), "instructblip-vicuna-7b/base"),
        PublishedRow("BLIVA-Vicuna-7B", "zero-shot", (38.9,), "bliva-vicuna-7b/instruct-d2"),
        PublishedRow("CROME-Vicuna-7B", "zero-shot", (39.1,), f"{_7B}/instruct-d3"),
        PublishedRow("InstructBLIP-Vicuna-7B", "188M trained", (65.0,)),
        PublishedRow("BLIVA-Vicuna-7B", "188M trained", (69.2,)),
        PublishedRow("CROME-Vicuna-7B", "5.24M trained", (75.3,), f"{_7B}/ai2d"),
    ), ("The text's lead of 0.9 over BLIVA at zero shots is 0.2 by these numbers.",)),
    5: PublishedTable("ablations on CROME-Vicuna-7B", ("MM-Vet", "ScienceQA-IMG"), (
        PublishedRow("1", "BLIVA", (30.4, 57.3), "bliva-vicuna-7b/instruct-d2"),
        PublishedRow("2", "adapter without gate", (28.7, 54.3), "ungated-vicuna-7b/instruct-d2"),
        PublishedRow("3", "with gate", (32.6, 58.2), f"{_7B}/instruct-d2"),
        PublishedRow("4", "without pretraining", (31.8, 57.6), f"{_7B}/unpretrained-d2"),
        PublishedRow("5", "8M rows", (47.3, 61.2), f"{_7B}/instruct-d3"),
        PublishedRow("6", "BLIVA on the task", (None, 84.4), "bliva-vicuna-7b/scienceqa"),
        PublishedRow("7", "all, on the task", (None, 93.2), f"{_7B}/scienceqa"),
    ), ("The ticks of the columns are restored from their number and the text.",)),
    7: PublishedTable("size of the bottleneck", ("MM-Vet", "ScienceQA-IMG"), (
        PublishedRow("m = 64", "zero-shot", (46.1, None), "bottleneck-64-vicuna-7b/instruct-d3"),
        PublishedRow("m = 64", "on the task", (None, 89.1), "bottleneck-64-vicuna-7b/scienceqa"),
        PublishedRow("m = 128", "zero-shot", (46.8, None), "bottleneck-128-vicuna-7b/instruct-d3"),
        PublishedRow("m = 128", "on the task", (None, 91.9), "bottleneck-128-vicuna-7b/scienceqa"),
        PublishedRow("m = 256", "zero-shot", (47.3, None), f"{_7B}/instruct-d3"),
        PublishedRow("m = 256", "on the task", (None, 93.2), f"{_7B}/scienceqa"),
        PublishedRow("m = 512", "zero-shot", (None, None), "bottleneck-512-vicuna-7b/instruct-d3"),
        PublishedRow("m = 512", "on the task", (None, 92.3), "bottleneck-512-vicuna-7b/scienceqa"),
    ), ("The print lost a digit of MM-Vet at m = 512. One run each.",)),
}  # fmt: skip
