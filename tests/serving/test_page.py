"""The page in headless Chromium, against a stand-in that speaks the server's protocol.

Set CROME_SCREENSHOTS to a folder to keep what was seen.
"""

import base64
import email
import io
import json
import os
import shutil
import subprocess
import sys
import threading
import time
import wave
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib.resources import files
from importlib.util import find_spec
from pathlib import Path

import pytest
from PIL import Image

playwright = pytest.importorskip("playwright.sync_api", reason="the page's tests need playwright")

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
pytestmark = [
    pytest.mark.skipif(
        CHROMIUM is None, reason="no Chromium on this machine (Debian: apt-get install chromium)"
    ),
    pytest.mark.timeout(600),  # seconds when nothing else runs; a browser suffers from company
]
PAGE = Path(str(files("crome.serving"))) / "page"
TYPES = {
    ".html": "text/html",
    ".css": "text/css",
    ".js": "text/javascript",
    ".svg": "image/svg+xml",
}
DESKTOP, PHONE = {"width": 1280, "height": 900}, {"width": 390, "height": 844}
LOOKS = [("desktop", DESKTOP, "light"), ("phone", PHONE, "dark")]
GRID = [[0.0, 0.0, 0.0], [0.0, 0.1, 0.1], [0.0, 0.1, 0.7]]
HOSTILE = "<img src=x onerror=\"document.title='owned'\">"


def model(name, parent=None, **training):
    return {"id": name, "object": "model", "parent": parent, "metadata": {"training": training}}


class StandIn:
    """The routes the page uses, with answers that say what was asked."""

    def __init__(self):
        self.models = [model("crome-tiny"), model("shapes", "crome-tiny", stage="finetune"),
                       model("textile", "crome-tiny"), model("weld", "crome-tiny")]  # fmt: skip
        self.asked: list[tuple[str, dict]] = []
        self.key = None
        self.classifiers: list[dict] = []
        self.fitted: list[tuple[str, tuple]] = []
        self.pause = 0.0
        self.breaks_off = False
        self.hold = threading.Event()
        self.hold.set()

    def get(self, path):
        if path == "/v1/models":
            return {"object": "list", "data": self.models}
        if path == "/v1/classifiers":
            return {"object": "list", "data": self.classifiers}
        return None

    def fit(self, form):
        """A classifier from a multipart form."""
        message = email.message_from_bytes(form)
        parts = [
            (part.get_param("name", header="content-disposition"), part.get_payload(decode=True))
            for part in message.get_payload()
        ]
        (name,) = [value.decode() for key, value in parts if key == "name"]
        labels = [value.decode() for key, value in parts if key == "labels"]
        images = [Image.open(io.BytesIO(value)).size for key, value in parts if key == "images"]
        assert len(images) == len(labels)
        self.fitted = sorted(zip(labels, images, strict=True))
        self.classifiers.append({"id": name, "classes": sorted(set(labels)), "own": True})
        return self.classifiers[-1]

    def classify(self, body):
        """Each class half as likely as the one before it."""
        (found,) = [c for c in self.classifiers if c["id"] == body["model"]]
        assert [size(url) for url in body["images"]]
        shares = [{"label": c, "probability": 0.5**n} for n, c in enumerate(found["classes"], 1)]
        return {"data": [{"classes": shares[: body["top"]]}]}

    def pieces(self, body):
        """Words of an answer."""
        if body["model"] == "weld":
            raise PermissionError("the queue is full.")
        content = body["messages"][0]["content"]
        if isinstance(content, str):
            return ["no ", "picture: ", content]
        if content[0]["type"] == "input_audio":
            with wave.open(io.BytesIO(base64.b64decode(content[0]["input_audio"]["data"]))) as file:
                return [f"heard {file.getnframes()} at {file.getframerate()}"]
        return [f"{body['model']} ", "sees ", f"{size(content[0]['image_url']['url'])}. ", HOSTILE]


def size(url):
    head, data = url.split(",", 1)
    assert head in ("data:image/png;base64", "data:image/jpeg;base64")
    return "{}x{}".format(*Image.open(io.BytesIO(base64.b64decode(data))).size)


