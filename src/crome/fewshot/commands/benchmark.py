"""``crome fewshot benchmark``: data sets × shots × seeds × methods."""

from pathlib import Path

from crome.errors import InputError
from crome.fewshot.commands.fit import Validation
from crome.fewshot.commands.terminal import Precision, show, warnings_as_lines


def benchmark(
    sets: list[str],
    out: Path = Path("fewshot-benchmark"),
    root: Path | None = None,
    methods: list[str] | None = None,
    shots: list[int] = [1, 2, 4, 8, 16],  # noqa: B006 - never changed; the default is the help
    seeds: list[int] = [1, 2, 3],  # noqa: B006
    encoder: str = "bridge",
    val: Validation = "few",
    views: int = 10,
    test_per_class: int | None = None,
    label_noise: float = 0.0,
    ablate: bool = False,
    device: str | None = None,
    dtype: Precision | None = None,
) -> None:
    """Run data sets × shots × seeds × methods into one table and its plots; resumes by itself.

    Test pictures that are also training pictures are left out, and counted in each row.

    Args:
        sets: Folders or CSV files of labelled images, or names of published sets under root.
        out: Folder of results.jsonl, table.md and the plots. Rows already there are not run again,
            as long as pictures, class names and protocol are the same.
        root: Data folder of the published sets, in CoOp's layout.
        methods: Methods to run, also ablations by name; all methods by default.
        shots: Images per class.
        seeds: Seeds of the draws.
        encoder: See `crome fewshot fit`.
        val: few, full or none, as in fit; every table says which.
        views: Augmented views per training image.
        test_per_class: At most so many test images per class, for sets without a test part.
        label_noise: Share of the training images that get a wrong label, to see what it does.
        ablate: Run XMAdapter's ablations instead: the blend fixed or learned, hard weighting,
            whitening, training, the text scale.
        device: See `crome fewshot fit`.
        dtype: See `crome fewshot fit`.
    """
    from crome.fewshot.benchmark import Protocol, run
    from crome.fewshot.data.coop import BENCHMARKS, read_benchmark
    from crome.fewshot.data.reading import read_images
    from crome.fewshot.encoders import load_encoder
    from crome.fewshot.methods import ABLATIONS, METHODS

    table = METHODS | ABLATIONS
    if unknown := sorted(set(methods or ()) - set(table)):
        raise InputError(f"method {unknown[0]!r}; expected some of {', '.join(table)}.")
    if root is None and (named := [name for name in sets if name in BENCHMARKS]):
        raise InputError(f"the published set {named[0]} needs --root, its data folder.")
    protocol = Protocol(tuple(shots), tuple(seeds), val, views, test_per_class, label_noise)
    with warnings_as_lines():
        data = [
            read_benchmark(name, root) if root and name in BENCHMARKS else read_images(Path(name))
            for name in sets
        ]
    chosen = {name: table[name] for name in methods or (ABLATIONS if ablate else METHODS)}
    run(data, load_encoder(encoder, device=device, dtype=dtype), chosen, protocol, out)
    show(f"written to {out}: results.jsonl, table.md, plots")
