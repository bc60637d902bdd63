"""One update of a network after another: augment, forward, backward, step. What a run learns with lives here."""

import dataclasses

import torch
from torch import Tensor, nn

from skipway import randomness
from skipway.data.augmentation.augment import Augment
from skipway.data.loader import Batch
from skipway.data.preprocess import Preprocess
from skipway.spec import RunSpec
from skipway.training.engine import Engine
from skipway.training.finetune import freeze
from skipway.training.loss import Objective
from skipway.training.optim import Average, make_optimizer, schedule, set_lr
from skipway.training.resize import resized, size_at


@dataclasses.dataclass(frozen=True)
class Update:
    """What one update gave: the mean loss (), how many images were right (), of how many, at which rate."""

    loss: Tensor
    right: Tensor
    seen: int
    lr: float


class Learner:
    """A network and everything that changes it.

    Args:
        network: in training mode; moved to the device and its memory format.
        spec: of the run, resolved.
        engine: how the network is computed.
        objective: the loss.
        steps_per_epoch: for the rate over the run.

    Attributes:
        network, optimizer, average: what a checkpoint holds.
        frozen: the parts that do not learn.
    """

    def __init__(
        self, network: nn.Module, spec: RunSpec, engine: Engine, *, objective: Objective, steps_per_epoch: int
    ):
        self.spec, self.engine, self.objective = spec, engine, objective
        self.frozen = freeze(network, spec.train.freeze)
        self.network = engine.place(network)
        self.forward = engine.forward(self.network)
        self.optimizer = make_optimizer(self.network, spec.train)
        self.average = Average(self.network, spec.train.ema_decay) if spec.train.ema_decay else None
        self.total_steps = spec.train.epochs * steps_per_epoch
        warmup = round(spec.train.warmup_epochs * steps_per_epoch)
        self.factor = schedule(spec.train, self.total_steps, warmup)

    @property
    def kept(self) -> nn.Module:
        """The network that is validated and kept: the average where there is one."""
        return self.average.network if self.average else self.network

    def update(self, batch: Batch, epoch: int, step: int, *, augment: Augment, preprocess: Preprocess) -> Update:
        """One update.

        Args:
            batch: raw pixels and labels.
            epoch, step: where the run stands; epochs count from 1, steps over the whole run from 0.
            augment: of the pixels, then of inputs and targets.
            preprocess: whose normalisation applies.
        """
        device, train = self.engine.device, self.spec.train
        pixels = augment.pixels(batch, epoch)
        size = size_at(step / self.total_steps, self.spec.speed, full=pixels.shape[-1])
        pixels = resized(pixels, size).to(device, non_blocking=True)
        inputs, targets = augment.mix(preprocess.normalise(pixels), batch, epoch)
        inputs = inputs.contiguous(memory_format=self.engine.layout)
        targets = targets.to(device, non_blocking=True)
        randomness.seed_network(seed=train.seed, step=step)
        self._set_modes(step)
        lr = train.lr * self.factor(step)
        set_lr(self.optimizer, lr)
        self.optimizer.zero_grad(set_to_none=True)
        loss, right = self._backward(inputs, targets)
        if train.grad_clip:
            nn.utils.clip_grad_norm_(self.network.parameters(), train.grad_clip, foreach=True)
        self.optimizer.step()
        if self.average:
            self.average.update(self.network, step)
        return Update(loss, right, len(batch.labels), lr)

    def _backward(self, inputs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        """Gradients of the mean loss over the batch, a micro-batch at a time. -> loss (), how many were right ()."""
        size = self.engine.micro_batch or len(inputs)
        parts = zip(inputs.split(size), targets.split(size), strict=True)
        losses, rights = [], []
        for x, y in parts:
            with self.engine.precision():
                logits = self.forward(x)
            loss = self.objective.loss(logits, y) * (len(x) / len(inputs))
            loss.backward()
            losses.append(loss.detach())
            rights.append(self.objective.right(logits.detach(), y))
        return torch.stack(losses).sum(), torch.stack(rights).sum()

    def _set_modes(self, step: int) -> None:
        """Training mode; evaluation mode for what is frozen."""
        self.network.train()
        for part in self.frozen:
            for module in part.modules:
                module.eval()
        if step >= self.spec.speed.freeze_norms * self.total_steps:
            for module in self.network.modules():
                if isinstance(module, nn.modules.batchnorm._BatchNorm):
                    module.eval()
