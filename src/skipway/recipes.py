"""Named, complete specs. A recipe is a function, and its docstring says what it costs and gives."""

import dataclasses
from collections.abc import Callable

from skipway.network_spec import NetworkSpec, StageSpec
from skipway.nn.zoo import find
from skipway.spec import AugmentSpec, DataSpec, RunSpec, SpeedSpec, TrainSpec


def trainable(name: str) -> NetworkSpec:
    """A zoo network whose stem is left to the image size."""
    return dataclasses.replace(find(name), stem="auto")


def default() -> RunSpec:
    """A sound start for any images: resnet20, SGD with a cosine over 30 epochs, flips and shifted crops."""
    return RunSpec(trainable("resnet20"), "default")


def demo() -> RunSpec:
    """The embedded sample to about 89% (test) in about a minute on two CPU cores; `make demo` runs it."""
    return RunSpec(
        trainable("resnet20"),
        "demo",
        data=DataSpec(path="fashion-sample"),
        augment=AugmentSpec(pad_crop=0.07),
        train=TrainSpec(epochs=10, batch_size=64),
    )


def tutorial() -> RunSpec:
    """The from-scratch path: the smallest network, Adam at 0.001, batches of 64, no augmentation."""
    return RunSpec(
        trainable("tutorial"),
        "tutorial",
        data=DataSpec(path="fashion-sample"),
        augment=AugmentSpec(flip=False, pad_crop=0.0),
        train=TrainSpec(
            epochs=5,
            batch_size=64,
            optimizer="adam",
            lr=0.001,
            weight_decay=0.0,
            schedule="constant",
            warmup_epochs=0.0,
        ),
    )


def he2015() -> RunSpec:
    """The CIFAR recipe of He et al. 2015, section 4.2: 64,000 steps of 128, rate 0.1, a tenth at 1/2 and 3/4.

    182 epochs of 45,000 images are 63,882 steps. Published error with resnet20 on CIFAR-10: 8.75%; not yet run
    here in full. Differs: mean and deviation are by channel, where the paper subtracts a mean by pixel; bfloat16 where
    the hardware has it; the epoch that is best on validation is kept, not the last.
    """
    return RunSpec(
        trainable("resnet20"),
        "he2015",
        data=DataSpec(path="cifar10"),
        train=TrainSpec(
            epochs=182,
            batch_size=128,
            lr=0.1,
            nesterov=False,
            weight_decay=1e-4,
            decay_norms=True,
            schedule="multistep",
            warmup_epochs=0.0,
        ),
    )


def cifar10_94() -> RunSpec:
    """CIFAR-10 to 94% (with test-time augmentation) in six minutes on two CPU cores: a residual network.

    Whitened 3x3 patches, three basic blocks at 15, 7 and 3 pixels with max-pools in place of strides and shortcuts
    without parameters, Muon over filters of fixed norm, alternating flips; learns from the half of each batch whose
    images had the larger losses. After Jordan 2024 (arXiv:2404.00498, and its successor with Muon), whose network has
    no skips. Measured with 5 seeds on two cores of an EPYC without a matrix unit: test 92.96 ± 0.25%, with views
    flipped and shifted 94.04 ± 0.12%, 364 s of training, T x C / 776 = 0.45 (benchmarks/results.md).
    """
    stages = (StageSpec(1, 64, 2), StageSpec(1, 256, 2), StageSpec(1, 256, 2))
    network = NetworkSpec(
        stages,
        shortcut="avg_zero_pad",
        stem="whitening",
        stem_patch=3,
        stem_components=16,
        norm_momentum=0.4,
        norm_scale=False,
        init="dirac",
        act="silu",
        blur="max",
        head_pool="max",
        head_scale=1 / 16,
    )
    return RunSpec(
        network,
        "cifar10-94",
        data=DataSpec(path="cifar10", val_fraction=0.02),
        augment=AugmentSpec(pad_crop=1 / 16, pad_mode="reflect", flip_mode="alternate"),
        train=TrainSpec(
            epochs=16,
            batch_size=1000,
            optimizer="muon",
            lr=0.16,
            bias_lr=220.0,
            head_lr=11.0,
            momentum=0.85,
            muon_momentum=0.6,
            weight_decay=8e-4,
            fixed_norm=True,
            schedule="linear",
            warmup_epochs=0.0,
            label_smoothing=0.2,
            tta="flip_shift",
        ),
        speed=SpeedSpec(keep_hard=0.5, hard_by="last", rest_stem=0.3),
    )


