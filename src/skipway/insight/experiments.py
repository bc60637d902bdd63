"""Every experiment by its name, in the order of the report."""

from skipway.errors import unknown
from skipway.insight import twins
from skipway.insight.experiment import Experiment

EXPERIMENTS: dict[str, Experiment] = {e.name: e for e in (twins.EXPERIMENT,)}
from skipway.insight import lesion
from skipway.insight.experiment import Experiment

_IN_ORDER: tuple[Experiment, ...] = (lesion.EXPERIMENT,)
EXPERIMENTS = {experiment.name: experiment for experiment in _IN_ORDER}
from skipway.insight import attention
from skipway.insight import attention, gradients
from skipway.insight.experiment import Experiment

EXPERIMENTS: dict[str, Experiment] = {each.name: each for each in (gradients.EXPERIMENT, attention.EXPERIMENT)}


def find_experiment(name: str) -> Experiment:
    """The experiment of that name. Raises InputError, which lists them."""
    if name not in EXPERIMENTS:
        raise unknown("experiment", name, EXPERIMENTS)
    return EXPERIMENTS[name]
