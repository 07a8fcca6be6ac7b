"""The notebooks where people use them: JupyterLab in a real Chromium, live widgets moved by keyboard and mouse, screenshots kept.

Needs what `./run_all.sh run --profile smoke` made, Debian's (or any) chromium, and the extra `browser`; else it says NOT RUN.
"""

import json
import os
import re
import shutil
import subprocess
import sys
import time
import urllib.request
from importlib.util import find_spec
from pathlib import Path

import pytest

from mmduet2kit.launch import free_port

ROOT = Path(__file__).parent.parent
RUN, SHOTS = ROOT / "runs/smoke", ROOT / "runs/smoke/screenshots"
NAMES = sorted(path.stem for path in (ROOT / "notebooks").glob("[0-9]*.ipynb"))
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
MISSING = next((says for says, there in (
    ("playwright is not installed: pip install -e '.[browser]'", find_spec("playwright")),
    ("there is no chromium: apt install chromium", CHROMIUM),
    ("there is no smoke run: ./run_all.sh run --profile smoke", (RUN / "report.html").exists())) if not there), "")  # fmt: skip
pytestmark = [pytest.mark.all_only, pytest.mark.skipif(bool(MISSING), reason=f"NOT RUN: {MISSING}")]
SETTINGS = {"notebook-extension/tracker": {"windowingMode": "none"},  # else cells out of sight are not in the page
            "apputils-extension/notification": {"fetchNews": "false", "checkForUpdates": False}}  # fmt: skip

FAINT = """() => {  // texts of our output whose letters have less than 4.5 to 1 on their ground (WCAG 2, 1.4.3)
    const numbers = color => color.match(/[\\d.]+/g).map(Number);
    const light = color => [0.2126, 0.7152, 0.0722].reduce((sum, weight, k) => {
        const c = numbers(color)[k] / 255;
        return sum + weight * (c <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4);
    }, 0);
    const ground = one => {
        const color = getComputedStyle(one).backgroundColor, seen = numbers(color)[3] ?? 1;
        return seen > 0.99 || !one.parentElement ? color : ground(one.parentElement);
    };
    return [...document.querySelectorAll(".jp-OutputArea .jp-RenderedHTMLCommon *")]
        .filter(one => one.checkVisibility() && [...one.childNodes].some(child => child.nodeType == 3 && child.data.trim()))
        .map(one => [light(getComputedStyle(one).color), light(ground(one)), one.innerText.slice(0, 40)])
        .filter(([a, b]) => (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05) < 4.5);
}"""


@pytest.fixture(scope="module", params=["JupyterLab Light"])
def lab(request, tmp_path_factory):
    """Address of a JupyterLab over copies of the notebooks that are live and of the profile smoke; param: its theme."""
    books, settings, port = tmp_path_factory.mktemp("books"), tmp_path_factory.mktemp("settings"), free_port()
    for name in NAMES:
        text = (ROOT / "notebooks" / f"{name}.ipynb").read_text(encoding="utf-8")
        live = text.replace('PROFILE = \\"tiny\\"', 'PROFILE = \\"smoke\\"').replace("INTERACTIVE = False", "INTERACTIVE = True")
        assert live != text
        (books / f"{name}.ipynb").write_text(live, encoding="utf-8")
    for name, content in (SETTINGS | {"apputils-extension/themes": {"theme": request.param}}).items():
        place = settings / "@jupyterlab" / f"{name}.jupyterlab-settings"
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_text(json.dumps(content))
    own = {"JUPYTER_PREFER_ENV_PATH": "1", "JUPYTERLAB_SETTINGS_DIR": str(settings), "JUPYTERLAB_WORKSPACES_DIR": str(settings / "workspaces")}
    command = [sys.executable, "-m", "jupyterlab", "--allow-root", "--no-browser", f"--port={port}", "--ServerApp.port_retries=0",
               "--IdentityProvider.token=", "--ServerApp.password=", f"--ServerApp.root_dir={books}"]  # fmt: skip
    path = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))
    with open(settings / "lab.log", "w") as log:
        process = subprocess.Popen(command, env=os.environ | own | {"PYTHONPATH": path}, stdout=log, stderr=log)
    address = f"http://127.0.0.1:{port}/lab"
    try:
        for _ in range(120):
            try:
                urllib.request.urlopen(address, timeout=5).close()
                break
            except OSError:
                assert process.poll() is None, (settings / "lab.log").read_text()
                time.sleep(0.5)
        yield address
    finally:
        process.terminate()
        process.wait(60)


@pytest.fixture(scope="module")
def browser():
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        made = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu"])
        yield made
        made.close()


