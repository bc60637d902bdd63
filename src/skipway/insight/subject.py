"""What experiments look at: a network in evaluation mode with images of its validation split, ready for it."""

import hashlib
from dataclasses import dataclass, replace
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from skipway import randomness
from skipway.data.loader import Loader, make_loader
from skipway.data.open import open_source
from skipway.data.preprocess import Preprocess, measure, plain
from skipway.data.source import is_multilabel
from skipway.errors import InputError
from skipway.evaluation.opened import check_kind, data_spec_of, match_classes, open_data, parts_of
from skipway.foreign_spec import ForeignSpec, is_foreign
from skipway.network_spec import NetworkSpec
from skipway.nn.foreign import build_any
from skipway.nn.zoo import find, resolve_stem
from skipway.run import Model, Run, load_model
from skipway.spec import DataSpec, RunSpec

NUM_IMAGES = 1000


@dataclass(frozen=True)
class Images:
    """Some images of a data set.

    Args:
        pixels: (N, C, S, S) uint8 or float32, fitted to the network's size.
        inputs: (N, C, S, S) float32, normalised, channels_last: what the network takes.
        labels: (N,) int64, or (N, K) uint8 where an image may have several labels.
        names: of the samples.
    """

    pixels: Tensor
    inputs: Tensor
    labels: Tensor
    names: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.labels)

    def first(self, count: int) -> "Images":
        """The first so many."""
        return Images(self.pixels[:count], self.inputs[:count], self.labels[:count], self.names[:count])


