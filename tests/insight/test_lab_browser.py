"""The lab's page in a browser: every panel clicked through, by mouse and keyboard, at both widths, in light and dark."""

import io
import re
import shutil
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

import numpy as np
import pytest
from PIL import Image
from subjects import small_subject

from skipway.insight.lab.serve import _listening, make_app
from skipway.insight.subject import Subject

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(CHROMIUM is None, reason="no chromium here: apt-get install chromium"),
]
from playwright.sync_api import Browser, Page, expect  # noqa: E402

AXE = Path(__file__).parent / "axe/axe.min.js"
PANELS = ("strip", "race", "landscape", "image", "cards")
Scheme = Literal["light", "dark"]
WAIT_MS = 30_000
expect.set_options(timeout=WAIT_MS)


class Served:
    """A lab that can be stopped, and started anew at the same port."""

    def __init__(self, subject: Subject):
        self.subject, self.port = subject, 0
        self.start()

    def start(self) -> None:
        import uvicorn

        listener = _listening(self.port)
        self.port = listener.getsockname()[1]
        app = make_app(self.subject, port=self.port, what="small")
        settings = uvicorn.Config(app, log_level="error", timeout_graceful_shutdown=1)
        self.server = uvicorn.Server(settings)
        self.thread = threading.Thread(target=self._run, args=(listener,), daemon=True)
        self.thread.start()
        while not self.server.started:
            time.sleep(0.02)

    def _run(self, listener) -> None:
        with listener:
            self.server.run([listener])

    def stop(self) -> None:
        self.server.should_exit = True
        self.thread.join(20)
        assert not self.thread.is_alive()

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.port}/"


@pytest.fixture(scope="module")
def served() -> Iterator[Served]:
    made = Served(small_subject(steps=25))
    yield made
    made.stop()


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with playwright.sync_playwright() as started:
        made = started.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield made
        made.close()


def opened(browser: Browser, width: int = 1280, scheme: Scheme = "light") -> tuple[Page, list[str]]:
    """A page, and the list of its console's complaints."""
    context = browser.new_context(viewport={"width": width, "height": 900}, color_scheme=scheme, accept_downloads=True)
    page = context.new_page()
    page.set_default_timeout(WAIT_MS)
    complaints: list[str] = []
    page.on("console", lambda m: complaints.append(m.text) if m.type in ("error", "warning") else None)
    page.on("pageerror", lambda error: complaints.append(str(error)))
    return page, complaints


@pytest.fixture
def page(browser: Browser) -> Iterator[Page]:
    made, complaints = opened(browser)
    yield made
    made.context.close()
    assert complaints == []


def accuracy(page: Page) -> str:
    return page.locator(".number.after .value").inner_text()


def settled(page: Page, text: str | re.Pattern[str]) -> None:
    expect(page.locator(".number.after .value")).to_have_text(text)


def test_cut_skip_changes_the_accuracy_and_undo_takes_it_back(page: Page, served: Served):
    page.goto(served.address)
    settled(page, "–")
    whole = page.locator(".number .value").first.inner_text()
    page.get_by_role("radio", name="Cut skips").check(force=True)
    page.get_by_role("button", name=re.compile("^stage1.block2")).click()
    settled(page, re.compile("%"))
    cut = accuracy(page)
    assert cut != whole
    expect(page.locator(".flips li").first).to_be_visible()
    assert "edits=shortcut:stage1.block2=0" in page.url
    page.get_by_role("button", name="Undo").click()
    settled(page, "–")
    assert "edits" not in page.url
    page.get_by_role("button", name="Redo").click()
    settled(page, cut)
    page.reload()  # the address alone brings it back
    settled(page, cut)
    page.get_by_role("button", name="Reset").click()
    settled(page, "–")


def test_block_is_cut_and_branch_scaled_in_the_inspector(page: Page, served: Served):
    page.goto(f"{served.address}#panel=strip&block=stage1.block2")
    page.get_by_role("button", name="✕ Cut the block").click()
    settled(page, re.compile("%"))
    page.get_by_role("button", name="✕ Cut the block").click()
    settled(page, "–")
    page.get_by_label("Branch scale").fill("0.25")
    settled(page, re.compile("%"))
    assert "branch:stage1.block2=0.25" in page.url
    page.get_by_role("button", name="Take back branch:stage1.block2=0.25").click()
    settled(page, "–")


def test_strip_works_by_keyboard_alone(page: Page, served: Served):
    page.goto(served.address)
    settled(page, "–")
    page.get_by_role("button", name=re.compile("^stage1.block1")).focus()
    page.keyboard.press("ArrowRight")
    page.keyboard.press("x")
    settled(page, re.compile("%"))
    assert "edits=block:stage1.block2" in page.url
    expect(page.locator("g.unit:focus")).to_have_attribute("data-name", "stage1.block2")
    page.keyboard.press("Control+z")
    settled(page, "–")
    page.get_by_role("tab", name="Strip").focus()
    page.keyboard.press("ArrowLeft")
    expect(page.get_by_role("tab", name="Cards")).to_be_focused()
    expect(page.get_by_role("heading", name="Cards")).to_be_visible()


