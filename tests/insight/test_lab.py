"""The lab's server: what it answers, and whom it refuses."""

import asyncio
import csv
import io
import json
import re
import struct
import time
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from starlette.requests import Request
from starlette.testclient import TestClient
from subjects import SMALL, small_subject, with_weights

from skipway.errors import InputError
from skipway.insight.edits import Edit
from skipway.insight.experiment import Experiment, Reading
from skipway.insight.experiments import EXPERIMENTS
from skipway.insight.lab import pictures, serve, stream
from skipway.insight.lab.asked import JSON_BYTES, TooLarge, body_of, edits_of, settings_of
from skipway.insight.lab.race_room import RaceRoom
from skipway.insight.lab.state import Lab
from skipway.insight.lab.tables import csv_of
from skipway.insight.probe import Probe
from skipway.insight.race_settings import RaceSettings
from skipway.insight.style import figure
from skipway.insight.subject import Subject
from skipway.run import Run
from skipway.spec import DataSpec

PORT = 8321
HOME = f"http://127.0.0.1:{PORT}"
OURS = {"origin": HOME}


@pytest.fixture(scope="module")
def subject() -> Subject:
    return small_subject(steps=25)


@pytest.fixture(scope="module")
def client(subject: Subject) -> Iterator[TestClient]:
    with TestClient(serve.make_app(subject, port=PORT, what="small"), base_url=HOME, headers=OURS) as made:
        yield made


def events(text: str) -> list[tuple[str, Any]]:
    found = re.findall(r"^event: (.*)\ndata: (.*)$", text, re.MULTILINE)
    return [(kind, json.loads(data)) for kind, data in found]


def result(response: Any, kind: str = "result") -> Any:
    assert response.status_code == 200, response.text
    told = events(response.text)
    assert told[-1][0] == kind, told[-1]
    return told[-1][1]


def picture(form: str = "PNG", size: tuple[int, int] = (40, 30)) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", size, (200, 30, 90)).save(buffer, form)
    return buffer.getvalue()


# --- the strip


def test_network_lists_units_and_stages(client: TestClient, subject: Subject):
    found = client.get("/api/network").json()
    assert [u["name"] for u in found["units"]] == [f"stage{i}.block{j}" for i in (1, 2) for j in (1, 2)]
    assert [u["stage"] for u in found["units"]] == [0, 0, 1, 1]
    assert found["images"] == len(subject.seen)
    assert found["labels"] == subject.seen.labels.tolist()


@pytest.mark.parametrize("edit", ["block:stage1.block2", "shortcut:stage2.block2=0", "branch:stage1.block1=0.3"])
def test_score_is_that_of_the_network_with_the_edit(client: TestClient, subject: Subject, edit: str):
    found = result(client.post("/api/score", json={"edits": [edit]}))
    seen = subject.seen
    with Probe(subject.network, seen.inputs[:1]) as probe, torch.no_grad():
        before, after = subject.network(seen.inputs), probe.run(seen.inputs, edits=edits_of([edit]))
    assert found["before"] == pytest.approx(float((before.argmax(1) == seen.labels).float().mean()))
    assert found["after"] == pytest.approx(float((after.argmax(1) == seen.labels).float().mean()))
    assert found["loss_after"] == pytest.approx(float(subject.loss(after, seen.labels)), rel=1e-4)
    assert found["num_flipped"] == int((before.argmax(1) != after.argmax(1)).sum())
    for k, (count, _, right) in enumerate(found["classes"]):
        mine = seen.labels == k
        assert count == int(mine.sum())
        assert right == pytest.approx(float((after.argmax(1) == k)[mine].float().mean()))
    for flip in found["flipped"]:
        i = flip["image"]
        answers = (subject.classes[int(logits[i].argmax())] for logits in (before, after))
        assert (flip["before"], flip["after"]) == tuple(answers)
        assert flip["truth"] == subject.classes[int(seen.labels[i])]
        assert (flip["turned"] == "wrong") == (flip["before"] == flip["truth"])


