"""One update of a network after another: augment, forward, backward, step. What a run learns with lives here."""

import contextlib
import dataclasses

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from skipway import randomness
from skipway.data.augmentation.augment import Augment
from skipway.data.loader import Batch
from skipway.data.preprocess import Preprocess
from skipway.errors import InputError
from skipway.network_spec import NetworkSpec
from skipway.nn.network import build
from skipway.spec import RunSpec
from skipway.training.engine import Engine, Judged
from skipway.training.finetune import freeze, parts
from skipway.training.guard import Guard
from skipway.training.hard import LastLosses, hardest, narrower
from skipway.training.loss import Objective
from skipway.training.optim import Average, make_optimizer, schedule, set_lr
from skipway.training.resize import resized, size_at
from skipway.training.sharding import is_sharded, sharded
from skipway.training.world import ALONE, World


@dataclasses.dataclass(frozen=True)
class Update:
    """What one update gave: the mean loss (), how many images were right (), of how many, at which rate; logits."""

    loss: Tensor
    right: Tensor
    seen: int
    lr: float
    logits: Tensor


class Learner:
    """A network and everything that changes it.

    Args:
        network: in training mode; moved to the device and its memory format.
        spec: of the run, resolved.
        engine: how the network is computed.
        objective: the loss.
        steps_per_epoch: for the rate over the run.
        world: the processes that average their gradients.

    Attributes:
        network, optimizer, average: what a checkpoint holds.
        proxy: a small network beside it that says which images are hard.
        last: the images' last losses, where these say it.
        frozen: the parts that do not learn.
        lr_scale: of all rates, once a run went back after bad numbers.
        guard: looks at each update before it is made; None: whatever comes.
    """

    def __init__(
        self,
        network: nn.Module,
        spec: RunSpec,
        engine: Engine,
        *,
        objective: Objective,
        steps_per_epoch: int,
        world: World = ALONE,
    ):
        self.spec, self.engine, self.objective, self.world = spec, engine, objective, world
        self.proxy: Learner | None = None
        learnt = [p for p in network.parameters() if p.requires_grad]
        self.frozen = freeze(network, spec.train.freeze)
        self.resting = [p for p in learnt if not p.requires_grad]  # until freeze_epochs are over
        self.thaw_step = spec.train.freeze_epochs * steps_per_epoch
        if spec.speed.rest_stem < 1 and len(parts(network)) < 2:
            raise InputError("speed.rest_stem: the network has no part before its head that could rest")
        self.network = engine.place(network)
        if spec.speed.shard and world.size > 1:
            sharded(self.network, engine.device, world.size)
        self._rest(not self.thaw_step)  # the optimizer knows from the start what is to learn later
        self.optimizer = make_optimizer(self.network, spec.train)
        self._rest(True)
        self.use(engine)
        self.average = Average(self.network, spec.train.ema_decay) if spec.train.ema_decay else None
        self.proxy = make_proxy(spec, engine, objective, steps_per_epoch, world)
        self.last = LastLosses() if spec.speed.keep_hard < 1 and spec.speed.hard_by == "last" else None
        self.total_steps = spec.train.epochs * steps_per_epoch
        warmup = round(spec.train.warmup_epochs * steps_per_epoch)
        self.factor = schedule(spec.train, self.total_steps, warmup)
        self.lr_scale = self.share = 1.0
        own = spec.network if isinstance(spec.network, NetworkSpec) else None
        self.draws = own is None or bool(own.block_dropout or own.head_dropout or own.drop_path)  # while it computes
        self.guard: Guard | None = None

    @property
    def kept(self) -> nn.Module:
        """The network that is validated and kept: the average where there is one."""
        return self.average.network if self.average else self.network

    def update(
        self,
        batch: Batch,
        epoch: int,
        step: int,
        *,
        augment: Augment,
        preprocess: Preprocess,
        share: float = 1.0,
    ) -> Update:
        """One update.

        Args:
            batch: raw pixels and labels.
            epoch, step: where the run stands; epochs count from 1, steps over the whole run from 0.
            augment: of the pixels, then of inputs and targets.
            preprocess: whose normalisation applies.
            share: of the whole batch, which other processes have the rest of.
        """
        self.share = share
        if self.last:
            batch = self.last.hardest(batch, self.spec.speed.keep_hard)
        if augment.runs_on(self.engine.device):
            batch = dataclasses.replace(batch, images=self.engine.send(batch.images))
        pixels = augment.pixels(batch, epoch)
        size = size_at(step / self.total_steps, self.spec.speed, full=pixels.shape[-1])
        pixels = self.engine.send(resized(pixels, size))
        inputs, targets = augment.mix(preprocess.normalise(pixels), batch, epoch)
        inputs = inputs.contiguous(memory_format=self.engine.layout)
        targets = self.engine.send(targets)
        if self.proxy:
            inputs, targets = self._hard(self.proxy, inputs, targets, step)
        made = self.learn(inputs, targets, step)
        if self.last:
            found = batch.indices, self.objective.hardness(made.logits, targets).float().cpu()
            self.last.put(*(rows if self.world.size == 1 else self.world.gathered(rows) for rows in found))
        return made

    def learn(self, inputs: Tensor, targets: Tensor, step: int) -> Update:
        """One update on inputs (B, C, S, S), normalised, and targets (B,) or (B, K). Raises BadNumbers."""
        train = self.spec.train
        if self.draws:
            randomness.seed_network(seed=train.seed, step=step, rank=self.world.rank)
        self._set_modes(step)
        lr = train.lr * self.factor(step) * self.lr_scale
        set_lr(self.optimizer, lr)
        self.optimizer.zero_grad(set_to_none=True)
        if self.guard:
            self.guard.before()
        loss, right, logits = self._backward(inputs, targets)
        if self.guard:
            self.guard.check(loss, inputs, targets, self.objective, self._uncompiled)
        if train.grad_clip:
            nn.utils.clip_grad_norm_(self.network.parameters(), train.grad_clip, foreach=True)
        self.optimizer.step()
        if self.average:
            self.average.update(self.network, step)
        return Update(loss, right, len(inputs), lr, logits)

    def _hard(self, proxy: "Learner", inputs: Tensor, targets: Tensor, step: int) -> tuple[Tensor, Tensor]:
        """The images with the largest loss, as many as `keep_hard` says, in their order.

        The proxy learns from the whole batch, and its loss there chooses (Jordan 2024, arXiv:2404.00498, section 5.2,
        after Mindermann et al. 2022, arXiv:2206.07137).
        """
        proxy.share = self.share
        logits = proxy.learn(inputs, targets, step).logits
        chosen = hardest(self.objective.hardness(logits, targets), self.spec.speed.keep_hard)
        return inputs[chosen].contiguous(memory_format=self.engine.layout), targets[chosen]

    def _backward(self, inputs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Gradients of the mean loss over the batch, a micro-batch at a time.

        Returns:
            The loss (), how many were right (), the logits (B, K).
        """
        count = -(-len(inputs) // (self.engine.micro_batch or len(inputs)))
        parts = zip(inputs.tensor_split(count), targets.tensor_split(count), strict=True)  # none is a leftover of one
        losses, rights, outputs = [], [], []
        for number, (x, y) in enumerate(parts, 1):
            with self._averaged(number == count):
                loss, right, logits = self.judged(x, y)
                if count > 1:
                    loss = loss * (len(x) / len(inputs))
                alone = self.world.size == 1  # else the mean over processes is to be that over the whole batch
                (loss if alone else loss * (self.share * self.world.size)).backward()
            losses.append(loss.detach())
            outputs.append(logits)
            rights.append(right)
        if count == 1:  # the fewest kernels
            return losses[0].clone(), rights[0].clone(), outputs[0].clone()
        return torch.stack(losses).sum(), torch.stack(rights).sum(), torch.cat(outputs)

    def use(self, engine: Engine) -> None:
        """Compute in this way from now on, on the same device."""
        network = self.spec.network
        all_used = isinstance(network, NetworkSpec) and not (network.drop_path and network.drop_path_by == "batch")
        own = is_sharded(self.network)  # which averages gradients by itself
        self.parallel = self.network if own else self.world.wrapped(self.network, all_used=all_used)
        self.engine, self.forward = engine, engine.forward(self.parallel)
        as_one = engine.replays(alone=self.world.size == 1)
        self.judged: Judged = engine.replayed(self.parallel, self.objective) if as_one else self._judged
        if self.proxy:
            self.proxy.use(engine)

    def done(self) -> None:
        """Give back gradients, and what compiled steps keep on a device, where these lie."""
        self.optimizer.zero_grad(set_to_none=True)
        if self.proxy:
            self.proxy.done()
        self.engine.done()

    def _averaged(self, last: bool) -> contextlib.AbstractContextManager:
        """The context of a micro-batch: gradients are averaged over processes in the last one's backward pass."""
        if is_sharded(self.parallel):
            self.parallel.set_requires_gradient_sync(last)  # pyrefly: ignore[not-callable]
        wait = isinstance(self.parallel, DistributedDataParallel) and not last
        return self.parallel.no_sync() if wait else contextlib.nullcontext()  # pyrefly: ignore[not-callable]

    def _judged(self, inputs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The mean loss (), how many images were right (), the logits (B, K)."""
        return self.objective.judged(self._computed(inputs), targets)

    def _computed(self, inputs: Tensor) -> Tensor:
        """The network's logits, as in training."""
        with self.engine.computing():
            return self.forward(inputs)

    def _uncompiled(self, inputs: Tensor) -> Tensor:
        """The same, layer by layer, so that each can be watched, and without touching what compiled steps hold."""
        with self.engine.computing():
            return self.parallel(inputs)

    def _rest(self, resting: bool) -> None:
        """Whether what is frozen goes without gradients."""
        for p in self.resting:
            p.requires_grad_(not resting)

    def _set_modes(self, step: int) -> None:
        """Training mode; evaluation mode for what is frozen, which may change.

        The stem alone rests from `rest_stem` on, the first part of progressive freezing (Brock et al. 2017,
        arXiv:1706.04983).
        """
        if not self.network.training:  # which goes through all modules
            self.network.train()
        before = self.frozen
        if self.thaw_step and step >= self.thaw_step and self.resting:
            self._rest(False)
            self.frozen, self.resting = [], []
            self.network.train()
        if step >= self.spec.speed.rest_stem * self.total_steps and not self.frozen:
            self.frozen = freeze(self.network, parts(self.network)[0].name)
        if self.frozen is not before and self.world.size > 1:
            self.use(self.engine)  # whose gradients are averaged is settled there
        if step >= self.spec.speed.freeze_norms * self.total_steps:
            for module in self.network.modules():
                if isinstance(module, nn.modules.batchnorm._BatchNorm):
                    module.eval()
        for part in self.frozen:
            for module in part.modules:
                module.eval()


def make_proxy(
    spec: RunSpec, engine: Engine, objective: Objective, steps_per_epoch: int, world: World = ALONE
) -> Learner | None:
    """The small network that says which images are hard: a quarter of the width, trained alike; None where not wanted.

    Raises:
        InputError: it is wanted for a network that is not skipway's own.
    """
    if spec.speed.keep_hard >= 1 or spec.speed.hard_by != "proxy":
        return None
    if not isinstance(spec.network, NetworkSpec):
        raise InputError(
            "speed.hard_by proxy makes a narrower network, of skipway's own alone; --hard-by last takes any"
        )
    small = narrower(spec.network)
    speed = dataclasses.replace(spec.speed, keep_hard=1.0)
    train = dataclasses.replace(spec.train, freeze="", ema_decay=0.0, layer_decay=1.0)
    network = build(small, seed=spec.train.seed)
    alike = dataclasses.replace(spec, network=small, speed=speed, train=train)
    return Learner(network, alike, engine, objective=objective, steps_per_epoch=steps_per_epoch, world=world)
