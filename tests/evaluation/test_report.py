import base64
import hashlib
import io
import math
import re
import shutil
import subprocess
from html.parser import HTMLParser

import numpy as np
import pytest
from PIL import Image

from crome.errors import JobError
from crome.evaluation.report.charts import learning_curve, smoothed, ticks
from crome.evaluation.report.gallery import MAX_BYTES, encoded, select
from crome.evaluation.report.page import Example, Score, write_report

VOID = {"meta", "input", "img", "br", "link"}
HOSTILE = '<script>document.title="owned"</script></li>"\'><img src=x onerror=alert(1)> & \ud800'
SCORES = [
    Score("before", "shape", 1257, 0.302, 0.278, 0.328),
    Score("after", "shape", 1257, 0.991, 0.984, 0.995),
    Score("question only", "shape", 1257, 0.348, math.nan, math.nan),
]
CURVE = [{"step": i, "loss": 2 / i, "learning_rate": 1e-3 / i} for i in range(1, 101)]


class Page(HTMLParser):
    """Elements, attributes and text of a page; fails on tags that do not match."""

    def __init__(self, source: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(source)
        assert not self.open

    def handle_starttag(self, tag, attributes):
        self.elements.append((tag, dict(attributes)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.elements.append((tag, dict(attributes)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] not in ("style", "script"):
            self.text += data

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.elements if name == tag]


def example(number: int, verdicts: dict[str, bool], **fields) -> Example:
    answers = {run: "circle" if right else "square" for run, right in verdicts.items()}
    values = {"id": f"row/{number}", "question": "What shape?", "gold": "circle", "kind": "shape"}
    return Example(**{**values, "answers": answers, "correct": verdicts, **fields})


def picture(size: int, seed: int = 0) -> Image.Image:
    pixels = np.random.default_rng(seed).integers(0, 256, (size, size, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def write(path, **fields) -> Page:
    values = {
        "title": "A run",
        "lead": "It went well.",
        "facts": {"Seconds": "4"},
        "scores": SCORES,
    }
    write_report(path, **{**values, **fields})
    return Page(path.read_text(encoding="utf-8"))


def hostile_page(path) -> Page:
    row = Example(
        HOSTILE, HOSTILE, HOSTILE, {HOSTILE: HOSTILE}, {HOSTILE: False}, HOSTILE, (), HOSTILE
    )
    return write(
        path,
        title=HOSTILE,
        lead=HOSTILE,
        facts={HOSTILE: HOSTILE},
        scores=[Score(HOSTILE, HOSTILE, 1, 0.5, 0.1, 0.9)],
        examples=[row, example(1, {"after": True}, images=(picture(8),))],
        reproduce=HOSTILE,
    )


def test_scores_are_a_table_with_a_bar_a_row(tmp_path):
    page = write(tmp_path / "new" / "report.html")
    assert "30.2 %" in page.text
    assert "27.8 – 32.8" in page.text
    assert "nan" not in page.text
    assert "n = 1,257" in page.text
    assert [bar["width"] for bar in page.all("rect")] == ["30.20%", "99.10%", "34.80%"]
    assert [bar["class"] for bar in page.all("rect")] == ["run2", "run1", "run0"]
    assert [entry["scope"] for entry in page.all("th")] == ["col", "col", "rowgroup"] + ["row"] * 3


def test_the_first_group_is_the_headline_with_the_last_run_in_front(tmp_path):
    page = write(tmp_path / "report.html")
    (found,) = (part for part in page.all("dl") if part["class"] == "headline")
    assert found["aria-label"] == "shape"
    assert page.text.index("after99.1 %") < page.text.index("before30.2 %")
    many = [Score(f"variant {n}", "all", 9, 0.5, 0.4, 0.6) for n in range(6)]
    page = write(tmp_path / "report.html", scores=many)
    assert all(part["class"] != "headline" for part in page.all("dl") if "class" in part)


def test_hostile_text_stays_text(tmp_path):
    page = hostile_page(tmp_path / "report.html")
    shown = HOSTILE.replace("\ud800", "?")  # UTF-8 has no half surrogate pairs
    # Title (in the head too), lead, fact, command, a score's run (in the headline too) and group;
    # of the row id (clipped at 80 characters), kind (and in the filter), question, gold, run,
    # answer and prompt.
    assert page.text.count(shown) == 17 - (len(HOSTILE) > 80)
    assert not page.all("img")
    assert len(page.all("script")) == 1
    assert len(page.all("li")) == 2


def test_page_loads_nothing_and_runs_only_its_own_script(tmp_path):
    page = hostile_page(tmp_path / "report.html")
    source = (tmp_path / "report.html").read_text(encoding="utf-8")
    (policy,) = (meta["content"] for meta in page.all("meta") if "http-equiv" in meta)
    assert policy.startswith("default-src 'none'; img-src data:;")
    for tag in ("style", "script"):
        (text,) = re.findall(f"<{tag}>(.*?)</{tag}>", source.replace("&lt;", ""), re.DOTALL)
        digest = base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
        assert f"{tag}-src 'sha256-{digest}'" in policy
    for _, attributes in page.elements:
        assert not {"src", "style", "onclick", "onerror"} & attributes.keys()
        assert (attributes.get("href") or "#").startswith(("#", "data:image/webp;base64,"))


def test_long_text_is_clipped_with_a_note(tmp_path):
    row = example(0, {"after": False}, question="why? " * 2000, prompt="because " * 2000)
    page = write(tmp_path / "report.html", examples=[row])
    assert "10,000 characters" in page.text
    assert "16,000 characters" in page.text
    assert len(page.text) < 4000


def test_pictures_are_embedded_once_small_and_crisp(tmp_path):
    picture(64).save(tmp_path / "small.png")
    picture(64).save(tmp_path / "same.png")
    Image.linear_gradient("L").resize((800, 400)).save(tmp_path / "large.png")
    files = [tmp_path / name for name in ("small.png", "same.png", "large.png")]
    rows = [example(i, {"after": True}, images=(files[i % 3], picture(64))) for i in range(9)]
    page = write(tmp_path / "report.html", examples=rows)
    small, large = page.all("image")
    assert (small["width"], small["height"], small.get("class")) == ("64", "64", "crisp")
    assert (large["width"], large["height"], large.get("class")) == ("256", "128", None)
    assert {use["href"] for use in page.all("use")} == {"#p0", "#p1"}
    assert len(page.all("use")) == 18
    pictures = [svg for svg in page.all("svg") if "Picture" in (svg.get("aria-label") or "")]
    assert len({svg["aria-label"] for svg in pictures}) == 18
    data = base64.b64decode(small["href"].partition(",")[2])
    assert np.array_equal(np.asarray(Image.open(io.BytesIO(data))), np.asarray(picture(64)))


def test_worst_pictures_keep_within_their_bytes():
    # Noise compresses worst: 200 such pictures of 15 kB are 4 MB in base64.
    assert len(encoded(picture(256))) <= MAX_BYTES
    assert len(encoded(picture(99))) <= MAX_BYTES


def test_a_missing_picture_is_named_and_the_report_written(tmp_path):
    row = example(0, {"after": True}, images=(tmp_path / "gone.png",))
    assert "gone.png" in write(tmp_path / "report.html", examples=[row]).text


def test_failures_come_first_and_the_filters_count_them(tmp_path):
    verdicts = [(True, True), (False, True), (False, False), (True, False)]
    rows = [example(i, {"before": a, "after": b}) for i, (a, b) in enumerate(verdicts)]
    page = write(tmp_path / "report.html", examples=rows)
    cards = [li["data-outcome"] for li in page.all("li")]
    assert cards == ["failure broken", "failure", "fixed", "right"]
    assert [radio["value"] for radio in page.all("input")] == ["all", "failure", "fixed", "broken"]
    assert "Failures 2" in page.text
    assert "All 4 evaluated examples." in page.text


def test_selection_has_some_of_each_outcome_spread_over_the_rows():
    rows = [example(i, {"before": False, "after": i % 2 == 0}) for i in range(100)]
    rows += [example(i, {"before": True, "after": True}) for i in range(100, 110)]
    chosen = select(rows, 40)
    outcomes = [row.outcome for row in chosen]
    assert outcomes == ["wrong"] * 20 + ["fixed"] * 10 + ["right"] * 10
    assert chosen[19].id == "row/95"
    assert [row.outcome for row in select(rows[100:], 40)] == ["right"] * 10
    assert len(select(rows, 3)) == 3
    assert select(rows, 0) == []


def test_rows_without_verdicts_and_a_single_run():
    assert example(0, {}).outcome == "unscored"
    assert example(0, {"model": True}).outcome == "right"
    assert example(0, {"model": False}).outcome == "wrong"


def test_learning_curve(tmp_path):
    page = write(tmp_path / "report.html", curve=[*CURVE, {"step": 100, "train_loss": 0.1}])
    assert [p["class"] for p in page.all("path")] == ["raw", "smooth", "rate"]
    label = next(s["aria-label"] for s in page.all("svg") if "Loss" in s.get("aria-label", ""))
    assert "100 logged values and their moving average over 5" in label
    assert "at most 0.001" in page.text


@pytest.mark.parametrize(
    "entries",
    [[], CURVE[:1], [{"step": 1, "loss": math.nan}, {"step": 2, "loss": 1.0}], [{"step": 1}] * 3],
)
def test_no_curve_without_two_losses(entries):
    assert learning_curve(entries) == []


@pytest.mark.parametrize("loss", [0.0, 1.0, 1e9])
def test_flat_losses_and_a_long_history_draw(loss):
    drawn = repr(learning_curve([{"step": i, "loss": loss} for i in range(100_000)]))
    assert "nan" not in drawn
    assert len(drawn) < 20_000


def test_smoothing_keeps_a_straight_line():
    line = np.arange(400.0)
    inner = slice(10, -10)  # the ends average what there is
    assert np.allclose(smoothed(line)[inner], line[inner])
    assert smoothed(np.ones(3)).tolist() == [1, 1, 1]


def test_ticks_are_round_and_inside():
    assert ticks(0, 2.1, 5) == [0, 0.5, 1, 1.5, 2]
    assert ticks(1, 1206, 6) == [250, 500, 750, 1000]
    assert ticks(0, 1e-3, 2) == [0, 0.0005, 0.001]
    assert ticks(5, 5, 6) == [5]


def test_an_unwritable_report_is_an_error_of_the_job(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(JobError, match="could not write"):
        write(tmp_path / "file" / "report.html")
    (tmp_path / "report.html").mkdir()
    with pytest.raises(JobError, match="could not write"):
        write(tmp_path / "report.html")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["file", "report.html"]


@pytest.fixture
def chromium():
    found = shutil.which("chromium") or shutil.which("google-chrome")
    if found is None:
        pytest.skip("no chromium or google-chrome to open the report with")
    return found


def browse(chromium, page, *more):
    """What a browser prints that opens a page."""
    flags = "--headless --no-sandbox --disable-gpu --no-first-run --disable-background-networking"
    command = [chromium, *flags.split(), f"--user-data-dir={page.parent / 'profile'}", *more]
    done = subprocess.run(
        [*command, page.as_uri()], check=True, capture_output=True, timeout=60, text=True
    )
    return done.stdout


@pytest.mark.slow
def test_a_browser_shows_some_forty_examples_at_a_time(tmp_path, chromium):
    rows = [example(i, {"after": i % 5 > 0}) for i in range(60)]
    write(tmp_path / "report.html", examples=rows)
    source = browse(chromium, tmp_path / "report.html", "--dump-dom")
    page = Page(source)
    assert sum("hidden" in card for card in page.all("li")) == 20
    assert "40 of 60 shown" in page.text
    assert "Show 20 more" in page.text


@pytest.mark.slow
def test_a_browser_runs_the_script_and_applies_the_style(tmp_path, chromium):
    hostile_page(tmp_path / "report.html")
    shot = tmp_path / "shot.png"
    size = ["--window-size=390,3000", f"--screenshot={shot}", "--hide-scrollbars"]
    browse(chromium, tmp_path / "report.html", *size)
    dom = browse(chromium, tmp_path / "report.html", "--dump-dom")
    assert '<form id="filters">' in dom  # the script has shown it
    assert "<title>owned" not in dom
    pixels = np.asarray(Image.open(shot).convert("RGB"))
    assert pixels[2, 2].tolist() in ([251, 251, 249], [21, 23, 27])  # --page, light or dark
    # Nothing is wider than a phone: the margin on the right is empty all the way down.
    assert (pixels[:, -10:] == pixels[2, 2]).all()


def test_long_answers_stand_below_their_name(tmp_path):
    row = example(1, {"after": True}, answers={"after": "round " * 9}, replies={"after": "1.0"})
    page = write(tmp_path / "r.html", examples=[row])
    kinds = [part.get("class") for part in page.all("div")]
    assert kinds.index("yes long") + 1 == kinds.index("reply")


def test_numbers_on_another_scale_keep_their_label(tmp_path):
    score = Score("model", "mme/official/perception", 1057, 0.75, 0.7, 0.8, "1500.0 of 2000")
    write_report(tmp_path / "r.html", title="t", lead="l", facts={}, scores=[score])
    assert "1500.0 of 2000" in (tmp_path / "r.html").read_text()


def test_a_drawn_picture_is_made_only_for_what_is_shown(tmp_path):
    made = []

    def draw():
        made.append(Image.new("RGB", (64, 64), (len(made), 0, 0)))
        return made[-1]

    picture = Image.new("RGB", (64, 64), "blue")
    shown = [example(n, {"model": False}, images=(picture,), drawn=draw) for n in range(5)]
    page = tmp_path / "r.html"
    write_report(page, title="t", lead="l", facts={}, scores=[], examples=shown, max_examples=3)
    assert len(made) == 3
    text = page.read_text()
    assert text.count("<image id=") == 4  # three drawn, one shared
    assert "dark where the Q-Former" in text