def test_measures_colour_the_strip_and_are_saved(page: Page, served: Served):
    page.goto(served.address)
    for measure, words in (("share", "branch share"), ("lesion", "cutting it costs"), ("flops", "FLOPs")):
        page.get_by_label("Colour by").select_option(measure)
        expect(page.get_by_role("button", name=re.compile(f"stage2.block2.*{words}"))).to_be_visible()
    with page.expect_download() as download:
        page.get_by_role("button", name="Save the strip as SVG").click()
    text = Path(download.value.path()).read_text()
    assert text.startswith("<svg")
    assert "stage 2" in text
    with page.expect_download() as download:
        page.get_by_role("button", name="Save the strip as CSV").click()
    assert len(Path(download.value.path()).read_text().splitlines()) == 5


def test_unknown_address_is_said_and_ignored(page: Page, served: Served):
    page.goto(f"{served.address}#panel=nowhere&edits=block:stage9.block9;block:stage1.block2&x=1")
    expect(page.locator("#notice")).to_contain_text("The address holds what this page does not know")
    settled(page, re.compile("%"))
    assert page.url.endswith("#panel=strip&edits=block:stage1.block2")


def test_two_tabs_keep_their_own_edits(browser: Browser, page: Page, served: Served):
    other, complaints = opened(browser)
    page.goto(f"{served.address}#panel=strip&edits=block:stage1.block1")
    other.goto(f"{served.address}#panel=strip&edits=block:stage2.block2")
    settled(page, re.compile("%"))
    settled(other, re.compile("%"))
    mine, theirs = accuracy(page), accuracy(other)
    page.reload()
    settled(page, mine)
    assert accuracy(other) == theirs
    other.context.close()
    assert complaints == []


def test_race_is_told_steps_plays_pauses_and_saves(page: Page, served: Served):
    page.goto(f"{served.address}#panel=race")
    page.locator("select[name=images]").select_option("own")
    page.get_by_label("Depth").select_option("8")
    page.get_by_label("Epochs").fill("300")
    page.get_by_label("Epochs").blur()
    expect(page.locator(".estimate")).to_contain_text("Takes")
    expect(page.locator(".estimate")).to_contain_text("24 images to learn from")
    page.get_by_role("button", name="Step", exact=True).click()
    expect(page.locator(".place")).to_contain_text("step 1 of 300")
    page.get_by_role("button", name="Play").click()
    expect(page.locator(".place")).to_contain_text(re.compile(r"step \d\d+ of 300"))
    page.get_by_role("button", name="Pause").click()
    expect(page.get_by_role("button", name="Play")).to_be_enabled()
    expect(page.locator("#panel-race .plot").first).to_have_attribute("aria-label", re.compile("^Training loss: resid"))
    for kind, start in (("SVG", "<svg"), ("CSV", "step,residual_loss")):
        with page.expect_download() as download:
            page.get_by_role("button", name=f"Save the training loss as {kind}").click()
        assert Path(download.value.path()).read_text().startswith(start)
    page.get_by_role("button", name="Reset").last.click()
    expect(page.locator(".place")).to_contain_text("step 0 of 300")


def test_server_that_stops_in_the_middle_of_a_race_is_said_and_found_again(browser: Browser, served: Served):
    page, _ = opened(browser)  # its console tells of refused connections
    page.goto(f"{served.address}#panel=race")
    page.locator("select[name=images]").select_option("own")
    page.get_by_label("Epochs").fill("1000")
    page.get_by_label("Epochs").blur()
    expect(page.locator(".estimate")).to_contain_text("24 images to learn from")
    page.get_by_role("button", name="Play").click()
    expect(page.locator(".place")).to_contain_text(re.compile(r"step [1-9]"))
    served.stop()
    expect(page.locator("#banner")).to_contain_text("does not answer")
    served.start()
    expect(page.locator("#banner")).to_be_hidden()
    expect(page.locator("#notice")).to_contain_text("started anew")
    expect(page.get_by_role("button", name="Play")).to_be_enabled()
    page.get_by_role("button", name="Play").click()
    expect(page.locator(".place")).to_contain_text(re.compile(r"step [1-9]"))
    page.context.close()