@dataclass(frozen=True)
class Subject:
    """What an experiment looks at.

    Args:
        title: what a person calls it: the run's folder, or the network's name.
        model: network (evaluation mode, fp32, on the CPU, channels_last), spec, classes, preprocessing.
        seen: images of the validation split, drawn once for always; scores are on these.
        train: images of the train split, drawn likewise; losses and gradients of training are on these.
        trained: whether its weights come from training; fresh ones else.
        run: the run, where it is one.
    """

    title: str
    model: Model
    seen: Images
    train: Images
    trained: bool
    run: Run | None = None

    @property
    def network(self) -> nn.Module:
        """The network."""
        return self.model.network

    @property
    def spec(self) -> RunSpec:
        """The run's."""
        return self.model.spec

    @property
    def own(self) -> NetworkSpec | None:
        """The spec of the network where it is skipway's own, else None."""
        return self.spec.network if isinstance(self.spec.network, NetworkSpec) else None

    def fresh(self, seed: int = 0) -> nn.Module:
        """The same network with new initial weights, in training mode."""
        network = build_any(self.spec.network, image_size=self.spec.data.image_size, seed=seed)
        return network.to(memory_format=torch.channels_last)

    def loss(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Mean loss in nats, (): cross-entropy; binary cross-entropy where an image may have several labels."""
        if labels.ndim == 2:
            return F.binary_cross_entropy_with_logits(logits, labels.float())
        return F.cross_entropy(logits, labels)

    def right(self, logits: Tensor, labels: Tensor) -> Tensor:
        """(N,) float32: 1 where the answer is right; the share of right decisions where there are several labels."""
        if labels.ndim == 2:
            thresholds = torch.tensor(self.model.thresholds)
            return ((logits.sigmoid() >= thresholds) == labels.bool()).float().mean(1)
        return (logits.argmax(1) == labels).float()

    def fingerprint(self) -> str:
        """Changes with the weights, the spec and the images: what results are kept by."""
        digest = hashlib.sha256(repr((self.spec, self.classes)).encode())
        for tensor in (*self.network.state_dict().values(), self.seen.inputs, self.train.inputs):
            digest.update(tensor.detach().contiguous().numpy().tobytes())
        digest.update(self.seen.labels.numpy().tobytes() + self.train.labels.numpy().tobytes())
        return digest.hexdigest()

    @property
    def classes(self) -> tuple[str, ...]:
        """Class names."""
        return self.model.classes


def subject_of(
    what: Run | str | Path, data: str = "", *, num_images: int = NUM_IMAGES, trust_code: bool = False
) -> Subject:
    """What to look at, from a run (its folder or weights.safetensors), or from a network's name, with fresh weights.

    Args:
        what: the run, or a network's name.
        data: other images than the run's own; for a name the data, scikit-learn's digits by default.
        num_images: of each split, at most.
        trust_code: as in load_model.

    Raises:
        InputError: no such run, network or data; or the run's data are not at their place (name them).
    """
    folder = what.folder if isinstance(what, Run) else Path(what)
    if not isinstance(what, Run) and not folder.exists():
        if not _is_network(str(what)):
            raise InputError(
                f"{what} is neither a run folder (or its weights) nor a network that `skipway networks` lists"
            )
        return _untrained(str(what), data or "digits", num_images)
    model = load_model(folder, trust_code=trust_code)
    spec = data_spec_of(model.spec.data, folder, data or None)
    source = open_data(spec, own=not data)
    check_kind(source, model, spec.path)
    parts = parts_of(source, spec, foreign=bool(data))
    seen = parts.get("val", parts.get("test", parts["all"]))
    loader = make_loader(source, model.preprocess, spec)
    places = match_classes(source.classes, model.classes, spec.path)

    def take(part: Tensor) -> Images:
        return _images(loader, model.preprocess, part, places, num_images)

    run = Run(folder) if folder.is_dir() else None
    return Subject(str(folder), _ready(model), take(seen), take(parts.get("train", seen)), trained=True, run=run)


def _untrained(name: str, data: str, num_images: int) -> Subject:
    """A network of that name with fresh weights, on data split as a run would split it."""
    spec = DataSpec(path=data)
    source = open_source(spec)
    parts = parts_of(source, spec, foreign=False)
    size = source.size or (224, 224)
    asked = 16 if data == "digits" else max(size)
    loader = make_loader(source, plain(source, spec, asked), spec)
    preprocess = measure(loader, parts["train"])
    network: NetworkSpec | ForeignSpec
    channels, classes = preprocess.channels, len(source.classes)
    if is_foreign(name):
        network = ForeignSpec(name, in_channels=channels, num_classes=classes)
    else:
        network, _ = resolve_stem(replace(find(name), in_channels=channels, num_classes=classes), asked)
        network.check_image_size(asked)
    run = RunSpec(network, data=replace(spec, image_size=asked))
    thresholds = (0.5,) * classes if is_multilabel(source) else None
    model = Model(build_any(network, image_size=asked).eval(), run, tuple(source.classes), preprocess, thresholds)
    places = torch.arange(classes)
    seen, train = (_images(loader, preprocess, parts[part], places, num_images) for part in ("val", "train"))
    return Subject(name, _ready(model), seen, train, trained=False)


def _is_network(name: str) -> bool:
    if is_foreign(name):
        return True
    try:
        find(name)
    except InputError:
        return False
    return True


def _ready(model: Model) -> Model:
    model.network.to(memory_format=torch.channels_last).requires_grad_(True)
    return replace(model, network=model.network.eval())


def _images(loader: Loader, preprocess: Preprocess, part: Tensor, places: Tensor, most: int) -> Images:
    """Images drawn from a part of the data, always the same ones; their labels as the network counts them."""
    found = images_of(loader, preprocess, randomness.order(part, seed=0, epoch=0)[:most])
    return found if found.labels.ndim == 2 else replace(found, labels=places[found.labels])


def images_of(loader: Loader, preprocess: Preprocess, chosen: Tensor) -> Images:
    """Images of a source, by (N,) int64 indices. Raises InputError where none of them can be read."""
    batches = list(loader.batches(chosen, 256))
    if not batches:
        raise InputError("none of the images can be read")
    pixels = torch.cat([b.images for b in batches])
    labels = torch.cat([b.labels for b in batches])
    names = tuple(loader.source.name(int(i)) for b in batches for i in b.indices)
    return Images(pixels, preprocess.normalise(pixels).contiguous(memory_format=torch.channels_last), labels, names)
