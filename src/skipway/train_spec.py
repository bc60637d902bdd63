"""How the weights are found: the loss, the optimizer, the rate over the run, where it starts from."""

from dataclasses import dataclass
from typing import Literal

from skipway.errors import InputError, unknown
from skipway.fields import check, option

TRACKERS = ("tensorboard", "mlflow", "wandb")


@dataclass(frozen=True)
class TrainSpec:
    """How the weights are found."""

    epochs: int = option(30, "times through the training images", low=1)
    batch_size: int = option(
        0, "images a step; 0: 128, halved down to 16 at the least while an epoch has fewer than 16 steps", low=0
    )
    optimizer: Literal["sgd", "adamw", "adam", "lamb", "muon"] = option(
        "sgd", "update rule; sgd has momentum; muon: orthogonal updates of filters and matrices, sgd for the rest"
    )
    lr: float = option(
        0.0,
        "peak learning rate; 0: sgd 0.1, adam and adamw 0.001, lamb 0.002, times batch size / 128; muon 0.02",
        low=0,
    )
    bias_lr: float = option(1.0, "learning rate of norms and all biases, as a multiple", low=0, high=1e4)
    head_lr: float = option(1.0, "learning rate of the head's weight, as a multiple", low=0, high=1e4)
    momentum: float = option(0.9, "momentum of sgd, and of what muon leaves to it", low=0, high=0.9999)
    muon_momentum: float = option(0.95, "momentum of muon's own updates", low=0, high=0.9999)
    nesterov: bool = option(True, "Nesterov's form of the momentum")
    weight_decay: float = option(5e-4, "pull of the weights to zero", low=0)
    decay_norms: bool = option(False, "decay norms and biases too")
    fixed_norm: bool = option(False, "filters keep the norm that they started with: only their direction learns")
    lookahead: int = option(0, "slow weights take a step to the fast ones every so many steps; 0: off", low=0)
    schedule: Literal["cosine", "multistep", "onecycle", "constant", "linear", "trapezoid"] = option(
        "cosine", "the rate over the run; trapezoid: constant, then linearly to 0"
    )
    cooldown: float = option(0.2, "trapezoid: share of the run, at its end, in which the rate falls", low=0, high=1)
    warmup_epochs: float = option(-1.0, "linear rise of the rate; -1: 5% of the run, 30% for onecycle", low=-1)
    milestones: tuple[float, ...] = option((0.5, 0.75), "multistep: shares of the run after which the rate drops")
    gamma: float = option(0.1, "multistep: factor of each drop", low=0, high=1)
    label_smoothing: float = option(0.0, "share of the target spread over all classes", low=0, high=0.999)
    loss: Literal["auto", "cross_entropy", "bce", "focal"] = option(
        "auto", "auto: cross-entropy for one label an image, binary cross-entropy for several; focal: hard ones count"
    )
    focal_gamma: float = option(2.0, "focal loss: how much easy images count less", low=0, high=10)
    class_weights: Literal["none", "balanced", "sqrt"] = option(
        "none", "weight of a class in the loss: none, inverse to its images, or the root of that"
    )
    sampler: Literal["shuffle", "balanced", "sqrt"] = option(
        "shuffle", "which images an epoch shows: each once, classes equally often, or by the root of their sizes"
    )
    grad_clip: float = option(0.0, "largest norm of the gradient; 0: off", low=0)
    ema_decay: float = option(0.0, "average of the weights that is validated and kept; 0: off", low=0, high=0.99999)
    precision: Literal["auto", "fp32", "bf16"] = option(
        "auto", "bf16: autocast over fp32 weights; auto: bf16 where the hardware computes in it"
    )
    sync_norm: bool = option(False, "several processes: batch norms see the whole batch, not each its own share")
    channels_last: bool = option(True, "memory format of images and weights")
    tta: Literal["none", "flip", "flip_shift"] = option(
        "none",
        "also score with predictions averaged over mirrored, and shifted, images; the plain score stays beside it",
    )
    track: tuple[str, ...] = option((), "also report to tensorboard, mlflow or wandb (offline), through their extras")
    seed: int = option(0, "seed of weights, order and augmentation", low=0, high=2**62)
    device: str = option("auto", "cpu, cuda, cuda:1, mps; auto: the accelerator where there is one")
    weights: str = option(
        "",
        "start from these weights: a run, a file (.safetensors, .pth, .th; torchvision's, timm's and the CIFAR "
        "repositories' names too), torchvision:IMAGENET1K_V2 or timm:resnet50.a1_in1k",
    )
    weight_channels: Literal["sum", "average"] = option(
        "sum", "filters of weights for another number of input channels: summed over theirs, or averaged"
    )
    freeze: str = option(
        "",
        "keep weights and batch statistics as they are: backbone (all but the head), or up to a part, such as stage2",
    )
    freeze_epochs: int = option(0, "freeze: for so many epochs, then everything learns; 0: the whole run", low=0)
    layer_decay: float = option(
        1.0, "learning rate of each block as a share of that of the next one; the head's is whole", low=0.01, high=1
    )

    def __post_init__(self) -> None:
        check(self, "train")
        if any(not 0 < m < 1 for m in self.milestones):
            raise InputError(f"train.milestones must lie between 0 and 1 (shares of the run), got {self.milestones}")
        for name in self.track:
            if name not in TRACKERS:
                raise unknown("tracker in train.track", name[:200], TRACKERS)