def test_score_tells_progress_and_needs_no_memory_of_others(client: TestClient):
    first = client.post("/api/score", json={"edits": ["block:stage2.block2"]})
    client.post("/api/score", json={"edits": ["block:stage1.block1"]})  # another tab
    again = client.post("/api/score", json={"edits": ["block:stage2.block2"]})
    assert result(first) == result(again)
    assert "progress" in {kind for kind, _ in events(first.text)}


@pytest.mark.parametrize(
    ("edits", "said"),
    [
        (["block:stage9.block1"], "unknown block 'stage9.block1'"),
        (["swap:stage1.block1,stage2.block1"], "cannot change places"),
    ],
)
def test_score_refuses_edits_that_cannot_be(client: TestClient, edits: list[str], said: str):
    assert said in result(client.post("/api/score", json={"edits": edits}), "error")


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ({"edits": ["branch:stage1.block1=2"]}, "from 0 to 1"),
        ({"edits": ["__import__('os')"]}, "must name what it changes"),
        ({"edits": ["open:/etc/passwd"]}, "unknown edit"),
        ({"edits": "block:stage1.block1"}, "a list of texts"),
        ({"edits": ["block:x"] * 3000}, "more than the 2,048"),
        ({"edit": []}, "unknown field 'edit'"),
        ([], "JSON object"),
    ],
)
def test_score_refuses_bodies_that_are_none(client: TestClient, body: Any, said: str):
    answer = client.post("/api/score", json=body)
    assert answer.status_code == 422
    assert said in answer.json()["error"]


