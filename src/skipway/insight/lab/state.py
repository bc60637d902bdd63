"""What the lab looks at: the subject for experiments, and a copy of its network that lies open under the probe.

The probe changes how blocks compute as long as it is open, so the strip's network is a copy of the experiments': an
edit is answered while an experiment runs. One lock guards each. Edits are not kept here: each request brings all of its
own, so any number of pages may look at once.
"""

import copy
import secrets
import threading
import time
from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor

from skipway.insight.experiment import Pace
from skipway.insight.lab.stream import wait_for_threads
from skipway.insight.prefix import Prefix
from skipway.insight.probe import Probe
from skipway.insight.subject import Images, Subject
from skipway.insight.watch import Watch

FIRST_PASS_S = 20.0  # of all cores, that the strip's images may take to go through the network once
FEWEST = 16


def affordable(subject: Subject) -> int:
    """How many images the strip can answer quickly; by the processor's own time, which other programs do not change."""
    x = subject.seen.inputs[:50]
    with torch.no_grad():
        subject.network(x[:10])
        start = time.process_time()
        subject.network(x)
    an_image_s = (time.process_time() - start) / len(x) / torch.get_num_threads()
    return max(FEWEST, int(FIRST_PASS_S / max(an_image_s, 1e-6)))


class Lab:
    """A subject, ready for the page.

    Args:
        subject: network and images.
        what: the run's folder or the network's name, as the user gave it.
        data: likewise.

    Attributes:
        boot: changes with each start of the server.
        open: the subject with the copy of its network that is under `probe`.
        seen: the images that edits are scored on.
        lock: of `probe`; `subject_lock` of the subject's own network.
    """

    def __init__(self, subject: Subject, *, what: str = "", data: str = ""):
        self.subject, self.what, self.data = subject, what or subject.title, data
        self.boot = secrets.token_hex(8)
        self.lock, self.subject_lock = threading.Lock(), threading.Lock()
        self.pace = Pace(subject)
        self.seen: Images = subject.seen.first(affordable(subject))
        network = copy.deepcopy(subject.network)
        self.open = replace(subject, model=replace(subject.model, network=network))
        self.probe = Probe(network, self.seen.inputs[:1])
        self.probe.__enter__()
        self._prefix: Prefix | None = None
        self._at_end: list[Callable[[], None]] = []

    def at_end(self, call: Callable[[], None]) -> None:
        """Call this when the server ends."""
        self._at_end.append(call)

    def close(self) -> None:
        """Stop what goes on, wait for it, and put the copy's blocks back."""
        for call in self._at_end:
            call()
        wait_for_threads()
        self.probe.__exit__()

    def prefix(self, watch: Watch) -> Prefix:
        """The images' first pass, made when first asked for; the lock is held by the caller."""
        if self._prefix is None:
            told = Watch(watch.on_progress)  # not cancelled: whoever asks next wants it too
            self._prefix = Prefix(self.probe, self.seen.inputs, watch=told)
        return self._prefix

    def probabilities(self, logits: Tensor) -> Tensor:
        """(B, K) logits -> probabilities."""
        return self.subject.model.probabilities(logits)