def test_landscape_is_measured_and_a_point_of_it_asked(page: Page, served: Served):
    page.goto(f"{served.address}#panel=landscape")
    expect(page.locator(".plane svg")).to_be_visible()
    expect(page.get_by_role("button", name="Measure", exact=True)).to_be_visible()  # it is done
    page.locator(".plane svg").click(position={"x": 90, "y": 60})
    expect(page.locator(".spot")).to_contain_text("accuracy there")
    assert float(page.locator("input[name=x]").input_value()) < 0 < float(page.locator("input[name=y]").input_value())
    far = page.locator(".spot .number").nth(1).inner_text()
    page.locator("input[name=x]").fill("0")
    page.locator("input[name=y]").fill("0")
    page.get_by_role("button", name="See the answers there").click()
    expect(page.locator(".spot")).to_contain_text("Every answer is the one at the weights")
    assert page.locator(".spot .number").nth(1).inner_text() != far
    with page.expect_download() as download:
        page.get_by_role("button", name="Save the plane as CSV").click()
    assert Path(download.value.path()).read_text().startswith("x,y,loss,accuracy\n-")
    with page.expect_download() as download:
        page.get_by_role("button", name="Save the plane as SVG").click()
    assert Path(download.value.path()).read_text().startswith("<svg")


def test_image_is_chosen_dropped_and_a_broken_one_is_said(page: Page, served: Served, tmp_path: Path):
    page.goto(f"{served.address}#panel=image")
    expect(page.locator(".cams canvas")).to_have_count(2)
    expect(page.get_by_role("heading", name="The answer forming")).to_be_visible()
    page.get_by_role("button", name=re.compile("^image 5,")).click()
    expect(page.locator("#panel-image")).to_contain_text("It is: b")
    page.get_by_label("Class").select_option("2")
    expect(page.locator(".cams canvas").last).to_have_attribute("aria-label", re.compile("for (the class|c )|c most"))
    good, broken = tmp_path / "good.png", tmp_path / "broken.png"
    Image.new("RGB", (50, 40), (180, 20, 60)).save(good)
    broken.write_bytes(good.read_bytes()[:50])
    page.locator("#image-file").set_input_files(good)
    expect(page.locator("#panel-image")).to_contain_text("Nobody said what it is")
    drop(page, broken)
    expect(page.locator("#panel-image .message")).to_contain_text("broken.png: the image cannot be read")
    with page.expect_download() as download:
        page.get_by_role("button", name="Save the forming answer as SVG").click()
    assert Path(download.value.path()).read_text().startswith("<svg")


def drop(page: Page, path: Path) -> None:
    """Drops a file as a hand does."""
    page.evaluate(
        """([bytes, name]) => {
            const data = new DataTransfer();
            data.items.add(new File([new Uint8Array(bytes)], name, {type: "image/png"}));
            document.querySelector(".drop").dispatchEvent(new DragEvent("drop", {dataTransfer: data, bubbles: true, cancelable: true}));
        }""",
        [list(path.read_bytes()), path.name],
    )


def test_card_is_run_to_its_reading_and_picture(page: Page, served: Served):
    page.goto(f"{served.address}#panel=cards")
    card = page.locator("#card-attention")
    card.get_by_role("button", name="Run").click()
    expect(card.locator(".verdict")).to_be_visible()
    expect(card.locator("img.figure")).to_be_visible()
    expect(card.get_by_role("button", name="Run again")).to_be_visible()
    with page.expect_download() as download:
        card.get_by_role("link", name=re.compile("as SVG")).click()
    assert Path(download.value.path()).read_text().startswith("<svg")
    card.locator("summary").click()
    expect(card.locator("pre")).to_contain_text("perform(EXPERIMENT, subject")


@pytest.mark.parametrize(
    ("width", "scheme"),
    [
        (1280, "light"),
        (390, "dark"),
        pytest.param(1280, "dark", marks=pytest.mark.slow),
        pytest.param(390, "light", marks=pytest.mark.slow),
    ],
)
def test_panels_fit_and_have_no_serious_fault(
    browser: Browser, served: Served, width: int, scheme: Scheme, tmp_path: Path
):
    page, complaints = opened(browser, width, scheme)
    for panel in PANELS:
        edits = "&edits=shortcut:stage2.block2=0;block:stage1.block2&block=stage1.block2" if panel == "strip" else ""
        page.goto(f"{served.address}#panel={panel}{edits}")
        page.reload()
        ready = {
            "strip": ".flips",
            "race": ".estimate strong",
            "landscape": ".plane svg",
            "image": ".cams",
            "cards": ".experiment",
        }
        expect(page.locator(ready.get(panel, "h2")).first).to_be_visible()
        assert page.evaluate("document.documentElement.scrollWidth <= innerWidth"), panel
        page.evaluate(AXE.read_text())
        found = page.evaluate("axe.run()")["violations"]
        serious = [f for f in found if f["impact"] in ("serious", "critical")]
        assert not serious, [(f["id"], n["html"], n["failureSummary"]) for f in serious for n in f["nodes"]]
        shot = page.screenshot(path=tmp_path / f"{panel}-{width}-{scheme}.png", full_page=True)
        assert np.ptp(np.asarray(Image.open(io.BytesIO(shot)).convert("L")).astype(int)) > 150, (
            panel
        )  # something is drawn
    page.context.close()
    assert complaints == []