def handler(stand_in):  # noqa: C901 - routes side by side
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def refused(self):
            sent = self.headers.get("Authorization")
            if not self.path.startswith("/v1") or stand_in.key in (None, (sent or "")[7:]):
                return False
            self.reply(401, {"error": {"message": "the API key is missing or wrong.", "code": "k"}})
            return True

        def do_GET(self):
            if self.refused():
                return
            if (body := stand_in.get(self.path)) is not None:
                return self.reply(200, body)
            file = PAGE / (self.path.lstrip("/") or "index.html")
            if not file.is_file():
                return self.reply(404, {})
            self.send(200, TYPES[file.suffix], file.read_bytes())

        def do_POST(self):
            raw = self.rfile.read(int(self.headers["Content-Length"]))
            if self.refused():
                return
            if self.path == "/v1/classifiers":
                form = f"Content-Type: {self.headers['Content-Type']}\r\n\r\n".encode() + raw
                return self.reply(200, stand_in.fit(form))
            body = json.loads(raw)
            stand_in.asked.append((self.path, body))
            if self.path == "/v1/classify":
                return self.reply(200, stand_in.classify(body))
            if self.path == "/v1/attention":
                return self.reply(200, {"grid": GRID})
            try:
                pieces = stand_in.pieces(body)
            except PermissionError as error:
                told = {"error": {"message": str(error), "code": "overloaded"}}
                return self.reply(429, told, {"Retry-After": "3"})
            self.stream(pieces)

        def do_DELETE(self):
            name = self.path.removeprefix("/v1/classifiers/")
            stand_in.classifiers = [c for c in stand_in.classifiers if c["id"] != name]
            self.reply(200, {"id": name, "deleted": True})

        def stream(self, pieces):
            self.send_response(200)
            self.send_header("Content-Type", "text/event-stream")
            self.send_header("Connection", "close")
            self.end_headers()
            events = [{"choices": [{"index": 0, "delta": {"role": "assistant", "content": ""}}]}]
            events += [{"choices": [{"index": 0, "delta": {"content": p}}]} for p in pieces]
            events += [{"choices": [], "usage": {"completion_tokens": 4}}]
            try:
                for event in events:
                    data = f"data: {json.dumps(event)}\n\n".encode()
                    self.wfile.write(data[:9])  # chunks end anywhere
                    self.wfile.flush()
                    self.wfile.write(data[9:])
                    self.wfile.flush()
                    time.sleep(stand_in.pause)
                    stand_in.hold.wait(20)
                if not stand_in.breaks_off:
                    self.wfile.write(b"data: [DONE]\n\n")
            except OSError:
                stand_in.asked.append(("gone", {}))
            self.close_connection = True

        def reply(self, status, body, headers=()):
            self.send(status, "application/json", json.dumps(body).encode(), headers)

        def send(self, status, kind, content, headers=()):
            self.send_response(status)
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(content)))
            for name, value in dict(headers).items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *_):
            pass

    return Handler


@pytest.fixture
def server():
    stand_in = StandIn()
    http = ThreadingHTTPServer(("127.0.0.1", 0), handler(stand_in))
    threading.Thread(target=http.serve_forever, args=(0.02,), daemon=True).start()
    stand_in.url = f"http://127.0.0.1:{http.server_port}/"
    yield stand_in
    stand_in.hold.set()
    http.shutdown()
    http.server_close()


@pytest.fixture(scope="module")
def browser():
    with playwright.sync_playwright() as engine:
        chromium = engine.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield chromium
        chromium.close()


