"""The step and its tricks: each does what it says, and nothing where it is off."""

import json
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import make_photos
from test_loop import Killed, cut_at, quiet, same, tiny, weights  # pyrefly: ignore[missing-import]
from torch import Tensor

import skipway
from skipway.compose import compose
from skipway.data_spec import AugmentSpec
from skipway.errors import InputError
from skipway.network_spec import NetworkSpec, StageSpec
from skipway.nn import kernels
from skipway.nn.describe import describe
from skipway.recipes import RECIPES
from skipway.speed_spec import SpeedSpec
from skipway.training import loop
from skipway.training.assemble import assemble
from skipway.training.checkpoint import Position
from skipway.training.engine import FILLS, ITSELF, Engine, choose_engine, engine_of, fitting
from skipway.training.guard import BadNumbers, Guard
from skipway.training.hard import UNSEEN, LastLosses, narrower
from skipway.training.loop import Hooks, Trainer
from skipway.training.plan import Plan, make_plan
from skipway.training.progress import StopRequested
from skipway.training.resize import resized, size_at
from skipway.training.step import Learner
from skipway.training.vault import Writer


def asked(
    data: Path, *, network: dict[str, Any] | None = None, speed: dict[str, Any] | None = None, **train: Any
) -> Plan:
    settings = tiny(**train) | {"speed": speed or {}}
    settings["network"] = settings.get("network", {}) | (network or {})
    return make_plan(compose(str(data), settings=settings))


@pytest.fixture(scope="module")
def photos(tmp_path_factory) -> Path:
    return make_photos(tmp_path_factory.mktemp("photos"))


def batch_of(plan: Plan, size: int = 8) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(5)
    pixels = plan.spec.data.image_size
    return torch.randn(size, plan.source.channels, pixels, pixels, generator=generator), torch.arange(size) % 2


def gradient(learner: Learner, inputs: Tensor, targets: Tensor) -> Tensor:
    learner.network.train()
    learner.optimizer.zero_grad()
    learner._backward(inputs, targets)
    return torch.cat([p.grad.flatten() for p in learner.network.parameters() if p.grad is not None])


@pytest.mark.parametrize("micro", [1, 3, 4, 8])
def test_micro_batches_add_up_to_the_gradient_of_the_batch(photos, micro):
    norms = {"norm": "group", "norm_groups": 4}
    whole = assemble(asked(photos, network=norms, precision="fp32"), quiet()).learner
    parts = assemble(asked(photos, network=norms, precision="fp32", speed={"micro_batch": micro}), quiet()).learner
    assert parts.engine.micro_batch == (micro if micro < 8 else 0)
    inputs, targets = batch_of(asked(photos))
    a, b = gradient(whole, inputs, targets), gradient(parts, inputs, targets)
    assert (a - b).norm() < 1e-5 * a.norm()


def test_small_memory_takes_part_of_the_batch_at_a_time(photos, monkeypatch):
    plan = asked(photos)
    monkeypatch.setattr("skipway.training.engine.memory_of", lambda _: 1 << 50)
    assert choose_engine(plan)[0].micro_batch == 0
    monkeypatch.setattr("skipway.training.engine.memory_of", lambda _: 1)
    engine, said = choose_engine(plan)
    assert engine.micro_batch == 1
    assert any("1 images at a time" in note for note in said)


def test_no_micro_batch_is_a_leftover_of_one(photos):
    learner = assemble(asked(photos, speed={"micro_batch": 3}), quiet()).learner
    seen = []
    learner.forward = lambda x: seen.append(len(x)) or learner.network(x)
    learner.network.train()
    learner._backward(*batch_of(asked(photos), 7))
    assert seen == [3, 2, 2]


def test_what_goes_to_an_accelerator_is_pinned_and_not_waited_for():
    calls: list[Any] = []

    class Told:
        device = torch.device("cpu")

        def pin_memory(self) -> "Told":
            calls.append("pinned")
            return self

        def to(self, device: torch.device, *, non_blocking: bool = False) -> "Told":
            calls.append((device.type, non_blocking))
            return self

    for kind in ("cpu", "cuda"):
        Engine(torch.device(kind), bf16=False, channels_last=True).send(Told())  # pyrefly: ignore[bad-argument-type]
    assert calls == [("cpu", False), "pinned", ("cuda", True)]