def test_bodies_beyond_their_limits_are_refused(client: TestClient):
    answer = client.post("/api/score", content=b"[" * (JSON_BYTES + 1))
    assert answer.status_code == 413
    assert "256 KiB" in answer.json()["error"]
    assert client.post("/api/score", content=b"[" * 100_000).json() == {"error": "the request is no JSON"}

    def endless() -> Iterator[bytes]:
        for _ in range(pictures.UPLOAD_BYTES // (1 << 20) + 1):
            yield bytes(1 << 20)

    answer = client.post("/api/image", content=endless())  # which tells no length before
    assert answer.status_code == 413
    assert "16 MiB" in answer.json()["error"]


def test_bodies_are_read_no_further_than_their_limit():
    read = 0

    async def receive() -> dict[str, Any]:
        nonlocal read
        read += 1
        return {"type": "http.request", "body": bytes(100), "more_body": read < 1000}

    request = Request({"type": "http", "method": "POST", "headers": []}, receive)
    with pytest.raises(TooLarge):
        asyncio.run(body_of(request, 1000))
    assert read == 11


def test_measures_are_those_of_the_probe(client: TestClient, subject: Subject):
    found = client.get("/api/measures/passing").json()
    images = subject.train.first(64)
    with Probe(subject.network, images.inputs[:1]) as probe:
        slopes = probe.gradients(images.inputs, images.labels)
        parts = probe.activations(images.inputs)
    for name, value in found["gradient"].items():
        assert value == pytest.approx(float(slopes[f"{name}.output"].norm()), rel=1e-4)
    f, s = (parts[f"stage2.block2.{part}"].detach().var(correction=0) for part in ("branch", "shortcut"))
    assert found["share"]["stage2.block2"] == pytest.approx(float(f / (f + s)), rel=1e-4)
    costs = client.get("/api/measures/costs").json()
    block = subject.network.get_submodule("stages.1.1")
    assert costs["parameters"]["stage2.block2"] == sum(p.numel() for p in block.parameters())
    assert costs["flops"]["stage2.block2"] == 2 * 2 * 16 * 16 * 9 * 16  # two 3x3 of 16 channels at 4x4


def test_lesions_are_cuts_of_one_block(client: TestClient):
    answer = client.post("/api/measures/lesion", json={})
    whole = result(answer)
    for name in ("stage1.block2", "stage2.block1"):
        cut = result(client.post("/api/score", json={"edits": [f"block:{name}"]}))
        assert whole[name] == pytest.approx(cut["before"] - cut["after"])
    assert [list(part) for kind, part in events(answer.text) if kind == "partial"] == [[n] for n in whole]


def test_other_weights_give_other_answers(client: TestClient, subject: Subject):
    state = {k: torch.randn_like(v) if v.is_floating_point() else v for k, v in subject.network.state_dict().items()}
    state = {k: v.abs() if k.endswith("running_var") else v for k, v in state.items()}
    app = serve.make_app(with_weights(subject, state), port=PORT)
    with TestClient(app, base_url=HOME, headers=OURS) as other:
        for path, body in (("/api/score", {"edits": ["block:stage1.block2"]}), ("/api/explain", {"seen": 2})):
            assert result(other.post(path, json=body)) != result(client.post(path, json=body))
        for path in ("/api/measures/passing",):
            assert other.get(path).json() != client.get(path).json()


def test_lab_leaves_the_subject_as_it_was():
    subject = small_subject(steps=2)
    before = {k: v.clone() for k, v in subject.network.state_dict().items()}
    lab = Lab(subject)
    assert not any("forward" in vars(m) for m in subject.network.modules())
    with Probe(subject.network, subject.seen.inputs[:1]) as probe:  # experiments may probe while the lab is open
        probe.run(subject.seen.inputs[:1], edits=[Edit("block", "stage1.block2")])
    lab.close()
    assert not any("forward" in vars(m) for m in lab.open.network.modules())
    for key, value in subject.network.state_dict().items():
        assert torch.equal(value, before[key])
    assert all(p.grad is None for p in subject.network.parameters())


def test_several_labels_an_image_are_scored_and_shown(subject: Subject):
    labels = torch.nn.functional.one_hot(subject.seen.labels, 3).to(torch.uint8)
    labels[0] = torch.tensor([1, 1, 0])
    seen = replace(subject.seen, labels=labels)
    model = replace(subject.model, thresholds=(0.5, 0.5, 0.5))
    several = replace(subject, model=model, seen=seen, train=seen)
    with TestClient(serve.make_app(several, port=PORT), base_url=HOME, headers=OURS) as client:
        assert client.get("/api/network").json()["several"]
        found = result(client.post("/api/score", json={"edits": ["block:stage1.block1"]}))
        with Probe(subject.network, seen.inputs[:1]) as probe, torch.no_grad():
            old, new = (probe.run(seen.inputs, edits=edits_of(e)) >= 0 for e in ([], ["block:stage1.block1"]))
        assert found["after"] == pytest.approx(float((new == labels.bool()).float().mean()))
        assert found["num_flipped"] == int((old != new).any(1).sum()) > 0
        assert [n for n, *_ in found["classes"]] == labels.sum(0).tolist()
        assert client.get("/api/measures/passing").status_code == 200
        assert result(client.post("/api/explain", json={"seen": 0}))["truth"] == [0, 1]


# --- the landscape


def test_point_of_the_landscape_has_the_loss_there(client: TestClient, subject: Subject):
    settings = {"images": 12, "side": 3, "points": 3}
    origin = result(client.post("/api/landscape/at", json={"settings": settings, "x": 0, "y": 0}))
    images = subject.train.first(12)
    with torch.no_grad():
        loss = float(subject.loss(subject.network(images.inputs), images.labels))
    assert origin["spot"]["loss"] == pytest.approx(loss, rel=1e-5)
    assert origin["spot"]["flips"] == []
    away = result(client.post("/api/landscape/at", json={"settings": settings, "x": 0.7, "y": -1}))
    again = result(client.post("/api/landscape/at", json={"settings": settings | {"seed": 1}, "x": 0.7, "y": -1}))
    assert origin["spot"]["loss"] != away["spot"]["loss"] != again["spot"]["loss"]
    assert client.get("/api/train/0.png").status_code == 200
    assert client.get("/api/train/24.png").status_code == 422
    for body in ({"x": "0", "y": 0}, {"x": 1e9, "y": 0}, {"x": 0}, {"x": 0, "y": 0, "settings": {"plane": "/etc"}}):
        assert client.post("/api/landscape/at", json=body).status_code == 422, body


# --- images


def test_thumbnails_have_the_images_pixels(client: TestClient, subject: Subject):
    answer = client.get("/api/seen/3.png")
    shown = torch.from_numpy(np.array(Image.open(io.BytesIO(answer.content)))).permute(2, 0, 1)
    assert torch.equal(shown, subject.seen.pixels[3])
    assert client.get("/api/seen/24.png").status_code == 422
    assert client.get("/api/seen/-1.png").status_code == 422
    nowhere = client.get("/api/seen/x.png")
    assert nowhere.status_code == 404
    assert nowhere.json() == {"error": "there is nothing here"}


def test_thumbnail_of_deep_pixels_spans_grey():
    deep = torch.linspace(-5, 5, 16).view(1, 4, 4)
    shown = Image.open(io.BytesIO(pictures.png(deep)))
    assert shown.getextrema() == (0, 255)


@pytest.mark.parametrize("form", ["PNG", "JPEG", "GIF", "WEBP", "BMP"])
def test_upload_is_read_and_explained(client: TestClient, form: str):
    name = result(client.post("/api/image", content=picture(form)))
    assert client.get(f"/api/image/{name['upload']}.png").headers["content-type"] == "image/png"
    if form == "PNG":
        found = result(client.post("/api/explain", json=name))
        assert found["truth"] == []
        assert sum(found["probabilities"]) == pytest.approx(1, abs=1e-5)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "the image is empty"),
        (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "no image of a format"),
        (b"II*\x00" + bytes(100), "no image of a format"),
        (picture()[:60], "cannot be read"),
        (b"\xff\xd8\xff" + bytes(range(256)) * 8, "cannot be read"),
    ],
)
def test_upload_that_is_no_image_is_told_in_a_sentence(client: TestClient, content: bytes, said: str):
    assert said in result(client.post("/api/image", content=content), "error")