@pytest.fixture
def visit(browser, server):
    """Opens the page; afterwards nothing may have failed inside it, nor gone elsewhere."""
    contexts, wrong = [], []

    def open_page(viewport=DESKTOP, **settings):
        context = browser.new_context(viewport=viewport, **settings)
        contexts.append(context)
        page = context.new_page()
        page.set_default_timeout(60_000)  # of a machine that is busy with other things
        page.on("pageerror", lambda error: wrong.append(f"script: {error}"))
        page.on("console", lambda m: wrong.append(m.text) if "Content Security" in m.text else None)
        page.on("request", lambda r: wrong.append(r.url) if not r.url.startswith(
            (server.url, "data:", "blob:")) else None)  # fmt: skip
        page.goto(server.url)
        page.wait_for_selector("#serves:not(:empty), #trouble:not([hidden]), dialog[open]")
        return page

    yield open_page
    for context in contexts:
        context.close()
    assert not wrong


def keep(page, name):
    if folder := os.environ.get("CROME_SCREENSHOTS"):
        page.screenshot(path=Path(folder) / f"{name}.png", full_page=True)


def ask(page, question):
    page.fill("#question", question)
    page.press("#question", "Enter")
    page.wait_for_selector(".turn")


def png(width, height, colour="red"):
    file = io.BytesIO()
    Image.new("RGB", (width, height), colour).save(file, "PNG")
    return {"name": "mine.png", "mimeType": "image/png", "buffer": file.getvalue()}


def overflow(page):
    return page.evaluate("document.documentElement.scrollWidth - innerWidth")


@pytest.mark.parametrize(("name", "viewport", "scheme"), LOOKS)
def test_two_answers_side_by_side_and_where_they_looked(visit, server, name, viewport, scheme):
    server.pause = 0.02
    page = visit(viewport, color_scheme=scheme)
    keep(page, f"ask-empty-{name}-{scheme}")
    assert page.inner_text("#serves") == "crome-tiny · 3 adapters"
    page.click("#examples button >> nth=4")
    page.wait_for_selector("#picture.full")
    assert page.input_value("#question") == "Is there a tree?"
    page.press("#question", "Enter")
    page.wait_for_selector("text=Where it looked")
    page.wait_for_selector(".answer small:not(:empty) >> nth=1")
    answers = page.locator(".answer")
    assert answers.count() == 2
    # Text of a model is text: the markup in it is shown and does nothing.
    assert answers.nth(0).locator("p").inner_text() == f"crome-tiny sees 448x448. {HOSTILE}"
    assert answers.nth(1).locator("p").inner_text() == f"shapes sees 448x448. {HOSTILE}"
    assert page.title() == "crome-tiny · crome"
    page.click("text=Where it looked")
    page.wait_for_selector("#picture canvas:not([hidden])")
    assert server.asked[-1][0] == "/v1/attention"
    assert page.inner_text("#status") == "Most attention, 70 %, on the lower right."
    dark, clear = page.evaluate("""[[1, 1], [335, 335]].map(([x, y]) => document
        .querySelector('#picture canvas').getContext('2d').getImageData(x, y, 1, 1).data[3])""")
    assert dark > 150
    assert clear < 10  # what was looked at most
    assert overflow(page) <= 0
    keep(page, f"ask-{name}-{scheme}")
    page.click("text=Where it looked")
    assert page.is_hidden("#picture canvas")


def wav(seconds=0.5, rate=16_000):
    file = io.BytesIO()
    with wave.open(file, "wb") as writer:
        writer.setparams((2, 2, rate, 0, "NONE", None))
        writer.writeframes(b"\0\x20" * int(2 * seconds * rate))
    return {"name": "pump.wav", "mimeType": "audio/wav", "buffer": file.getvalue()}


