"""Python lines that do what a panel shows, to copy."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from skipway.insight.edits import Edit

if TYPE_CHECKING:
    from skipway.insight.lab.state import Lab


def subject(lab: "Lab") -> str:
    """How the lab's subject is opened."""
    data = f", {lab.data!r}" if lab.data else ""
    return f"from skipway.insight.subject import subject_of\n\nsubject = subject_of({lab.what!r}{data})"


def score(lab: "Lab", edits: Sequence[Edit]) -> str:
    """Accuracy with edits."""
    listed = "[" + ", ".join(f"parse({str(e)!r})" for e in edits) + "]"
    return f"""{subject(lab)}

from skipway.insight.edits import parse
from skipway.insight.prefix import Prefix
from skipway.insight.probe import Probe

seen = subject.seen.first({len(lab.seen)})
with Probe(subject.network, seen.inputs[:1]) as probe:
    answers = Prefix(probe, seen.inputs)
    edited = answers.score({listed})
for logits in (answers.logits, edited):
    print(f"accuracy {{subject.right(logits, seen.labels).mean():.2%}}")
"""


def experiment(lab: "Lab", name: str, settings: Any) -> str:
    """One experiment's result and picture."""
    module = type(settings).__module__
    return f"""{subject(lab)}

from {module} import EXPERIMENT, {type(settings).__name__}
from skipway.insight.experiment import perform

result = perform(EXPERIMENT, subject, {settings!r})
print(*EXPERIMENT.read(result).sentences, sep="\\n")
EXPERIMENT.draw(result).savefig("{name}.svg")
"""


def one_image(lab: "Lab", place: int | None, label: int | None) -> str:
    """Maps of one image, and its answer."""
    if place is None:
        chosen = 'Image.open("PATH")  # the image that was dropped'
        loaded = f"""from PIL import Image
from skipway.shipping.predictor import Predictor

pixels = subject.model.preprocess.fit(Predictor(subject.model)._pixels({chosen.split("  #")[0]}))
x = subject.model.preprocess.normalise(pixels[None])"""
    else:
        loaded = f"x = subject.seen.inputs[{place} : {place + 1}]"
    return f"""{subject(lab)}

from skipway.insight.class_maps import attend

{loaded}
seen = attend(subject, x{"" if label is None else f", label={label}"})
print(subject.classes[seen.label], f"{{seen.probabilities[seen.label]:.1%}}")
for stage in seen.stages:
    print(stage.layer, len(stage.grad_cam), "x", len(stage.grad_cam[0]), "peak", stage.peak)
"""


def race(lab: "Lab", settings: Any, *, digits: bool) -> str:
    """The whole race."""
    images = "*digits_images()" if digits else "subject.train, subject.seen, classes=len(subject.classes)"
    first = "" if digits else f"{subject(lab)}\n\n"
    return f"""{first}from skipway.insight.race import race_of
from skipway.insight.race_settings import RaceSettings, digits_images

race = race_of({settings!r}, {images})
while not race.done:
    race.step()
for name, score in race.scores().items():
    print(f"{{name:8}}  accuracy {{score.accuracy:.2%}}  training loss {{score.train_loss:.4f}}")
"""
