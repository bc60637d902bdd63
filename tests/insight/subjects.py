"""Small subjects for experiments: a network of a few blocks on images of noise with a pattern for each class."""

from collections.abc import Callable, Mapping
from dataclasses import replace

import torch
from torch import Tensor, nn

import skipway
from skipway.data.images.reading import Reading
from skipway.data.preprocess import Preprocess
from skipway.foreign_spec import ForeignSpec
from skipway.insight.subject import Images, Subject
from skipway.model import Model
from skipway.network_spec import NetworkSpec, StageSpec
from skipway.nn.foreign import build_foreign
from skipway.spec import DataSpec, RunSpec

SIZE, CLASSES = 8, ("a", "b", "c")
SMALL = NetworkSpec(stages=(StageSpec(2, 8), StageSpec(2, 16, stride=2)), stem="cifar", num_classes=3)


def some_images(count: int = 24, *, seed: int = 0, channels: int = 3) -> Images:
    """Images whose class shows in which rows are bright."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(count) % len(CLASSES)
    pixels = torch.randint(0, 128, (count, channels, SIZE, SIZE), generator=generator, dtype=torch.uint8)
    for i, label in enumerate(labels.tolist()):
        pixels[i, :, 2 * label : 2 * label + 2] += 100
    return Images(pixels, normalised(pixels), labels, tuple(f"image{i}" for i in range(count)))


def normalised(pixels: Tensor) -> Tensor:
    return (pixels.float() / 127.5 - 1).contiguous(memory_format=torch.channels_last)


def small_subject(spec: NetworkSpec = SMALL, *, count: int = 24, steps: int = 0, seed: int = 0) -> Subject:
    """A subject with its network trained for so many steps, with a head that is not zero."""
    network = skipway.build(spec, seed=seed).to(memory_format=torch.channels_last)
    head = network.get_parameter("head.linear.weight")
    torch.nn.init.normal_(head, std=0.1, generator=torch.Generator().manual_seed(seed))
    train = some_images(count, seed=1, channels=spec.in_channels)
    optimizer = torch.optim.SGD(network.parameters(), lr=0.05, momentum=0.9)
    for _ in range(steps):
        loss = torch.nn.functional.cross_entropy(network(train.inputs), train.labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    optimizer.zero_grad()
    preprocess = Preprocess(
        SIZE, (0.5,) * spec.in_channels, (0.5,) * spec.in_channels, Reading(spec.in_channels, False)
    )
    model = Model(network.eval(), RunSpec(spec), CLASSES, preprocess)
    return Subject("small", model, some_images(count, channels=spec.in_channels), train, trained=steps > 0)


def foreign_subject(name: str, *, size: int = 32, count: int = 4) -> Subject:
    """A network of another's with fresh weights, on images of noise of three classes."""
    spec = ForeignSpec(name, num_classes=3)
    network = build_foreign(spec, image_size=size).eval().to(memory_format=torch.channels_last)
    pixels = torch.randint(0, 256, (count, 3, size, size), generator=torch.Generator().manual_seed(0))
    images = Images(pixels.to(torch.uint8), normalised(pixels), torch.arange(count) % 3, ("noise",) * count)
    run = RunSpec(spec, data=DataSpec(image_size=size))
    preprocess = Preprocess(size, (0.5,) * 3, (0.5,) * 3, Reading(3, False))
    return Subject(name, Model(network, run, CLASSES, preprocess), images, images, trained=False)


def untouched(network: nn.Module) -> Callable[[], bool]:
    """Whether a network is in evaluation mode with the bits that it has now, no gradients and nothing hooked in."""
    before = {key: value.clone() for key, value in network.state_dict().items()}

    def check() -> bool:
        state = network.state_dict()
        free = not any("forward" in vars(m) or m._forward_hooks or m._forward_pre_hooks for m in network.modules())
        calm = all(p.grad is None and p.requires_grad for p in network.parameters())
        modes = not any(m.training for m in network.modules())
        return free and calm and modes and all(torch.equal(state[k], v) for k, v in before.items())

    return check


def with_weights(subject: Subject, state: Mapping[str, Tensor]) -> Subject:
    """The subject with other weights, in a network of its own."""
    network = subject.fresh().eval()
    network.load_state_dict(dict(state))
    return replace(subject, model=replace(subject.model, network=network))