@pytest.mark.parametrize(("name", "viewport", "scheme"), LOOKS)
def test_a_model_that_hears_is_sent_recordings(visit, server, name, viewport, scheme):
    """Of any kind that the browser plays, as WAV; and what it does not have is not offered."""
    server.models[0]["capabilities"] = {"media": ["image", "audio"], "attention": False}
    page = visit(viewport, color_scheme=scheme)
    page.set_input_files("#sound-file", [wav(), wav(0.25, 44_100)])
    page.wait_for_selector("#recordings li >> nth=1")
    page.locator("#recordings button").nth(1).click()
    assert page.locator("#recordings li").count() == 1
    page.set_input_files("#file", png(40, 40))
    page.wait_for_selector("#picture.full")
    page.click("figcaption button >> nth=1")
    ask(page, "Is a bearing worn?")
    page.wait_for_selector(".answer small:not(:empty) >> nth=1")
    assert page.locator(".answer p").first.inner_text() == "heard 12000 at 24000"
    (sound, text) = server.asked[-1][1]["messages"][0]["content"]
    assert sound["input_audio"]["format"] == "wav"
    assert text == {"type": "text", "text": "Is a bearing worn?"}
    assert page.locator(".asked audio").count() == 1
    assert overflow(page) <= 0
    keep(page, f"ask-sound-{name}-{scheme}")
    page.set_input_files("#sound-file", png(4, 4) | {"name": "notes.txt"})
    page.wait_for_selector("text=notes.txt is not a recording that this browser can open.")
    page.set_input_files("#file", png(40, 40))
    page.wait_for_selector("#picture.full")
    ask(page, "And seen?")
    page.wait_for_selector(".turn >> nth=1")
    assert page.locator("text=Where it looked").count() == 0


def test_a_model_that_does_not_hear_is_offered_no_recordings(visit):
    assert visit().is_hidden("#recordings")


def test_answers_stream_and_can_be_stopped(visit, server):
    page = visit()
    server.hold.clear()
    ask(page, "Wait?")
    page.wait_for_selector("#go:has-text('Stop')")
    page.click("#go")
    page.wait_for_selector("text=stopped")
    assert page.inner_text("#go") == "Ask"
    server.hold.set()
    ask(page, "And now?")
    page.wait_for_selector(".turn >> nth=1")
    page.wait_for_selector(".turn:first-child .answer:last-child small:not(:empty)")
    # Without a picture all are the language model alone, so one answers.
    answers = page.locator(".turn").first.locator(".answer")
    assert answers.locator("h4").all_inner_texts() == ["the language model alone"]
    assert answers.locator("p").all_inner_texts() == ["no picture: And now?"]


def test_what_came_of_a_broken_answer_stays(visit, server):
    server.breaks_off = True
    page = visit()
    ask(page, "Half?")
    page.wait_for_selector("text=The answer broke off.")
    assert page.locator(".answer p").all_inner_texts() == ["no picture: Half?"]
    assert page.inner_text("#go") == "Ask"


def test_pictures_are_sent_small_and_never_twice_as_large(visit, server):
    page = visit()
    for picture, expected in ((png(3000, 1500), "1024x512"), (png(20, 10), "20x10")):
        page.set_input_files("#file", picture)
        page.wait_for_function(
            "name => document.querySelector('#picture img').alt == name",
            arg="The picture: mine.png",
        )
        page.wait_for_function(
            "w => document.querySelector('#picture img').naturalWidth == w",
            arg=int(expected.split("x")[0]),
        )
        ask(page, f"Size {expected}?")
        page.wait_for_selector(f"text=sees {expected}")
    page.click("figcaption >> text=Remove")
    assert page.is_visible(".invite")


def test_follow_up_questions_send_what_was_said(visit, server):
    """With what each model itself has answered; the picture where it was shown, and not again."""
    page = visit()
    page.set_input_files("#file", png(20, 10))
    page.wait_for_selector("#picture.full")
    ask(page, "First?")
    page.wait_for_selector(".answer small:not(:empty) >> nth=1")
    page.check("#goes-on")
    page.fill("#question", "Second?")
    page.press("#question", "Enter")
    page.wait_for_selector(".turn >> nth=1")
    page.wait_for_selector(".turn:first-child .answer:last-child small:not(:empty)")
    asked = [body for path, body in server.asked if path == "/v1/chat/completions"]
    assert [len(body["messages"]) for body in asked] == [1, 1, 3, 3]
    for body in asked[2:]:
        first, answer, second = body["messages"]
        assert first["content"][1]["text"] == "First?"
        assert answer["content"].startswith(f"{body['model']} sees 20x10")
        assert second == {"role": "user", "content": "Second?"}
    page.click(".turn:last-child >> text=Ask again")
    page.wait_for_selector(".turn >> nth=2")
    page.wait_for_selector(".turn:first-child .answer:last-child small:not(:empty)")
    again = [body for path, body in server.asked if path == "/v1/chat/completions"][4:]
    assert [body["messages"] for body in again] == [body["messages"] for body in asked[:2]]
    assert page.locator(".turn:first-child h3").inner_text() == "First?"


