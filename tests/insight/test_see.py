"""`skipway see`: what fits a budget, what is written, what is kept."""

import json
import re
import shutil
import time
from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch
from safetensors.torch import save
from subjects import small_subject

from skipway.errors import InputError
from skipway.insight import see as see_module
from skipway.insight import style
from skipway.insight.experiment import Experiment, Pace, Reading, perform
from skipway.insight.plain import from_plain, to_plain
from skipway.insight.see import plan, see
from skipway.insight.subject import subject_of
from skipway.insight.watch import QUIET, Cancelled, Watch
from skipway.nn.weight_files import read_safetensors


@dataclass(frozen=True)
class Point:
    at: int
    value: float


@dataclass(frozen=True)
class Settings:
    count: int = 3


@dataclass(frozen=True)
class Result:
    points: tuple[Point, ...]
    names: dict[str, float]
    note: str | None = None


def run(subject, settings=Settings(), *, watch=QUIET):
    points = []
    for i in range(settings.count):
        watch.tell((i + 1) / settings.count)
        points.append(Point(i, subject.network(subject.seen.inputs[:1]).sum().item()))
    return Result(tuple(points), {"<b>&": float("nan")})


def draw(result):
    made, (axes,) = style.figure()
    axes.plot([p.at for p in result.points], [p.value for p in result.points])
    return made


def experiment(name: str, *, needs_s: float = 0.0) -> Experiment:
    return Experiment(
        name=name,
        title=f"The {name}",
        paper="Somebody 2020",
        claim="1 < 2.",
        settings=Settings(),
        result=Result,
        run=run,
        draw=draw,
        read=lambda result: Reading((f"<script>{len(result.points)} points",), "agrees"),
        fit=lambda pace, seconds: Settings(2) if seconds >= needs_s else None,
    )


@pytest.fixture
def table(monkeypatch):
    found = {name: experiment(name) for name in ("one", "two")}
    for module in ("see", "experiments"):
        monkeypatch.setattr(f"skipway.insight.{module}.EXPERIMENTS", found)
    return found


def test_plain_data_come_back():
    result = Result((Point(1, 0.5),), {"a": 1.0}, None)
    assert from_plain(json.loads(json.dumps(to_plain(result))), Result) == result
    with pytest.raises(TypeError):
        from_plain({"points": []}, Result)
    with pytest.raises(ValueError):
        from_plain({"points": [{"at": "x", "value": 1}], "names": {}, "note": None}, Result)


def test_results_are_kept_by_weights_images_and_settings(tmp_path, monkeypatch):
    monkeypatch.setenv("SKIPWAY_CACHE", str(tmp_path))
    subject, asked, runs = small_subject(), experiment("kept"), []

    def counting(subject, settings, *, watch):
        runs.append(1)
        return run(subject, settings, watch=watch)

    counted = replace(asked, run=counting)
    first = perform(counted, subject)
    assert perform(counted, subject).points == first.points
    assert len(runs) == 1
    perform(counted, subject, Settings(1))
    perform(counted, small_subject(seed=1))
    perform(counted, replace(subject, seen=subject.seen.first(3)))
    assert len(runs) == 4
    for path in tmp_path.rglob("*.json"):
        path.write_text("{")
    assert perform(counted, subject).points == first.points
    assert len(runs) == 5


def test_what_time_cut_short_is_not_kept(tmp_path, monkeypatch):
    monkeypatch.setenv("SKIPWAY_CACHE", str(tmp_path))
    perform(experiment("late"), small_subject(), watch=Watch(deadline=0.0))
    assert not list(tmp_path.rglob("*.json"))


def test_cancelled_work_stops():
    with pytest.raises(Cancelled):
        perform(experiment("never"), small_subject(seed=5), watch=Watch(cancelled=lambda: True))


def test_budget_is_shared_over_what_fits():
    many = [experiment("a"), experiment("b", needs_s=40), experiment("c", needs_s=1e9), experiment("d", needs_s=20)]
    planned = plan(Pace(small_subject()), many, 100.0)
    assert [e.name for e, _ in planned.first] == ["a", "d"]
    assert [e.name for e in planned.later] == ["b"]
    assert list(planned.left_out) == ["c"]


def test_what_time_runs_out_for_is_told(tmp_path, table, monkeypatch):
    table["one"] = replace(table["one"], fit=lambda pace, seconds: Settings(1) if seconds > 1000 else None)

    def slow(subject, settings, *, watch):
        time.sleep(1)
        return run(subject, settings, watch=watch)

    table["two"] = replace(table["two"], run=slow)
    monkeypatch.setenv("SKIPWAY_CACHE", str(tmp_path / "cache"))
    enough, short = (see("resnet20", out=tmp_path / "a", budget_s=seconds) for seconds in (1600, 1000.01))
    assert [f.experiment.name for f in enough.findings] == ["one", "two"]
    assert [f.experiment.name for f in short.findings] == ["two"]
    assert "more time" in short.left_out["one"]
    assert "more time" in short.page.read_text()