def cifar10_96() -> RunSpec:
    """CIFAR-10 to 96% in 131 minutes on two CPU cores: cifar10-94's network, wider, two blocks a stage.

    Learns from whole batches of images that grow from 24 to 32 pixels, with cutmix. After Jordan 2024
    (arXiv:2404.00498, section 5.2), whose network has no skips. Measured with one seed on two cores of an EPYC without
    a matrix unit: test 96.03%, with views flipped and shifted 96.48%, 7,881 s of training, T x C / 776 = 9.69
    (benchmarks/results.md).
    """
    base = cifar10_94()
    assert isinstance(base.network, NetworkSpec)
    stages = (StageSpec(2, 160, 2), StageSpec(2, 416, 2), StageSpec(2, 576, 2))
    return dataclasses.replace(
        base,
        recipe="cifar10-96",
        network=dataclasses.replace(base.network, stages=stages),
        augment=dataclasses.replace(base.augment, pad_crop=0.125, cutmix=0.3),
        train=dataclasses.replace(base.train, epochs=36, lr=0.12, label_smoothing=0.1),
        speed=SpeedSpec(start_size=24, full_size=0.4, rest_stem=0.3),
    )


def cifar100_fast() -> RunSpec:
    """CIFAR-100 by the recipe of cifar10-94, wider, for 25 epochs; not yet run here in full."""
    base = cifar10_94()
    assert isinstance(base.network, NetworkSpec)
    stages = (StageSpec(1, 128, 2), StageSpec(1, 384, 2), StageSpec(1, 512, 2))
    return dataclasses.replace(
        base,
        recipe="cifar100-fast",
        network=dataclasses.replace(base.network, stages=stages),
        data=dataclasses.replace(base.data, path="cifar100"),
        train=dataclasses.replace(base.train, epochs=25),
    )


def fashion_fast() -> RunSpec:
    """Fashion-MNIST by the recipe of cifar10-94, narrower; not yet run here in full."""
    base = cifar10_94()
    assert isinstance(base.network, NetworkSpec)
    stages = (StageSpec(1, 64, 2), StageSpec(1, 128, 2), StageSpec(1, 256, 2))
    return dataclasses.replace(
        base,
        recipe="fashion-fast",
        network=dataclasses.replace(base.network, stages=stages, stem_components=0),
        data=dataclasses.replace(base.data, path="fashion"),
    )


def photos() -> RunSpec:
    """A small folder of photos from scratch: resnet18 with random resized crops, TrivialAugment, mixup and averaging.

    Few photos want many epochs and strong augmentation; from given weights `photos-finetune` asks for less. Measured
    once, on 245 photos of ants and bees in three and a half minutes on two cores of an EPYC: validation (153 photos)
    72.6% in the last epoch, 75.8% at its best.
    """
    return RunSpec(
        trainable("resnet18"),
        "photos",
        data=DataSpec(image_size=128),
        augment=AugmentSpec(random_resized_crop=0.35, pad_crop=0.0, trivialaugment=True, mixup=0.2),
        train=TrainSpec(epochs=100, batch_size=32, lr=0.02, label_smoothing=0.1, ema_decay=0.99, weight_decay=1e-3),
    )


def photos_finetune() -> RunSpec:
    """A folder of photos from given weights (`--weights`): the head alone for two epochs, then all, at falling rates.

    Each block learns at 0.75 of the rate of the next one. Give `--weights torchvision:IMAGENET1K_V2`, a file or a run:
    without them the head learns on random features first. Not yet run here in full.
    """
    return RunSpec(
        trainable("resnet50"),
        "photos-finetune",
        augment=AugmentSpec(random_resized_crop=0.5, pad_crop=0.0),
        train=TrainSpec(
            epochs=12,
            batch_size=32,
            lr=0.01,
            label_smoothing=0.1,
            weight_decay=1e-4,
            freeze="backbone",
            freeze_epochs=2,
            layer_decay=0.75,
        ),
    )


def imagenet_resnet50() -> RunSpec:
    """ImageNet with resnet50 in the short modern way: 18 epochs growing from 128 to 176 pixels, scored at 224.

    Progressive resizing, anti-aliased strides, label smoothing, averaged weights, test size above train size (Touvron
    2019, arXiv:1906.06423). Runs on any folder of images; on ImageNet it wants accelerators, and has not been run here.
    """
    return RunSpec(
        dataclasses.replace(trainable("resnet50"), blur="blur", zero_init_last=True),
        "imagenet-resnet50",
        data=DataSpec(image_size=176, test_size=224),
        augment=AugmentSpec(random_resized_crop=0.35, pad_crop=0.0),
        train=TrainSpec(
            epochs=18,
            batch_size=1024,
            lr=2.0,
            weight_decay=5e-5,
            label_smoothing=0.1,
            ema_decay=0.999,
        ),
        speed=SpeedSpec(start_size=128, full_size=0.25),
    )


RECIPES: dict[str, Callable[[], RunSpec]] = {
    "default": default,
    "demo": demo,
    "tutorial": tutorial,
    "he2015": he2015,
    "cifar10-94": cifar10_94,
    "cifar10-96": cifar10_96,
    "cifar100-fast": cifar100_fast,
    "fashion-fast": fashion_fast,
    "photos": photos,
    "photos-finetune": photos_finetune,
    "imagenet-resnet50": imagenet_resnet50,
}