def test_a_question_is_copied_as_programs_that_ask_it_again(visit, server, tmp_path):
    picture = png(20, 10)
    (tmp_path / "picture-1.png").write_bytes(picture["buffer"])
    question = 'What\'s `this` for $5, \\ or "that"?'
    page = visit()
    page.context.grant_permissions(["clipboard-read", "clipboard-write"])
    page.set_input_files("#file", picture)
    page.wait_for_selector("#picture.full")
    ask(page, question)
    page.wait_for_selector(".answer small:not(:empty) >> nth=0")
    server.asked.clear()
    for name, command in (("Python", [sys.executable, "-"]), ("curl", ["sh", "-s"])):
        page.click(f"text=Copy as {name}")
        page.wait_for_selector("text=Copied")
        program = page.evaluate("navigator.clipboard.readText()")
        if name == "Python":
            compile(program, "copied", "exec")
        needed = find_spec("openai") if name == "Python" else shutil.which("curl")
        if needed:
            # the stand-in only streams, which the Python program does not read
            subprocess.run(command, input=program, text=True, cwd=tmp_path, timeout=60)
            (_, body), *others = server.asked
            shown, words = body["messages"][0]["content"]
            content = shown["image_url"]["url"].removeprefix("data:image/png;base64,")
            assert base64.b64decode(content) == picture["buffer"]
            assert words == {"type": "text", "text": question}
            assert not others
            server.asked.clear()


@pytest.mark.parametrize(("name", "viewport", "scheme"), LOOKS)
def test_several_pictures_in_one_question(visit, server, name, viewport, scheme):
    page = visit(viewport, color_scheme=scheme)
    page.set_input_files("#file", [png(20, 10), png(30, 10)])
    page.wait_for_selector("#picture .thumbs button >> nth=1")
    with page.expect_file_chooser() as chooser:
        page.click("text=Add another")
    chooser.value.set_files(png(40, 10))
    page.wait_for_selector("#picture .thumbs button >> nth=2")
    assert page.locator("#picture .thumbs [aria-pressed=true]").count() == 1
    assert overflow(page) <= 0
    keep(page, f"several-{name}-{scheme}")
    page.click("#picture .thumbs button >> nth=1")
    page.click("figcaption >> text=Remove")
    page.locator("#picture .thumbs button").nth(1).wait_for()
    ask(page, "Which is wider?")
    page.wait_for_selector(".answer small:not(:empty) >> nth=1")
    keep(page, f"several-asked-{name}-{scheme}")
    (first, second), *_ = [
        [size(part["image_url"]["url"]) for part in body["messages"][0]["content"][:-1]]
        for path, body in server.asked if path == "/v1/chat/completions"
    ]  # fmt: skip
    assert (first, second) == ("20x10", "40x10")
    assert page.locator(".asked img").count() == 2
    # One file that is dropped or chosen afterwards stands in their place.
    page.set_input_files("#file", png(50, 10))
    page.wait_for_function("() => document.querySelector('#picture img').naturalWidth == 50")
    assert page.is_hidden("#picture .thumbs")


def test_a_classifier_is_removed_by_whoever_made_it(visit, server):
    server.classifiers = [{"id": "theirs", "classes": ["a", "b"], "own": False},
                          {"id": "mine", "classes": ["a", "b"], "own": True}]  # fmt: skip
    page = visit()
    page.click("#tab-fewshot")
    assert page.is_hidden("#forget")
    page.check("input[name=classifier][value=mine]")
    assert page.inner_text("#forget") == "Remove mine"
    page.once("dialog", lambda dialog: dialog.dismiss())
    page.click("#forget")
    assert len(server.classifiers) == 2
    page.once("dialog", lambda dialog: dialog.accept())
    page.click("#forget")
    page.wait_for_selector("text=mine was removed.")
    assert [c["id"] for c in server.classifiers] == ["theirs"]
    assert page.is_checked("input[name=classifier][value=theirs]")
    assert page.is_hidden("#forget")