def test_see_writes_one_page_that_needs_no_network(tmp_path, table, monkeypatch):
    monkeypatch.setenv("SKIPWAY_CACHE", str(tmp_path / "cache"))
    found = see("resnet20", out=tmp_path / "out")
    assert [f.experiment.name for f in found.findings] == ["one", "two"]
    text = found.page.read_text()
    assert not re.search(r'(src|href)="(?!data:|#)', text)
    assert "<script" not in text
    assert "&lt;script&gt;2 points" in text
    assert text.count("data:image/svg+xml") == 2
    for name in table:
        record = json.loads((tmp_path / "out" / f"{name}.json").read_text())
        assert record["settings"] == {"count": 2}
        assert record["result"]["names"] == {"<b>&": None}
        assert (tmp_path / "out" / f"{name}.svg").read_text().startswith("<svg")
        assert (tmp_path / "out" / f"{name}.png").read_bytes()[:4] == b"\x89PNG"
    assert found._repr_html_() in text


def test_see_of_a_run_with_random_weights_changes(trained, tmp_path, table, monkeypatch):
    monkeypatch.setenv("SKIPWAY_CACHE", str(tmp_path / "cache"))
    folder = tmp_path / "run"
    shutil.copytree(trained.folder, folder)
    found = see(folder, only=["one"])
    assert found.page == folder / "see" / "index.html"
    state, metadata = read_safetensors(folder / "weights.safetensors")
    state = {k: torch.rand_like(v) if v.is_floating_point() else v for k, v in state.items()}
    (folder / "weights.safetensors").write_bytes(save(state, metadata))
    assert see(folder, only=["one"]).findings[0].result != found.findings[0].result


@pytest.mark.parametrize(
    ("what", "options", "message"),
    [
        ("nothing-there", {}, "neither a run .* nor a network"),
        ("resnet20", {"only": ["lesoin"]}, "unknown experiment 'lesoin'"),
        ("resnet20", {"budget_s": 0}, "budget must be more than 0"),
        ("resnet20", {"data": "no-such-data"}, "no-such-data"),
    ],
)
def test_see_refuses_in_one_sentence(what, options, message, table):
    with pytest.raises(InputError, match=message):
        see(what, **options)


def test_report_that_cannot_be_written_says_where(tmp_path, table):
    (tmp_path / "file").write_text("mine")
    with pytest.raises(InputError, match="--out"):
        see("resnet20", out=tmp_path / "file")
    assert (tmp_path / "file").read_text() == "mine"


def test_every_name_of_the_table_is_its_experiments():
    from skipway.insight.experiments import EXPERIMENTS

    assert all(name == e.name for name, e in EXPERIMENTS.items())
    assert see_module.BUDGET_S == 120


@pytest.mark.browser
def test_page_shows_every_picture_without_a_network(tmp_path, table, monkeypatch):
    chromium = shutil.which("chromium") or shutil.which("chromium-browser")
    sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    if chromium is None:
        pytest.skip("no chromium here: apt-get install chromium")
    monkeypatch.setenv("SKIPWAY_CACHE", str(tmp_path / "cache"))
    found = see("resnet20", out=tmp_path)
    with sync_api.sync_playwright() as started:
        browser = started.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        page = browser.new_context(offline=True, viewport={"width": 390, "height": 800}).new_page()
        complaints, asked = [], []
        page.on("console", lambda message: complaints.append(message.text))
        page.on("request", lambda request: asked.append(request.url))
        page.goto(found.page.as_uri())
        drawn = page.eval_on_selector_all("img", "all => all.map(i => i.complete && i.naturalWidth > 0)")
        wide = page.evaluate("document.documentElement.scrollWidth")
        browser.close()
    assert drawn == [True, True]
    assert complaints == []
    assert all(url.startswith(("file:", "data:")) for url in asked)
    assert wide == 390


def test_an_untrained_network_answers_several_labels_at_one_half(tmp_path):
    labels = (np.arange(60).reshape(20, 3) % 7 < 3).astype(np.uint8)
    np.savez(tmp_path / "several.npz", images=np.zeros((20, 8, 8), np.uint8), labels=labels)
    subject = subject_of("resnet20", str(tmp_path / "several.npz"))
    assert subject.model.thresholds == (0.5, 0.5, 0.5)
    logits = torch.where(subject.seen.labels.bool(), 1.0, -1.0)
    assert subject.right(logits, subject.seen.labels).mean() == 1.0


def test_names_that_the_font_lacks_are_drawn_without_a_word():
    made, (axes,) = style.figure()
    axes.set_title("\u65e5\u672c")
    assert "\u65e5\u672c" in style.svg(made)