@pytest.mark.parametrize(
    ("changes", "there"),
    [({}, True), ({"random_resized_crop": 0.3, "color_jitter": 0.1, "cutmix": 1.0}, True), ({"randaugment": 1}, False),
     ({"trivialaugment": True}, False), ({"transforms": ("GaussianBlur(3)",)}, False)],
)  # fmt: skip
def test_images_are_cut_on_cuda_where_nothing_has_to_wait_for_it(photos, changes, there):
    plan = asked(photos)
    augment = assemble(replace(plan, spec=replace(plan.spec, augment=AugmentSpec(**changes))), quiet()).augment
    assert augment.runs_on(torch.device("cuda")) is there
    assert not augment.runs_on(torch.device("cpu"))


def test_freezing_for_some_epochs_then_everything_learns(photos, tmp_path, monkeypatch):
    settings = tiny(epochs=3, freeze="backbone", freeze_epochs=1)
    states = []
    files_of = loop.files_of

    def spied(position: Position, learner: Learner) -> dict[str, Writer]:
        states.append({k: v.clone() for k, v in learner.network.state_dict().items()})
        return files_of(position, learner)

    monkeypatch.setattr(loop, "files_of", spied)
    whole = skipway.train(str(photos), settings=settings, out=tmp_path / "whole", console=quiet())
    moved = [{k for k in a if not torch.equal(a[k], b[k])} for a, b in pairwise(states)]
    assert moved[0] == {"head.linear.weight", "head.linear.bias"}
    assert {k for k in moved[1] if "num_batches" not in k} == {k for k in states[0] if "num_batches" not in k}
    assert any("frozen up to" in note and "for 1 epoch:" in note for note in whole.summary["chosen"])
    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(Trainer, "_step", cut_at(Trainer._step, 9))
        skipway.train(str(photos), settings=settings, out=tmp_path / "cut", console=quiet())
    resumed = skipway.train(str(photos), settings=settings, out=tmp_path / "cut", console=quiet())
    assert same(weights(whole), weights(resumed))


def test_hard_images_are_those_with_the_largest_loss(photos):
    learner = assemble(asked(photos, speed={"keep_hard": 0.25, "hard_by": "proxy"}, precision="fp32"), quiet()).learner
    inputs, targets = batch_of(asked(photos), 16)
    judge = learner.proxy
    assert judge is not None
    judge.network.train()
    with torch.no_grad():
        losses = torch.nn.functional.cross_entropy(judge.network(inputs), targets, reduction="none")
    hard, labels = learner._hard(judge, inputs, targets, 0)
    chosen = losses.topk(4).indices.sort().values
    assert torch.equal(hard, inputs[chosen])
    assert torch.equal(labels, targets[chosen])


def test_hard_images_are_fewer_and_counted(photos, tmp_path):
    run = skipway.train(
        str(photos), settings=tiny(epochs=1) | {"speed": {"keep_hard": 0.5}}, out=tmp_path / "r", console=quiet()
    )
    assert run.summary["status"] == "finished"
    assert 0 <= run.metrics()[0]["train_accuracy"] <= 1


@pytest.mark.parametrize("by", ["proxy", "last"])
def test_who_judges_goes_on_to_the_same_bits(by, photos, tmp_path, monkeypatch):
    settings = tiny(epochs=2) | {"speed": {"keep_hard": 0.5, "hard_by": by}}
    whole = skipway.train(str(photos), settings=settings, out=tmp_path / "whole", console=quiet())
    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(Trainer, "_step", cut_at(Trainer._step, 6))
        skipway.train(str(photos), settings=settings, out=tmp_path / "cut", console=quiet())
    resumed = skipway.train(str(photos), settings=settings, out=tmp_path / "cut", console=quiet())
    assert same(weights(whole), weights(resumed))
    assert whole.steps() == resumed.steps()