def test_code_and_lists_are_shown_as_such(visit, server, monkeypatch):
    text = "Two:\n\n- `one`\n- two\n\n```python\nprint('<b>')\n```\nDone."
    monkeypatch.setattr(server, "pieces", lambda body: [text[i : i + 5] for i in range(0, 60, 5)])
    page = visit()
    ask(page, "Code?")
    page.wait_for_selector(".answer small:not(:empty)")
    answer = page.locator(".answer .text")
    assert answer.locator("li").all_inner_texts() == ["one", "two"]
    assert answer.locator("pre").inner_text() == "print('<b>')\n"
    assert answer.locator("p").all_inner_texts() == ["Two:", "Done."]
    assert page.is_visible(".answer >> text=Copy")


def test_many_models_are_searched_and_say_what_they_are(visit, server):
    server.models += [model(f"plant-{i}", "crome-tiny", data=f"leaves {i}") for i in range(30)]
    server.models[-1]["metadata"]["metrics"] = {"accuracy": 0.91234}
    page = visit(PHONE)
    page.fill("#search", "leaves 29")
    assert page.locator("#models label:visible span").all_inner_texts() == [
        "crome-tiny", "shapes", "plant-29"  # what is chosen stays in sight
    ]  # fmt: skip
    page.check("input[value=plant-29]")
    assert "plant-29: an adapter, trained on leaves 29, accuracy 0.912" in page.inner_text("#about")
    assert overflow(page) <= 0


def test_on_a_phone_the_question_is_in_sight(visit):
    page = visit(PHONE)
    assert page.locator("#question").bounding_box()["y"] < PHONE["height"] - 60


def test_a_file_that_is_no_picture_is_said(visit):
    page = visit()
    page.set_input_files(
        "#file", {"name": "x.png", "mimeType": "image/png", "buffer": b"not a picture"}
    )
    page.wait_for_selector("text=x.png is not a picture that this browser can open.")


def test_no_more_than_three_and_errors_are_said_in_their_place(visit):
    page = visit()
    page.check("input[value=textile]")
    assert page.is_disabled("input[value=weld]")
    page.uncheck("input[value=textile]")
    page.check("input[value=weld]")
    page.set_input_files("#file", png(20, 10))
    page.wait_for_selector("#picture.full")
    ask(page, "Who?")
    page.wait_for_selector("text=the queue is full. Try again in 3 s.")
    assert page.locator(".answer p.failed").count() == 1
    for name in ("crome-tiny", "shapes", "weld"):
        page.uncheck(f"input[value={name}]")
    assert page.is_disabled("#go")


