"""A network of ours beside its counterparts: residual and plain, with and without normalisation, else alike."""

from dataclasses import dataclass, replace

from skipway.errors import InputError
from skipway.network_spec import NetworkSpec
from skipway.nn.twin import twin

RESIDUAL, PLAIN = "residual", "plain"


@dataclass(frozen=True)
class Variant:
    """One of them.

    Args:
        name: "residual" or "plain".
        norm: "batch", "group" or "none".
        spec: without stochastic depth or recomputation, which would only blur what is compared.
    """

    name: str
    norm: str
    spec: NetworkSpec

    @property
    def title(self) -> str:
        """In words."""
        return f"{self.name}, {self.norm} norm" if self.norm != "none" else f"{self.name}, no norm"


def variants(own: NetworkSpec) -> tuple[Variant, ...]:
    """Residual and plain as the network is normalised, then both without normalisation; with it where it has none.

    Built from one seed, residual and plain share the bits of every tensor that both have, unless the residual one
    starts some otherwise (see skipway.nn.twin).
    """
    own = replace(own, drop_path=0.0, checkpoint=False)
    if own.norm == "none":
        other = replace(own, norm="batch", init="he" if own.init == "fixup" else own.init, branch_scale="none")
    else:
        other = replace(own, norm="none")
    return tuple(Variant(name, s.norm, spec) for s in (own, other) for name, spec in pair(s).items())


def pair(own: NetworkSpec) -> dict[str, NetworkSpec]:
    """A network and its counterpart: {"residual": ..., "plain": ...}."""
    if own.shortcut != "none":
        return {RESIDUAL: own, PLAIN: twin(own).spec}
    try:
        return {RESIDUAL: replace(own, shortcut="zero_pad"), PLAIN: own}
    except InputError:  # where widths shrink
        return {RESIDUAL: replace(own, shortcut="projection"), PLAIN: own}
