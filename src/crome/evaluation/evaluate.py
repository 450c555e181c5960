"""`crome evaluate`: a benchmark's records or people's own rows → predictions → scores → report."""

from functools import partial
from pathlib import Path
from typing import Literal

from crome.checkpoints.devices import device_named
from crome.checkpoints.loading import PLAINLY, Holding, Loaded, adapter_for, load
from crome.errors import InputError, positive
from crome.evaluation.grading import Grading
from crome.evaluation.processes import share_of_this_process
from crome.evaluation.run import run
from crome.evaluation.sources import folder_of
from crome.evaluation.tasks import get_task, read_records, rows
from crome.features.verbs import CACHING, Caching, enable
from crome.model.large_pages import use_large_pages
from crome.model.slots import Decoding, choose


def evaluate(
    out: Path,
    data: Path | None = None,
    benchmark: str | None = None,
    source: str | None = None,
    checkpoint: str = "crome-tiny",
    adapter: Path | None = None,
    protocol: str | None = None,
    style: Literal["plain", "llava", "instructblip", "rank", "official"] | None = None,
    judge: str | None = None,
    judge_prompt: str | None = None,
    judge_runs: int | None = None,
    image_root: Path | None = None,
    on_bad_row: Literal["raise", "skip"] = "raise",
    check_images: bool = True,
    limit: int | None = None,
    baselines: bool = True,
    attention_pictures: bool = True,
    batch_size: int = 32,
    max_new_tokens: int | None = None,
    num_beams: int = 1,
    cache: Caching = CACHING,
    dtype: Literal["bfloat16", "float16", "float32", "auto"] = "bfloat16",
    attention: Literal["eager", "sdpa", "flash_attention_2", "auto"] = "auto",
    device: str = "auto",
    decoding: Decoding = "auto",
    holding: Holding = PLAINLY,
) -> None:
    """Answer a benchmark, or every row of a file, and score the answers.

    A run that was stopped goes on where it was when the same command is given again, to the same
    predictions. Each benchmark is one command: crome evaluate --benchmark mme --source FOLDER.

    Args:
        out: Folder for `predictions.jsonl`, `scores.json` and `report.html`.
        data: Your own rows with their right answers, as for `crome train`.
        benchmark: Instead of data: mmmu, mme, mmbench, mm-vet, hallusionbench, llava-w, seed-image,
            seed-all, scienceqa, scienceqa-img, ai2d, vqav2 or captions.
        source: The benchmark's records: a file, a folder or a hub id owner/name[:config]:split.
        checkpoint: A folder, a hub id, or a preset that has weights.
        adapter: Folder of a task adapter to use.
        protocol: How answers are scored; for data exact-match, vqa-accuracy, number, within-5 (per
            cent), anls, classes, letter, tolerant, rank or judge; the first of a benchmark's by
            default. Those with rank in their name rank the options by their loss.
        style: Wording of the prompts: plain for data, llava for benchmarks, rank for ranking.
        judge: For judged protocols: the model that grades, at CROME_JUDGE_URL with
            CROME_JUDGE_KEY; without one the answers wait for `crome score`.
        judge_prompt: The benchmark's own judge wording, from the file its authors publish; for data
            a rubric of your own.
        judge_runs: Gradings per response; the authors' number by default.
        image_root: Folder that image paths start from; by default that of the rows or records.
        on_bad_row: Whether a bad row or image stops the run, or is left out and counted.
        check_images: Whether to decode every picture once before the first answer.
        limit: Only the first so many questions; what belongs together is never cut.
        baselines: Also answer with blank images and without any, and score constant answers: what
            can be had without looking.
        attention_pictures: Whether the report shows what the Q-Former's queries look at.
        batch_size: Questions answered together.
        max_new_tokens: Longest answer: 32 by default for data, the official one for a benchmark.
        num_beams: Beams; 1 is greedy.
        cache: Features of what is frozen, kept on disk for the next run on the same rows.
        dtype: Type of the frozen towers.
        attention: Implementation inside the language model; see `crome train`.
        device: cpu, cuda, cuda:N or mps; by default a GPU of CUDA if there is one. Of several
            processes each takes its own with cuda.
        decoding: "recorded" has a GPU of CUDA replay the steps of greedy answers, which "auto" does
            for language models that allow it, and "plain" for none.
        holding: How a language model is held that is too large to be held plainly: quantised, or
            spread over the GPUs.
    """
    positive(limit=limit, batch_size=batch_size, max_new_tokens=max_new_tokens, num_beams=num_beams)
    positive(judge_runs=judge_runs)
    device_named(device)  # refuses a wrong device before the rows are read
    holding.check_answering()
    if adapter is not None:
        adapter = adapter_for(checkpoint, adapter)

    def loaded() -> Loaded:
        model, processor = load(checkpoint, dtype, attention, holding, device)
        choose(model.language_model, decoding)
        if model.device.type == "cpu":
            use_large_pages()
        if adapter is not None:
            model.load_adapter(adapter)
        processor = enable(model, processor, cache)
        return model, processor

    if (data is None) == (benchmark is None) or (benchmark is None) != (source is None):
        raise InputError(
            "give --data FILE for your own rows, or --benchmark NAME with --source, its records."
        )
    task = get_task(benchmark or "rows")
    origin = str(data) if data is not None else str(source)
    if task.name == "rows":
        read = partial(rows.read, origin, image_root, on_bad_row, check_images, look=True)
        records = share_of_this_process().from_first(read)  # by one process for all
        check_images = False  # once is enough
    else:
        records = read_records(task, origin)
    named = f"--data {data}" if data is not None else f"--benchmark {benchmark} --source {source}"
    given = {
        "adapter": adapter, "protocol": protocol, "style": style, "judge": judge, "limit": limit,
        "max_new_tokens": max_new_tokens, "num_beams": num_beams if num_beams > 1 else None,
        "dtype": dtype if dtype != "bfloat16" else None,
        "decoding": decoding if decoding != "auto" else None,
        "holding.quantization": holding.quantization, "holding.device_map": holding.device_map,
    }  # fmt: skip
    command = f"crome evaluate {named} --checkpoint {checkpoint}" + "".join(
        f" --{name} {value}" for name, value in given.items() if value is not None
    )
    run(
        task, records, loaded, out,
        image_root=image_root or folder_of(origin), protocol=protocol, style=style,
        grading=Grading((), judge, judge_prompt, judge_runs), baselines=baselines,
        on_bad_row=on_bad_row, check_images=check_images, batch_size=batch_size,
        max_new_tokens=max_new_tokens, num_beams=num_beams, limit=limit,
        attention_pictures=attention_pictures,
        facts={
            "checkpoint": checkpoint, "adapter": str(adapter or "the base's own"), "data": origin,
        },
        reproduce=f"{command} --out {out}",
    )  # fmt: skip