def test_keyboard_alone(visit):
    """Tabs, picture, examples, models, question: in this order, each with a visible focus."""
    page = visit()
    seen = []
    for _ in range(16):
        page.keyboard.press("Tab")
        seen.append(
            page.evaluate(
                "document.activeElement.id || document.activeElement.title ||"
                "document.activeElement.value || document.activeElement.tagName"
            )
        )
    assert seen[:2] == ["tab-ask", "file"]
    assert seen[2].startswith("A circle")
    assert "crome-tiny" in seen
    assert seen.index("question") < seen.index("go")
    page.focus("#tab-ask")
    page.keyboard.press("ArrowRight")
    assert page.evaluate("document.activeElement.id") == "tab-fewshot"
    assert page.is_visible("#fewshot")
    assert page.is_hidden("#ask")
    page.keyboard.press("ArrowLeft")
    page.focus("#examples button >> nth=0")
    page.keyboard.press("Enter")
    page.wait_for_selector("#picture.full")
    assert page.evaluate("document.activeElement.id") == "question"
    page.keyboard.press("Shift+Enter")
    assert page.input_value("#question").endswith("\n")
    page.keyboard.press("Enter")
    page.wait_for_selector("text=crome-tiny sees")


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_axe_finds_no_barrier(visit, server, scheme):
    """Names, roles, contrast, landmarks: every rule of axe-core, in every state of the page."""
    axe = pytest.importorskip("axe_playwright_python.sync_playwright", reason="needs axe").Axe()

    def barriers():
        found = axe.run(page).response["violations"]
        return [(rule["id"], rule["nodes"][0]["html"]) for rule in found]

    page = visit(PHONE, color_scheme=scheme)
    assert barriers() == []
    page.check("input[value=weld]")  # whose answer is an error
    page.click("#examples button >> nth=0")
    page.wait_for_selector("#picture.full")
    ask(page, "Barriers?")
    page.wait_for_selector(".answer small:not(:empty) >> nth=1")
    page.wait_for_selector(".failed")
    page.click("text=Where it looked")
    page.click("summary")
    page.wait_for_selector("#picture canvas:not([hidden])")
    assert barriers() == []
    page.click("#tab-fewshot")
    assert barriers() == []
    page.click("text=Try with drawings")
    page.wait_for_selector(".class >> nth=3")
    page.click("#fit-go")
    page.wait_for_selector("text=drawings is ready")
    page.set_input_files("#unknown-file", png(30, 30))
    page.wait_for_selector(".verdict dl")
    assert barriers() == []
    server.key = "secret"
    page.reload()
    page.wait_for_selector("dialog[open]")
    assert barriers() == []


@pytest.mark.parametrize(("name", "viewport", "scheme"), LOOKS)
def test_folders_become_a_classifier_that_is_tried(visit, server, tmp_path, name, viewport, scheme):
    for label, colour in (("apple", "red"), ("lime", "green"), ("plum", "purple")):
        (tmp_path / "fruit" / label).mkdir(parents=True)
        for number in range(3):
            file = png(60, 40 + number, colour)["buffer"]
            (tmp_path / "fruit" / label / f"{number}.png").write_bytes(file)
    (tmp_path / "fruit" / "lime" / "notes.txt").write_text("not a picture")
    page = visit(viewport, color_scheme=scheme)
    page.click("#tab-fewshot")
    keep(page, f"fewshot-empty-{name}-{scheme}")
    assert page.is_disabled("#fit-go")
    page.set_input_files("#folder", tmp_path / "fruit")
    page.wait_for_selector(".class >> nth=2")
    assert page.locator(".class small").all_inner_texts() == ["3 pictures"] * 3
    page.fill(".class >> nth=2 >> input[type=text]", "plum ")
    page.fill("#fit-name", "fruit")
    page.click("#fit-go")
    page.wait_for_selector("text=fruit is ready: 3 classes, 9 pictures.")
    assert server.fitted == [
        (label, (60, 40 + n)) for label in ("apple", "lime", "plum") for n in range(3)
    ]
    assert page.is_checked("input[name=classifier][value=fruit]")
    page.set_input_files("#unknown-file", [png(30, 30), png(2000, 10)])
    page.wait_for_selector(".verdict >> nth=1 >> dl")
    page.wait_for_selector(".verdict >> nth=0 >> dl")
    assert page.locator(".verdict >> nth=0 >> dd").all_inner_texts() == [
        "50.0 %", "25.0 %", "12.5 %"
    ]  # fmt: skip
    assert page.inner_text("#verdict-status") == "mine.png: apple, 50.0 %."
    assert overflow(page) <= 0
    keep(page, f"fewshot-{name}-{scheme}")