def test_upload_of_too_many_pixels_is_refused_before_it_is_decoded(client: TestClient):
    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", 60_000, 60_000, 8, 2, 0, 0, 0))
    bomb = b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(bytes(10_000))) + chunk(b"IEND", b"")
    start = time.monotonic()
    assert "pixels" in result(client.post("/api/image", content=bomb), "error")
    assert time.monotonic() - start < 5


def test_only_the_last_uploads_are_kept(subject: Subject):
    uploads = pictures.Uploads(subject.model.preprocess)
    first = uploads.add(picture())
    uploads.pixels(first)
    for _ in range(pictures.KEPT):
        uploads._kept[str(len(uploads._kept))] = torch.zeros(3, 8, 8)
    uploads.add(picture())
    with pytest.raises(InputError, match="drop it again"):
        uploads.pixels(first)


def test_forming_ends_at_the_networks_answer(client: TestClient, subject: Subject):
    found = result(client.post("/api/explain", json={"seen": 4}))
    with torch.no_grad():
        answer = subject.network(subject.seen.inputs[4:5]).softmax(1)[0].tolist()
    assert found["forming"]["probabilities"][-1] == pytest.approx(answer, abs=1e-6)
    assert found["probabilities"] == pytest.approx(answer, abs=1e-6)
    with Probe(subject.network, subject.seen.inputs[:1]) as probe, torch.no_grad():
        cut = [Edit("block", u.name) for u in probe.units[1:] if not u.opens]
        first = probe.run(subject.seen.inputs[4:5], edits=cut).softmax(1)[0].tolist()
    assert found["forming"]["probabilities"][1] == pytest.approx(first, abs=1e-6)
    assert found["truth"] == [int(subject.seen.labels[4])]