class Book:
    """A notebook that is open in the browser, all its cells run."""

    def __init__(self, page, address, name, limit=1500):
        self.page, self.name, started = page, name, time.monotonic()
        SHOTS.mkdir(parents=True, exist_ok=True)
        page.set_default_timeout(60_000)
        page.goto(f"{address}/tree/{name}.ipynb?reset", wait_until="domcontentloaded")
        page.wait_for_selector(".jp-Notebook .jp-CodeCell")
        page.wait_for_selector(".jp-Notebook-ExecutionIndicator[data-status=idle]")
        begun = time.monotonic()
        page.locator(".jp-Notebook .jp-Cell").first.click()
        self.first_picture, todo, taken, again = None, re.compile(r"^\[[ *]\]:?$"), re.compile(r"^\[[*\d]+\]:?$"), 0.0
        while time.monotonic() < started + limit:
            if time.monotonic() > again and not page.locator(".jp-InputPrompt").filter(has_text=taken).count():
                page.get_by_text("Run", exact=True).first.click()  # and once more where the kernel was not there yet
                page.get_by_text("Run All Cells", exact=True).click()
                again = time.monotonic() + 10
            page.wait_for_timeout(500)
            if self.first_picture is None and page.locator(".jp-OutputArea img").count():
                self.first_picture = time.monotonic() - begun
            if not page.locator(".jp-CodeCell .jp-InputPrompt").filter(has_text=todo).count():
                break
        else:
            page.screenshot(path=SHOTS / f"{name[:2]}_unfinished.png")
            pytest.fail(f"{name} did not end within {limit} s")
        self.errors = page.locator("[data-mime-type='application/vnd.jupyter.error']").all_inner_texts()

    def cell(self, text):
        """The cell with this in its code."""
        found = self.page.locator(".jp-CodeCell").filter(has=self.page.locator(".cm-content", has_text=text))
        assert found.count() == 1 and found.locator("figure").count()
        return Widget(self, found)


class Widget:
    def __init__(self, book, cell):
        self.book, self.cell = book, cell
        cell.scroll_into_view_if_needed()

    def control(self, name):
        label = self.book.page.locator(".widget-label", has_text=re.compile(f"^{re.escape(name)}$"))
        return self.cell.locator(".widget-inline-hbox").filter(has=label)

    def press(self, name, key, times=1):
        """Move a slider by the keyboard."""
        handle = self.control(name).locator(".noUi-handle")
        handle.focus()
        for _ in range(times):
            handle.press(key)

    def choose(self, name, option):
        self.control(name).locator("select").select_option(label=option)

    def write(self, name, text):
        field = self.control(name).locator("input")
        field.fill(text)
        field.press("Enter")

    def alts(self):
        return self.cell.locator("figure img").evaluate_all("all => all.map(one => one.alt)")

    def text(self):
        return self.cell.locator(".jp-OutputArea").inner_text()

    def becomes(self, wanted, of=None, seconds=60):
        """Wait until the pictures' alt texts (or what `of` gives) hold this."""
        of, end = of or (lambda: " | ".join(self.alts())), time.monotonic() + seconds
        while wanted not in of():
            if time.monotonic() > end:
                self.book.page.screenshot(path=SHOTS / f"{self.book.name[:2]}_waited_in_vain.png")
                pytest.fail(f"{wanted!r} did not come: {of()[-1500:]}")
            self.book.page.wait_for_timeout(200)

    def shot(self, name):
        self.cell.locator(".jp-OutputArea").first.screenshot(path=SHOTS / f"{self.book.name[:2]}_{name}.png")


@pytest.fixture
def open_book(lab, browser, capsys):
    pages = []

    def open_(number):
        page = browser.new_page(viewport={"width": 1280, "height": 2000})
        pages.append(page)
        book = Book(page, lab, next(name for name in NAMES if name.startswith(number)))
        dark = page.locator("body[data-jp-theme-light=false]").count() * "_dark"
        page.screenshot(path=SHOTS / f"{number}{dark}.png")
        with capsys.disabled():
            print(f"\n{book.name}: first picture after {book.first_picture or 0:.1f} s, {page.locator('.jp-OutputArea img').count()} pictures")
        assert book.errors == []
        alts = page.locator(".jp-OutputArea img").evaluate_all("all => all.map(one => one.alt)")
        assert all(len(alt) > 20 for alt in alts)
        assert page.evaluate(FAINT) == []
        return book

    yield open_
    for page in pages:
        page.close()


@pytest.mark.parametrize("number", [name[:2] for name in NAMES if name[:2] not in ("04", "05", "06")])
def test_the_notebook_opens_and_runs_live(open_book, number):
    assert open_book(number).page.locator(".jupyter-widgets").count() == 0  # nothing that saves widget state by chance


