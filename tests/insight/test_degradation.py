"""The orderings that skips are known for, on digits (benchmarks/degradation.py has the numbers, over several seeds)."""

import statistics

import pytest
import torch
from torch import nn

from skipway.insight.edits import Edit
from skipway.insight.prefix import Prefix
from skipway.insight.probe import Probe, evaluating
from skipway.insight.race import Race, RaceSettings, computing_with, digits_images, race_spec, train_spec
from skipway.insight.subject import Images
from skipway.nn.twin import twin

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200)]


def right(logits: torch.Tensor, seen: Images) -> float:
    return float((logits.argmax(1) == seen.labels).float().mean())


def median_damage(network: nn.Module, seen: Images) -> float:
    """What cutting one identity block costs, in the median."""
    with evaluating(network), Probe(network, seen.inputs) as probe:
        prefix = Prefix(probe, seen.inputs)
        cuts = [right(prefix.score([Edit("block", u.name)]), seen) for u in probe.units if not u.opens]
        return right(prefix.logits, seen) - statistics.median(cuts)


def test_deep_plain_network_learns_worst_and_cuts_harm_plain_ones_more():
    settings, networks = RaceSettings(lr=0.05, batch_size=32, epochs=12), {}
    for depth in (20, 56):
        spec = race_spec(RaceSettings(depth=depth), channels=1, classes=10)
        networks |= {f"residual-{depth}": spec, f"plain-{depth}": twin(spec).spec}
    race = Race(networks, train_spec(settings), *digits_images())
    while not race.done:
        race.step()
    scores = race.scores()
    losses = {name: score.train_loss for name, score in scores.items()}
    assert max(losses, key=lambda name: losses[name]) == "plain-56", losses
    assert losses["plain-56"] > 10 * max(losses["plain-20"], losses["residual-56"]), losses
    assert losses["residual-56"] < losses["plain-20"], losses
    assert scores["residual-56"].accuracy > 0.95 > scores["plain-56"].accuracy
    with computing_with(1):
        harm = {
            name: median_damage(race.network(name), race.seen) for name in ("residual-56", "residual-20", "plain-20")
        }
    assert harm["residual-56"] < 0.05, harm
    assert harm["residual-20"] < harm["plain-20"], harm
    assert harm["plain-20"] > 0.5, harm