def test_images_with_the_largest_last_losses_are_learnt_from_and_no_others(photos):
    plan = asked(photos, speed={"keep_hard": 0.5, "hard_by": "last"}, precision="fp32")
    parts = assemble(plan, quiet())
    learner, seen = parts.learner, []
    forward = learner.forward
    learner.forward = lambda x: seen.append(len(x)) or forward(x)
    assert learner.last is not None
    (batch,) = parts.train_loader.batches(plan.splits.train[:8], 8)
    known = torch.tensor([4.0, 0.1, 3.0, 0.2, 0.3, 2.0])
    learner.last.put(batch.indices[:6], known)  # 6 and 7 were not seen yet
    made = learner.update(batch, 1, 0, augment=parts.augment, preprocess=parts.preprocess)
    assert seen == [4]
    assert made.seen == 4
    after = learner.last.of(batch.indices)
    assert torch.equal(after[[1, 3, 4, 5]], known[[1, 3, 4, 5]])  # left out: 2.0 was not among the largest four
    losses = torch.nn.functional.cross_entropy(made.logits, batch.labels[[0, 2, 6, 7]], reduction="none")
    assert torch.allclose(after[[0, 2, 6, 7]], losses)


def test_last_losses_grow_with_the_indices():
    last = LastLosses()
    last.put(torch.tensor([2, 5]), torch.tensor([0.5, 0.25]))
    assert last.losses.tolist() == [UNSEEN, UNSEEN, 0.5, UNSEEN, UNSEEN, 0.25]
    assert last.of(torch.tensor([7, 5])).tolist() == [UNSEEN, 0.25]


def test_proxy_of_anothers_network_is_refused(photos):
    plan = make_plan(
        compose(
            str(photos),
            settings=tiny()
            | {"speed": {"keep_hard": 0.5, "hard_by": "proxy"}, "network": {"name": "torchvision:resnet18"}},
        )
    )
    with pytest.raises(InputError, match="--hard-by last"):
        assemble(plan, quiet())


@pytest.mark.parametrize(("share", "told"), [(0.5, True), (1.0, False)])
def test_figures_of_hard_images_are_told_as_theirs(photos, share, told):
    plan = asked(photos, speed={"keep_hard": share})
    assert any("50% of each batch with the largest loss; train's figures are of it" in n for n in plan.notes) is told


@pytest.mark.parametrize("name", ["cifar10-94", "cifar10-96", "he2015"])
def test_recipes_networks_have_narrower_ones(name):
    spec = RECIPES[name]().network
    assert isinstance(spec, NetworkSpec)
    small = skipway.build(narrower(spec), image_size=32)
    assert small(torch.randn(2, 3, 32, 32)).shape == (2, 10)


def test_narrower_network_is_a_quarter_as_wide():
    spec = compose("fashion-sample").network
    assert isinstance(spec, NetworkSpec)
    small = narrower(
        replace(spec, stages=(StageSpec(2, 64), StageSpec(2, 128, 2)), stem_width=64, shortcut="projection")
    )
    assert [stage.width for stage in small.stages] == [16, 32]
    assert small.stem_width == 16


@pytest.mark.parametrize(("share", "moved"), [(1.0, True), (0.0, False)])
def test_norms_stand_still_from_the_share_on(photos, share, moved):
    parts = assemble(asked(photos, speed={"freeze_norms": share}), quiet())
    before = {k: v.clone() for k, v in parts.learner.network.named_buffers()}
    inputs, targets = batch_of(asked(photos))
    weight = next(parts.learner.network.parameters()).detach().clone()
    parts.learner.learn(inputs, targets, 0)
    after = dict(parts.learner.network.named_buffers())
    assert any(not torch.equal(before[k], after[k]) for k in before) is moved
    assert not torch.equal(weight, next(parts.learner.network.parameters()))