def test_pauc_and_reward_can_be_played_with(open_book):
    book = open_book("04")
    pauc = book.cell("widgets.pauc_explorer")
    assert "score 4 at 3 s, score 2 at 6 s, score 0 at 8 s; PAUC 21.9" in pauc.alts()[2] and "left out" in pauc.text()
    pauc.shot("pauc")
    pauc.press("reply 1 at, s", "ArrowLeft", 2)
    pauc.becomes("score 4 at 2 s")
    pauc.choose("reply 3 is", "no reply")
    pauc.becomes("reward: score 4 at 2 s, score 2 at 6 s;")
    pauc.press("omega", "End")
    pauc.becomes("reward: score 4 at 2 s, score 2 at 6 s; PAUC 50.0.")  # at omega 1 the last score alone counts
    pauc.becomes("omega 1", pauc.text)
    pauc.shot("pauc_moved")
    pauc.control("reply 1 at, s").locator(".noUi-handle").focus()
    for reached in ("DIV", "SELECT"):  # by the tab key alone: the slider's number, which can be typed, and the next control
        book.page.keyboard.press("Tab")
        assert book.page.evaluate("document.activeElement.tagName") == reached
    reward = book.cell("widgets.reward_explorer")
    reward.becomes("replies: 4")
    before = reward.text()
    reward.choose("at 20 s", "NO REPLY")
    reward.choose("at 6 s", "NO REPLY")
    reward.becomes("replies: 2")
    assert reward.text() != before and "-0.25" not in reward.text()  # no repeat, none outside
    reward.choose("at 2 s", "other text")
    reward.write("other text", "A purple cat sleeps.")
    reward.becomes("A purple cat sleeps.", lambda: reward.cell.locator("figure").inner_html())
    reward.shot("reward_moved")


def test_groups_of_other_prompts_and_models_can_be_seen(open_book):
    book = open_book("05")
    assert "pushed up" in book.cell("The group of the RL model").alts()[0]
    group = book.cell("Prompt {number}")
    group.becomes("Prompt 1, the rl model.")
    group.shot("group")
    group.press("prompt", "ArrowRight")
    group.becomes("Prompt 2, the rl model.")
    group.choose("model", "sft")
    group.becomes("Prompt 2, the sft model.")
    group.shot("group_moved")


def test_the_player_before_and_after_and_an_own_video(open_book, tmp_path):
    book = open_book("06")
    compare = book.cell("widgets.compare")
    (first,) = compare.alts()
    assert "watched by base, sft, rl" in first and "onsets" in first
    compare.shot("before_after")
    options = compare.control("video").locator("option").all_inner_texts()
    compare.choose("video", options[-1])
    compare.becomes(f"{options[-1]}, watched by")
    compare.shot("before_after_moved")
    player = book.cell("widgets.player")
    last = int(player.control("turn").locator(".widget-readout").inner_text())
    assert last > 3 and f"Turn {last} at" in player.alts()[1] and "the probability of speaking is" in player.alts()[1]
    player.shot("player")
    player.press("turn", "Home")
    player.becomes("Turn 1 at")
    assert player.cell.locator("figure").first.locator("tr", has_text="probability of speaking").count() == 1
    player.cell.locator(".jupyter-widgets.widget-play button").first.click()
    player.becomes("Turn 3 at")
    player.shot("player_moved")
    player.becomes(f"Turn {last} at", seconds=120)  # played to its end: while it grows, what stands below it moves
    own = book.cell("widgets.own_video")
    (before,) = own.alts()
    for path, question, says in (("no.mp4", "What moves?", "no.mp4 does not exist"), (str(tmp_path), "What moves?", f"{tmp_path} does not exist or is a folder"),
                                 (str(tmp_path), " ", "Nothing is asked")):  # fmt: skip
        own.write("path", path)
        own.write("question", question)
        own.cell.get_by_role("button", name="Watch this video").click()
        own.becomes(says, own.text)
        assert own.cell.locator("[role=alert]").count() == 1 and "Traceback" not in own.text()
    own.write("path", str(next((RUN / "data" / "videos" / "test").glob("*.mp4")).resolve()))
    own.write("question", "What shows up now?")
    own.cell.get_by_role("button", name="Watch this video").press("Enter")
    own.becomes("“What shows up now?”")
    assert own.cell.locator("[role=alert]").count() == 0 and own.alts() != [before]
    own.shot("own_video")


@pytest.mark.parametrize("lab", ["JupyterLab Dark"], indirect=True)
@pytest.mark.parametrize("number", ["01", "02", "04", "05"])
def test_it_is_readable_on_a_dark_theme_too(open_book, number):
    book = open_book(number)  # which looks at the contrast, and takes the picture
    assert book.page.locator("body[data-jp-theme-name='JupyterLab Dark']").count() == 1


def test_the_report_is_read_on_a_phone_and_on_paper(browser, tmp_path):
    """No line runs out of a phone's width, wide tables and long words included; printed on A4, nothing is cut off or squeezed."""
    for width in (360, 390, 1280):
        page = browser.new_page(viewport={"width": width, "height": 844})
        page.goto((RUN / "report.html").as_uri())
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        page.screenshot(path=SHOTS / f"report_{width}.png")
        page.close()
    page = browser.new_page(viewport={"width": 718, "height": 1000})  # A4 with margins of 10 mm, 96 pixels an inch
    page.goto((RUN / "report.html").as_uri())
    page.emulate_media(media="print")
    assert page.evaluate("""[...document.querySelectorAll("table, figure, pre")].filter(one => one.checkVisibility() &&
        one.getBoundingClientRect().right > 719).map(one => one.innerText.slice(0, 60))""") == []
    assert len(page.pdf(path=tmp_path / "report.pdf", format="A4")) > 50_000