def test_explain_takes_a_class_and_refuses_what_is_not_there(client: TestClient):
    assert result(client.post("/api/explain", json={"seen": 1, "label": 2}))["maps"]["label"] == 2
    for body in ({"seen": 99}, {"seen": "1"}, {"seen": True}, {"upload": "../../etc"}, {"upload": 1}, {"label": 7}):
        assert client.post("/api/explain", json=body).status_code == 422, body


def test_plain_networks_are_shown_without_skips():
    plain = small_subject(replace(SMALL, shortcut="none"), steps=2)
    with TestClient(serve.make_app(plain, port=PORT), base_url=HOME, headers=OURS) as client:
        assert client.get("/api/network").json()["plain"]
        assert client.get("/api/measures/passing").json()["share"] == {}
        assert len(result(client.post("/api/explain", json={"seen": 0}))["forming"]["probabilities"]) == 5
        said = result(client.post("/api/score", json={"edits": ["shortcut:stage1.block2=0"]}), "error")
        assert "no shortcut to change" in said
        assert result(client.post("/api/measures/lesion", json={}))["stage2.block1"] is None


# --- races


def test_race_steps_are_told_from_the_start_to_whoever_looks(client: TestClient):
    settings = {"depth": 8, "width": 4, "epochs": 1, "batch_size": 8}
    made = result(client.post("/api/race", json={"settings": settings, "images": "own"}))
    assert made["total_steps"] == 3
    assert made["seconds"] > 0
    name = made["race"]
    assert client.post(f"/api/race/{name}/step").json()["step"] == 1
    client.post(f"/api/race/{name}/play")
    found: dict[str, Any] = {"steps": [], "scores": []}
    with client.stream("GET", f"/api/race/{name}/stream") as stream:
        text = ""
        for part in stream.iter_text():
            text += part
            if '"done": true' in text:
                break
    for kind, value in events(text):
        if kind in found:
            found[kind] += value
    assert [step["step"] for step in found["steps"]] == [1, 2, 3]
    loss, right, gradients = found["steps"][0]["laps"]["plain"]
    assert loss > 0
    assert 0 <= right <= 1
    assert len(gradients) == len(made["layers"])
    assert [at for at, _ in found["scores"]] == [0, 3]
    assert client.post(f"/api/race/{name}/step").status_code == 422  # it is over
    assert client.post(f"/api/race/{name}/reset").json()["step"] == 0


def test_race_is_that_of_python(client: TestClient, subject: Subject):
    from skipway.insight.race import race_of

    settings = RaceSettings(depth=8, width=4, epochs=1, batch_size=8)
    race = race_of(settings, subject.train, subject.seen)
    made = result(client.post("/api/race", json={"settings": settings.__dict__, "images": "own"}))
    client.post(f"/api/race/{made['race']}/step")
    with client.stream("GET", f"/api/race/{made['race']}/stream") as stream:
        first = next(events(part) for part in stream.iter_text() if "event: steps" in part)
    mine = race.step()
    assert first[0][1][0]["laps"]["residual"][0] == pytest.approx(mine.networks["residual"].loss, rel=1e-3)


@pytest.mark.parametrize(
    ("settings", "images", "said"),
    [
        ({"depth": 9}, "own", "6n + 2"),
        ({"depth": "20"}, "own", "a whole number"),
        ({"lr": -1}, "own", "race.lr"),
        ({"colour": "red"}, "own", "unknown setting"),
        ({"init": "fixup"}, "own", "norm"),
        ({}, "/etc/passwd", "unknown images"),
        ([], "own", "an object of settings"),
    ],
)
def test_race_refuses_settings_that_cannot_be(client: TestClient, settings: Any, images: str, said: str):
    assert said in result(client.post("/api/race", json={"settings": settings, "images": images}), "error")