def test_the_stem_rests_from_the_share_on_and_the_rest_learns(photos):
    learner = assemble(asked(photos, speed={"rest_stem": 0.5}), quiet()).learner
    inputs, targets = batch_of(asked(photos))
    for step, rests in ((0, False), (learner.total_steps // 2, True)):
        before = {k: v.clone() for k, v in learner.network.state_dict().items()}
        learner.learn(inputs, targets, step)
        after = learner.network.state_dict()
        moved = {k for k in before if not torch.equal(before[k], after[k])}
        assert any(k.startswith("stem.") for k in moved) is not rests
        assert any(k.startswith("stages.0.0.") for k in moved)
        assert (learner.network.get_parameter("stem.conv.weight").grad is None) is rests


def test_what_was_frozen_learns_and_the_stem_then_rests(photos):
    train = {"freeze": "backbone", "freeze_epochs": 1, "epochs": 4}
    learner = assemble(asked(photos, speed={"rest_stem": 0.5}, **train), quiet()).learner
    inputs, targets = batch_of(asked(photos))
    frozen = []
    for step in (0, learner.thaw_step, learner.total_steps // 2, learner.total_steps // 2 + 1):
        learner.learn(inputs, targets, step)
        frozen.append(learner.frozen)
    assert [[part.name for part in now][-1:] for now in frozen] == [["stage2.block1"], [], ["stem"], ["stem"]]
    assert frozen[2] is frozen[3]


def test_what_cannot_rest_is_told(photos):
    plan = asked(photos, speed={"rest_stem": 0.5})
    learner = assemble(plan, quiet()).learner
    head = torch.nn.Sequential(learner.network.get_submodule("head"))
    with pytest.raises(InputError, match="speed.rest_stem: the network has no part before its head"):
        Learner(head, plan.spec, learner.engine, objective=learner.objective, steps_per_epoch=4)


def test_sizes_grow_in_steps_of_four_to_the_full_one():
    speed = SpeedSpec(start_size=16, full_size=0.5)
    sizes = [size_at(step / 100, speed, full=32) for step in range(100)]
    assert sizes[0] == 16
    assert sizes == sorted(sizes)
    assert set(sizes) == {16, 20, 24, 28, 32}
    assert sizes.index(32) == 50
    assert size_at(0.0, SpeedSpec(), full=32) == 32
    assert size_at(0.0, SpeedSpec(start_size=64), full=32) == 32


def test_resized_images_keep_means_and_dtype():
    pixels = torch.randint(0, 256, (4, 3, 32, 32), dtype=torch.uint8)
    small = resized(pixels, 16)
    assert small.shape == (4, 3, 16, 16)
    assert small.dtype == torch.uint8
    assert abs(small.float().mean() - pixels.float().mean()) < 2
    assert resized(pixels, 32) is pixels
    elsewhere = resized(pixels.to("meta"), 16)  # no accelerator resizes whole numbers
    assert (elsewhere.shape, elsewhere.dtype) == (small.shape, torch.uint8)


def test_growing_images_reach_the_network(photos, tmp_path, monkeypatch):
    seen = []
    forward = Learner.learn
    monkeypatch.setattr(
        Learner, "learn", lambda self, x, y, step: seen.append(x.shape[-1]) or forward(self, x, y, step)
    )
    settings = tiny(epochs=4) | {"speed": {"start_size": 8, "full_size": 0.25}}
    run = skipway.train(str(photos), settings=settings, out=tmp_path / "run", console=quiet())
    full = run.spec.data.image_size
    assert seen[0] == 8 < full == seen[-1]
    assert run.preprocess.image_size == full


def test_whitening_stem_takes_its_filters_from_the_data(photos):
    network = {"stem": "whitening", "shortcut": "projection"}
    first = assemble(asked(photos, network=network), quiet())
    again = assemble(asked(photos, network=network), quiet())
    filters, same_filters = (p.learner.network.get_parameter("stem.conv.weight") for p in (first, again))
    spec = first.learner.spec.network
    assert isinstance(spec, NetworkSpec)
    assert torch.equal(filters, same_filters)
    assert not torch.equal(filters, skipway.build(spec).get_parameter("stem.conv.weight"))
    assert any("whiten patches of" in note for note in first.notes)


def test_engine_is_kept_in_the_run_and_read_back(photos, tmp_path):
    settings = tiny(epochs=1) | {"speed": {"micro_batch": 4, "kernels": "off", "threads": 1}}
    before = torch.get_num_threads()
    run = skipway.train(str(photos), settings=settings, out=tmp_path / "run", console=quiet())
    assert torch.get_num_threads() == before  # the next run has them all again
    kept = json.loads((run.folder / "engine.json").read_text())
    assert kept == {"compiled": False, "kernels": False, "micro_batch": 4, "threads": 1}
    engine = engine_of(run.read_text("engine.json"), make_plan(run.spec))
    assert (engine.micro_batch, engine.threads, engine.kernels) == (4, 1, False)
    (run.folder / "engine.json").write_text('{"compiled": false}')
    with pytest.raises(InputError, match="engine.json is damaged"):
        engine_of(run.read_text("engine.json"), make_plan(run.spec))


def test_run_with_kernels_does_not_go_on_without_them(photos, tmp_path, monkeypatch):
    run = skipway.train(str(photos), settings=tiny(epochs=1), out=tmp_path / "run", console=quiet())
    (run.folder / "engine.json").write_text(
        json.dumps({"compiled": False, "kernels": True, "micro_batch": 0, "threads": 1})
    )
    monkeypatch.setattr(kernels, "load", lambda: "there is no C++ compiler")
    with pytest.raises(InputError, match="began with skipway's kernels.*no C\\+\\+ compiler"):
        engine_of(run.read_text("engine.json"), make_plan(run.spec))


def test_kernels_asked_for_that_cannot_be_had_are_refused(photos, monkeypatch):
    monkeypatch.setattr(kernels, "load", lambda: "there is no C++ compiler")
    engine, said = choose_engine(asked(photos))
    assert not engine.kernels
    assert any("no C++ compiler" in note for note in said)
    with pytest.raises(InputError, match=r"speed.kernels on.*no C\+\+ compiler"):
        choose_engine(asked(photos, speed={"kernels": "on"}))


@pytest.mark.parametrize(
    ("kind", "alone", "micro", "replays"),
    [("cuda", True, 0, True), ("cuda", False, 0, False), ("cuda", True, 8, False), ("cpu", True, 0, False)],
)
def test_compiled_steps_of_whole_batches_are_replayed_on_one_cuda_device(kind, alone, micro, replays):
    engine = Engine(torch.device(kind), bf16=True, channels_last=True, compiled=True, micro_batch=micro)
    assert engine.replays(alone=alone) is replays
    assert not replace(engine, compiled=False).replays(alone=alone)


@pytest.mark.parametrize("train", [{}, {"label_smoothing": 0.1}, {"loss": "bce"}, {"loss": "focal"}])
def test_a_replayed_step_holds_network_and_loss_and_gives_the_same(photos, monkeypatch, train):
    plain = assemble(asked(photos, precision="fp32", **train), quiet()).learner
    modes: list[Any] = []

    def traced(function, *, dynamic, mode):
        modes.append(mode)
        return compiling(function, dynamic=dynamic, backend="aot_eager", fullgraph=True)

    compiling = torch.compile
    monkeypatch.setattr(torch, "compile", traced)
    monkeypatch.setattr(Engine, "replays", lambda self, *, alone: alone)
    replayed = assemble(asked(photos, precision="fp32", speed={"compile": "on", "kernels": "off"}, **train), quiet())
    inputs, targets = batch_of(asked(photos))
    soft = torch.nn.functional.one_hot(targets, 2).float() * 0.8 + 0.1
    for wanted in (targets, soft):
        a, b = (learner.learn(inputs, wanted, 0) for learner in (plain, replayed.learner))
        assert a.right == b.right
        assert torch.allclose(a.loss, b.loss, atol=1e-5)
        assert torch.allclose(a.logits, b.logits, atol=1e-3)
    assert modes == [None, "reduce-overhead"]
    for own, other in zip(plain.network.parameters(), replayed.learner.network.parameters(), strict=True):
        assert torch.allclose(own, other, atol=1e-4)


@pytest.mark.parametrize(("network", "drawn"), [({}, False), ({"head_dropout": 0.1}, True), ({"drop_path": 0.1}, True)])
def test_generators_are_seeded_for_networks_that_draw(photos, monkeypatch, network, drawn):
    seeded: list[int] = []
    monkeypatch.setattr(torch, "manual_seed", seeded.append)
    learner = assemble(asked(photos, network=network), quiet()).learner
    seeded.clear()
    learner.learn(*batch_of(asked(photos)), 0)
    assert bool(seeded) is drawn


def test_bad_numbers_of_a_compiled_step_are_looked_for_without_it(photos):
    learner = assemble(asked(photos), quiet()).learner
    learner.guard, calls = Guard(learner.network), []

    def compiled(inputs: Tensor) -> Tensor:
        calls.append(len(inputs))
        return learner.parallel(inputs) * torch.nan

    learner.forward = compiled
    with pytest.raises(BadNumbers, match="the loss is no finite number"):
        learner.learn(*batch_of(asked(photos)), 0)
    assert calls == [8]


@pytest.mark.parametrize(("flops", "triton", "compiler", "compiled"),
    [(2e16, True, True, True), (2e16, True, False, False), (2e16, False, True, False), (5e15, True, True, False)])  # fmt: skip
def test_long_runs_on_cuda_are_compiled_where_that_can_be(photos, monkeypatch, flops, triton, compiler, compiled):
    plan, thrifty = (
        replace(asked(photos, network={"checkpoint": on}), device=torch.device("cuda")) for on in (False, True)
    )
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: (9, 0))
    monkeypatch.setattr("importlib.util.find_spec", lambda name: (triton and name == "triton") or None)
    monkeypatch.setattr("shutil.which", lambda name: (compiler and name == "gcc") or None)
    monkeypatch.setattr("skipway.training.engine._work", lambda _: (flops, 1.0))
    monkeypatch.setattr("skipway.training.engine.memory_of", lambda _: 80 << 30)
    monkeypatch.setattr("skipway.training.engine.fastest", lambda _: None)
    assert choose_engine(plan)[0].compiled is compiled
    assert not choose_engine(thrifty)[0].compiled  # nothing would be computed again
    asked_for = replace(thrifty, spec=replace(thrifty.spec, speed=SpeedSpec(compile="on")))
    engine, said = choose_engine(asked_for)
    assert engine.compiled
    assert any("--checkpoint does nothing" in note for note in said)


@pytest.mark.parametrize(("kind", "precision", "fits"), [
    ("cuda", "bf16", True), ("cuda", "fp32", False), ("cpu", "bf16", False), ("cpu", "fp32", False),
])  # fmt: skip
def test_a_step_in_bf16_takes_half_of_an_accelerators_memory(photos, monkeypatch, kind, precision, fits):
    plan = replace(asked(photos, precision=precision), device=torch.device(kind))
    half = describe(plan.spec.network, image_size=plan.spec.data.image_size).activation_bytes / 2
    inputs = 4 * 4 * 8 * plan.source.channels * plan.spec.data.image_size**2
    room = 8 * half * 1.01 / FILLS + (ITSELF + inputs if kind == "cpu" else 0)
    monkeypatch.setattr("skipway.training.engine.memory_of", lambda _: room)
    assert (fitting(plan, 8) == 8) is fits


@pytest.mark.parametrize("ends", [True, False])
def test_a_run_gives_back_what_its_steps_hold(photos, tmp_path, monkeypatch, ends):
    given: list[int] = []
    monkeypatch.setattr(Learner, "done", lambda _: given.append(1))

    def stop(row: dict[str, Any]) -> None:
        if not ends:
            raise StopRequested("enough")

    run = skipway.train(photos, settings=tiny(), out=tmp_path / "run", console=quiet(), hooks=Hooks(on_epoch=stop))
    assert (run.summary["status"] == "finished") is ends
    assert given


def test_what_graphs_hold_is_given_back_on_cuda_alone(monkeypatch):
    resets: list[int] = []
    monkeypatch.setattr(torch.compiler, "reset", lambda: resets.append(1))
    for kind, compiled in (("cpu", True), ("cuda", False), ("cuda", True)):
        Engine(torch.device(kind), bf16=True, channels_last=True, compiled=compiled).done()
    assert len(resets) == 1


def test_compiled_network_shares_its_weights(photos, monkeypatch):
    monkeypatch.setattr(torch, "compile", lambda network, **_: lambda x: network(x) * 1)
    plan = asked(photos, speed={"compile": "on"}, precision="fp32")
    learner = assemble(plan, quiet()).learner
    assert learner.engine.compiled
    assert not learner.engine.kernels
    inputs, targets = batch_of(plan)
    before = next(learner.network.parameters()).detach().clone()
    learner.learn(inputs, targets, 0)
    assert not torch.equal(before, next(learner.network.parameters()))