def test_a_classifier_wants_two_named_classes_with_pictures(visit, server):
    page = visit()
    page.click("#tab-fewshot")
    assert page.is_disabled("#unknown-file")  # nothing to ask yet
    page.evaluate(
        "import('./dom.js').then(({ trouble }) => trouble('There is no classifier yet.'))"
    )
    page.click("text=Try with drawings")
    page.wait_for_selector(".class >> nth=3")
    assert page.input_value("#fit-name") == "drawings"
    assert page.is_enabled("#fit-go")
    page.click("text=Add a class by hand")
    assert page.is_disabled("#fit-go")  # it has no pictures
    page.click("[aria-label='Remove class 5']")
    page.fill(".class >> nth=1 >> input[type=text]", "circle")
    assert page.is_disabled("#fit-go")  # two of one name
    page.fill(".class >> nth=1 >> input[type=text]", "other")
    page.click("#fit-go")
    page.wait_for_selector("text=drawings is ready: 4 classes, 16 pictures.")
    assert not page.is_visible("#trouble")
    assert {size for _, size in server.fitted} == {(224, 224)}


def test_a_key_is_asked_for_and_kept_for_the_tab(visit, server):
    server.key = "secret"
    page = visit()
    assert "started with keys" in page.inner_text("#key-why")
    page.fill("#key-value", "wrong")
    page.press("#key-value", "Enter")
    page.wait_for_selector("text=The server did not accept that key.")
    page.fill("#key-value", "secret")
    page.keyboard.press("Enter")
    page.wait_for_selector("#serves:not(:empty)")
    page.reload()
    page.wait_for_selector("#serves:not(:empty)")


def test_a_server_that_fails_from_the_start_is_said_and_nothing_offered(visit, server, monkeypatch):
    monkeypatch.setattr(server, "get", lambda path: None)
    page = visit()
    assert page.inner_text("#trouble") == "The server answered 404. Reload the page to try again."
    assert page.is_hidden("#ask")
    assert page.is_hidden(".tabs")
    keep(page, "lost")


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_stands_out_from_its_background(visit, scheme):
    """WCAG's 4.5:1 for text, 3:1 for edges of controls."""
    page = visit(color_scheme=scheme)
    colours = page.evaluate("""() => { const s = getComputedStyle(document.documentElement);
        return Object.fromEntries(['page', 'surface', 'ink', 'soft', 'edge', 'accent', 'on-accent',
        'bad', 'run0', 'run1', 'run2'].map(n => [n, s.getPropertyValue('--' + n).trim()])) }""")
    for ground in ("page", "surface"):
        for text in ("ink", "soft", "accent", "bad"):
            assert contrast(colours[text], colours[ground]) >= 4.5, (text, ground)
        for edge in ("edge", "run0", "run1", "run2"):
            assert contrast(colours[edge], colours[ground]) >= 3, (edge, ground)
    assert contrast(colours["on-accent"], colours["accent"]) >= 4.5


def contrast(a, b):
    light, dark = sorted(map(luminance, (a, b)), reverse=True)
    return (light + 0.05) / (dark + 0.05)


def luminance(colour):
    digits = colour.lstrip("#")
    digits = "".join(2 * d for d in digits) if len(digits) == 3 else digits
    channels = [int(digits[i : i + 2], 16) / 255 for i in (0, 2, 4)]
    linear = [c / 12.92 if c <= 0.03928 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def test_the_page_on_the_real_server(serving, browser):
    """Nothing of the stand-in: answers, their stream and attention come from a tiny model."""
    with serving() as running:
        page = browser.new_page()
        page.set_default_timeout(60_000)
        page.goto(running.url)
        page.wait_for_selector("#serves:not(:empty)")
        assert page.inner_text("#serves") == "tiny · 2 adapters"
        page.check("input[value=blue]")
        page.click("#examples button >> nth=3")
        page.wait_for_selector("#picture.full")
        page.fill("#question", "What is the colour?")
        page.click("summary")
        page.fill("#tokens", "6")
        page.click("#go")
        page.wait_for_selector(".answer small:not(:empty) >> nth=2")
        assert page.locator(".failed").count() == 0
        answers = page.locator(".answer p").all_inner_texts()
        assert len(set(answers)) > 1  # adapters differ
        page.click("text=Where it looked")
        page.wait_for_selector("#picture canvas:not([hidden])")
        assert page.is_hidden("#trouble")
        page.click("#tab-fewshot")
        assert page.is_visible("text=No classifier yet")
        page.close()
