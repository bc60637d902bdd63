"""skipway: build, train, see and ship residual networks.

    import skipway

    network = skipway.build("resnet20", num_classes=10)
    run = skipway.train("photos/", network="resnet18")  # cut off, the same call goes on, or skipway.resume(folder)
    skipway.evaluate(run)
    skipway.load(run.folder).predict(["bee.jpg"])

Everything is imported when it is first used, so `import skipway` is instant.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from skipway.data.doctor.case import Finding
    from skipway.data.doctor.examine import Diagnosis, doctor
    from skipway.data.preview import preview
    from skipway.data.sources.pack import Packed, pack
    from skipway.errors import InputError, ReadError
    from skipway.evaluation.evaluate import Evaluation, evaluate
    from skipway.foreign_spec import ForeignSpec
    from skipway.insight.edits import Edit
    from skipway.insight.probe import Probe
    from skipway.insight.see import Seen, see
    from skipway.network_spec import NetworkSpec, StageSpec
    from skipway.nn.describe import describe
    from skipway.nn.description import Description
    from skipway.nn.foreign import build_foreign
    from skipway.nn.network import ResNet, build
    from skipway.nn.twin import Twin, twin
    from skipway.nn.weights import Loaded, load_weights, save_weights
    from skipway.nn.zoo import dilated
    from skipway.run import Run
    from skipway.shipping.predictor import Prediction, Predictor, load
    from skipway.spec import AugmentSpec, DataSpec, RunSpec, TrainSpec
    from skipway.training.find_lr import LrSweep, find_lr
    from skipway.training.train import resume, train
    from skipway.training.tune import Tuning, tune

__version__ = "0.1.0"

_WHERE = {
    "data.doctor.examine": ("Diagnosis", "doctor"),
    "data.doctor.case": ("Finding",),
    "data.sources.pack": ("Packed", "pack"),
    "data.preview": ("preview",),
    "errors": ("InputError", "ReadError"),
    "evaluation.evaluate": ("Evaluation", "evaluate"),
    "foreign_spec": ("ForeignSpec",),
    "insight.edits": ("Edit",),
    "insight.probe": ("Probe",),
    "insight.see": ("Seen", "see"),
    "network_spec": ("NetworkSpec", "StageSpec"),
    "nn.describe": ("describe",),
    "nn.description": ("Description",),
    "nn.foreign": ("build_foreign",),
    "nn.network": ("ResNet", "build"),
    "nn.twin": ("Twin", "twin"),
    "nn.weights": ("Loaded", "load_weights", "save_weights"),
    "nn.zoo": ("dilated",),
    "run": ("Run",),
    "shipping.predictor": ("Prediction", "Predictor", "load"),
    "spec": ("AugmentSpec", "DataSpec", "RunSpec", "TrainSpec"),
    "training.find_lr": ("LrSweep", "find_lr"),
    "training.train": ("resume", "train"),
    "training.tune": ("Tuning", "tune"),
}
_HOME = {name: module for module, names in _WHERE.items() for name in names}

__all__ = [
    "AugmentSpec",
    "DataSpec",
    "Description",
    "Diagnosis",
    "Edit",
    "Evaluation",
    "Finding",
    "ForeignSpec",
    "InputError",
    "Loaded",
    "LrSweep",
    "NetworkSpec",
    "Packed",
    "Prediction",
    "Predictor",
    "Probe",
    "ReadError",
    "ResNet",
    "Run",
    "RunSpec",
    "Seen",
    "StageSpec",
    "TrainSpec",
    "Tuning",
    "Twin",
    "build",
    "build_foreign",
    "describe",
    "dilated",
    "doctor",
    "evaluate",
    "find_lr",
    "load",
    "load_weights",
    "pack",
    "preview",
    "resume",
    "save_weights",
    "see",
    "train",
    "tune",
    "twin",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'skipway' has no attribute '{name}'")
    value = getattr(importlib.import_module(f"skipway.{_HOME[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
