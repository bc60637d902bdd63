"""Every experiment by its name, in the order of the report."""

from skipway.errors import unknown
from skipway.insight import attention, gradients, landscape, lesion, paths, refinement, responses, shattering, twins
from skipway.insight.experiment import Experiment

_ORDER: tuple[Experiment, ...] = (
    twins.EXPERIMENT,
    gradients.EXPERIMENT,
    shattering.EXPERIMENT,
    responses.EXPERIMENT,
    lesion.EXPERIMENT,
    paths.EXPERIMENT,
    refinement.EXPERIMENT,
    landscape.EXPERIMENT,
    attention.EXPERIMENT,
)
EXPERIMENTS = {each.name: each for each in _ORDER}


def find_experiment(name: str) -> Experiment:
    """The experiment of that name. Raises InputError, which lists them."""
    if name not in EXPERIMENTS:
        raise unknown("experiment", name, EXPERIMENTS)
    return EXPERIMENTS[name]