def test_race_that_is_gone_is_said(client: TestClient):
    assert "start it again" in client.post("/api/race/none/play").json()["error"]
    assert "start it again" in client.get("/api/race/none/stream").json()["error"]


def test_server_that_ends_stops_races_and_experiments(subject: Subject):
    app = serve.make_app(subject, port=PORT)
    with TestClient(app, base_url=HOME, headers=OURS) as client:
        settings = {"depth": 8, "width": 4, "epochs": 1000, "batch_size": 8}
        made = result(client.post("/api/race", json={"settings": settings, "images": "own"}))
        client.post(f"/api/race/{made['race']}/play")
        deadline = time.monotonic() + 20
        while client.post(f"/api/race/{made['race']}/play").json()["step"] < 1 and time.monotonic() < deadline:
            time.sleep(0.05)
    assert not [thread for thread in stream._threads if thread.is_alive()]


def test_race_that_nobody_watches_pauses(subject: Subject, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("skipway.insight.lab.race_room.ALONE_S", 0.2)
    settings = RaceSettings(depth=8, width=4, epochs=1000, batch_size=8)
    _, running, _ = RaceRoom(Lab(subject)).start(settings, "own")
    running.play()
    deadline = time.monotonic() + 20
    while running.playing and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not running.playing
    assert 0 < running.race.taken < running.race.total_steps


# --- experiments


@dataclass(frozen=True)
class CountSettings:
    """How far."""

    to: int = 3
    pause_s: float = 0.0


@dataclass(frozen=True)
class Counted:
    """How far it came."""

    values: tuple[float, ...]


def _count(subject: Subject, settings: CountSettings, watch: Any) -> Counted:
    values: list[float] = []
    for i in range(settings.to):
        if settings.to == 13:
            raise InputError("thirteen cannot be counted to")
        values.append(float(subject.seen.inputs[i].sum()))
        time.sleep(settings.pause_s)
        watch.partial(Counted(tuple(values)))
        watch.tell((i + 1) / settings.to)
    return Counted(tuple(values))


def _draw(counted: Counted):
    made, (axes,) = figure()
    axes.plot(counted.values)
    return made


COUNT = Experiment(
    name="count",
    title="Counting",
    paper="Nobody 2026",
    claim="It counts.",
    settings=CountSettings(),
    result=Counted,
    run=_count,
    draw=_draw,
    read=lambda r: Reading((f"It came to {len(r.values)}.",), "agrees" if len(r.values) == 3 else "disagrees"),
    fit=lambda pace, seconds: CountSettings(3) if seconds > 30 else None,
)


@pytest.fixture
def counting(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("SKIPWAY_CACHE", str(tmp_path))
    monkeypatch.setitem(EXPERIMENTS, "count", COUNT)


@pytest.mark.usefixtures("counting")
def test_experiment_runs_to_its_reading_picture_and_tables(client: TestClient, subject: Subject):
    cards = {card["name"]: card for card in client.get("/api/experiments").json()}
    assert cards["count"]["settings"] == {"to": 3, "pause_s": 0.0}
    assert cards["count"]["seconds"] == 60
    job = client.post("/api/experiments/count", json={"settings": cards["count"]["settings"]}).json()["job"]
    told = events(client.get(f"/api/jobs/stream?jobs={job}").text)
    assert told[-1][0] == "result"
    last = [value for kind, value in told if kind == "partial"][-1]
    assert last["reading"] == {"sentences": ["It came to 3."], "verdict": "agrees"}
    svg = client.get(f"/api/jobs/{job}/result.svg")
    assert svg.text.startswith("<svg")
    assert svg.headers["content-security-policy"].startswith("default-src 'none'")
    values = client.get(f"/api/jobs/{job}/result.json").json()["values"]
    assert values == pytest.approx([float(x.sum()) for x in subject.seen.inputs[:3]])
    rows = list(csv.reader(io.StringIO(client.get(f"/api/jobs/{job}/result.csv").text)))
    assert rows[1] == ["values", "0", str(values[0])]
    assert client.get(f"/api/jobs/{job}/result.pkl").status_code == 422


@pytest.mark.usefixtures("counting")
def test_experiment_is_cancelled_and_what_it_has_stands(client: TestClient):
    job = client.post("/api/experiments/count", json={"settings": {"to": 20, "pause_s": 0.1}}).json()["job"]
    deadline = time.monotonic() + 20
    while client.get(f"/api/jobs/{job}/result.json").status_code != 200 and time.monotonic() < deadline:
        time.sleep(0.05)
    client.post(f"/api/jobs/{job}/cancel")
    told = events(client.get(f"/api/jobs/stream?jobs={job}").text)
    assert told[-1][0] == "cancelled"
    assert 0 < len(client.get(f"/api/jobs/{job}/result.json").json()["values"]) < 20


@pytest.mark.usefixtures("counting")
def test_experiment_that_is_refused_says_so(client: TestClient):
    job = client.post("/api/experiments/count", json={"settings": {"to": 13}}).json()["job"]
    told = events(client.get(f"/api/jobs/stream?jobs={job}").text)
    assert told[-1] == ("error", {"job": job, "state": "error", "share": 0.0, "error": "thirteen cannot be counted to"})
    assert client.post("/api/experiments/nothing", json={}).json()["error"].startswith("unknown experiment 'nothing'")
    for settings in ({"to": "many"}, {"of": 1}, {"to": None}, "all"):
        assert client.post("/api/experiments/count", json={"settings": settings}).status_code == 422, settings
    assert "run it again" in client.get("/api/jobs/stream?jobs=none").json()["error"]


def test_tables_hold_no_formulas():
    rows = list(csv.reader(io.StringIO(csv_of({"name": "=HYPERLINK(1)", "x": ((1.0, float("nan")),)}))))
    assert rows == [["field", "place", "value"], ["name", "", "'=HYPERLINK(1)"], ["x", "0.0", "1.0"], ["x", "0.1", ""]]


def test_settings_keep_nested_defaults():
    made = settings_of({"depth": 14}, RaceSettings(width=4), "race")
    assert made == RaceSettings(depth=14, width=4)


# --- who is answered


@pytest.mark.parametrize(
    "headers",
    [
        {"host": "evil.example"},
        {"host": f"evil.example:{PORT}"},
        {"host": f"127.0.0.1.evil.example:{PORT}"},
        {"host": "127.0.0.1"},
        {"host": f"127.0.0.1:{PORT + 1}"},
        {"origin": "http://evil.example"},
        {"origin": "null"},
        {"origin": f"https://127.0.0.1:{PORT}"},
        {"origin": f"http://localhost:{PORT}"},  # of another name than the host's
        {"sec-fetch-site": "cross-site"},
        {"sec-fetch-site": "same-site"},
    ],
)
def test_others_are_refused(client: TestClient, headers: dict[str, str]):
    for answer in (client.get("/api/network", headers=headers), client.post("/api/score", json={}, headers=headers)):
        assert answer.status_code == 403
        assert "images" not in answer.text
        assert "access-control-allow-origin" not in answer.headers


@pytest.mark.parametrize("host", ["evil.example", f"evil.example:{PORT}", "127.0.0.1", f"0.0.0.0:{PORT}"])
def test_rebound_names_are_refused_though_their_origin_agrees(subject: Subject, host: str):
    with TestClient(serve.make_app(subject, port=PORT), base_url=HOME) as plain:
        headers = {"host": host, "origin": f"http://{host}", "sec-fetch-site": "same-origin"}
        assert plain.get("/api/network", headers={"host": host}).status_code == 403
        assert plain.get("/api/network", headers=headers).status_code == 403
        assert plain.post("/api/score", json={}, headers=headers).status_code == 403


def test_requests_that_compute_must_name_their_origin(subject: Subject):
    with TestClient(serve.make_app(subject, port=PORT), base_url=HOME) as plain:
        assert plain.get("/api/network").status_code == 200
        assert plain.post("/api/score", json={}).status_code == 403
        assert plain.options("/api/score", headers={"origin": "http://evil.example"}).status_code == 403
    home = f"http://localhost:{PORT}"
    with TestClient(serve.make_app(subject, port=PORT), base_url=home, headers={"origin": home}) as other:
        assert other.post("/api/score", json={}).status_code == 200


def test_answers_carry_a_strict_policy(client: TestClient):
    for path in ("/", "/main.js", "/api/network", "/nothing", "/api/seen/99.png"):
        headers = client.get(path).headers
        assert "default-src 'self'" in headers["content-security-policy"], path
        assert "unsafe" not in headers["content-security-policy"]
        assert headers["x-content-type-options"] == "nosniff"
        assert headers["referrer-policy"] == "no-referrer"


@pytest.mark.parametrize(
    "path",
    ["/../serve.py", "/..%2fserve.py", "/%2e%2e/%2e%2e/cli.py", "/vendor/../../../cli.py", "//etc/passwd", "/docs"],
)
def test_no_file_but_the_pages_is_served(client: TestClient, path: str):
    answer = client.get(path)
    assert answer.status_code in (404, 405), answer.text
    assert "import" not in answer.text


def test_page_names_nothing_outside_and_no_inline_script():
    for path in serve.WEB.rglob("*"):
        if path.suffix in (".html", ".js", ".css", ".svg") and "vendor" not in path.parts:
            text = path.read_text().replace("http://www.w3.org/2000/svg", "")
            assert not re.search(r"https?://|//cdn", text), path.name
            assert not re.search(r"\b(eval|innerHTML|outerHTML|insertAdjacentHTML)\b", text), path.name
    assert not re.search(r"<script(?![^>]* src=)|\son\w+=|style=", (serve.WEB / "index.html").read_text())
    assert "MIT" in (serve.WEB / "vendor/uPlot.LICENSE").read_text()


# --- starting


def test_run_whose_data_are_missing_asks_for_them(tmp_path: Path, subject: Subject):
    model = subject.model
    spec = replace(model.spec, data=DataSpec(path=str(tmp_path / "gone")))
    run = Run.create(tmp_path / "run", spec, model.classes, model.preprocess)
    run.write_weights(*run.weights_of(model.network.state_dict(), {}))
    with pytest.raises(InputError, match=r"the run's own data.*gone.*Name the data"):
        serve.serve(run, open_browser=False)
    with pytest.raises(InputError, match="neither a run folder"):
        serve.serve(tmp_path / "nowhere", open_browser=False)


def test_port_that_is_taken_is_said():
    with serve._listening(0) as first:
        assert first.getsockname()[0] == "127.0.0.1"
        first.listen()
        with pytest.raises(InputError, match="choose another"):
            serve._listening(first.getsockname()[1])
    with pytest.raises(InputError, match="from 0 to 65535"):
        serve._listening(70_000)


def test_lines_of_python_do_what_the_panel_shows(client: TestClient, subject: Subject, capsys: pytest.CaptureFixture):
    found = result(client.post("/api/score", json={"edits": ["block:stage1.block2"]}))
    lines = found["lines"].replace("subject = subject_of('small')", "")
    exec(compile(lines, "lines", "exec"), {"subject": subject})
    told = capsys.readouterr().out
    assert told == f"accuracy {found['before']:.2%}\naccuracy {found['after']:.2%}\n"
    found = result(client.post("/api/explain", json={"seen": 3}))
    exec(compile(found["lines"].replace("subject = subject_of('small')", ""), "lines", "exec"), {"subject": subject})
    assert f"{found['probabilities'][found['maps']['label']]:.1%}" in capsys.readouterr().out
