"""The pruning methods, and what a schedule, the cost model and a bundle's reader must know of each."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from ztdeploy.core.errors import ScheduleError, did_you_mean
from ztdeploy.core.options import MethodOptions

DEFAULT_METHOD = "zero-tprune"
#: What a pruning layer computes: the ranking; the similarities of one half of the tokens to the other, or of all to
#: all, and of those that go to those that stay; the weighted sums of tokens that are merged. Rows of class attention
#: are not counted.
Work = Literal["page-rank", "halves", "distances", "partners", "merging"]

_RANKING = frozenset({"start", "head_filter", "join"})
_COMPARING = frozenset({"feature", "metric"})
_PARTNERS = frozenset({"partner", "least_similarity", "proportional", "coherent"})
_NOVELTY = frozenset({"importance_power", "size_power", "distance_power", "average_power"})
#: Those that say what coherence is good for, and nothing where it is not kept.
COHERENCE_OPTIONS = frozenset({"coherence_power", "update_power"})
#: Those that say how the S-stage works, and nothing where it drops nothing.
SIMILARITY_OPTIONS = frozenset({"order", "partition"}) | _COMPARING


@dataclass(frozen=True)
class Method:
    """Facts about a method, without importing it."""

    layer: str  #: "module:Class" of its pruning layer
    work: frozenset[Work] = frozenset()
    options: frozenset[str] = frozenset()  #: the names of those `MethodOptions` that it knows
    merges: bool = False  #: tokens that go are merged into others that stay; else they are dropped
    fuses: bool = False  #: all that go make one token, in a place that then is no patch's any more
    inside: bool = False  #: the layer stands between attention and MLP of its block; else behind the block
    every_block: bool = False  #: a keep ratio alone means the same count in every block
    late: bool = False  #: a keep ratio alone means more layers, the first as late as the ratio allows
    needs_class_token: bool = False

    @property
    def decides_by_image(self) -> bool:
        """Whether which tokens go depends on the image."""
        return bool(self.work) or self.needs_class_token

    @property
    def only_by_similarity(self) -> bool:
        """Whether at most one half of the tokens can go, each into or because of one of the other half."""
        return "halves" in self.work and "page-rank" not in self.work


METHODS: dict[str, Method] = {
    "zero-tprune": Method(
        "ztdeploy.host.pruning.zero_tprune:ZeroTPrune",
        frozenset({"page-rank", "halves"}),
        _RANKING | SIMILARITY_OPTIONS,
    ),
    "tome": Method(
        "ztdeploy.host.pruning.tome:ToMe",
        frozenset({"halves", "merging"}),
        _COMPARING | {"proportional"},
        merges=True,
        inside=True,
        every_block=True,
    ),
    "zero-tprune-merge": Method(
        "ztdeploy.host.pruning.zero_tprune_merge:ZeroTPruneMerge",
        frozenset({"page-rank", "halves", "partners", "merging"}),
        _RANKING | SIMILARITY_OPTIONS | _PARTNERS | COHERENCE_OPTIONS,
        merges=True,
        late=True,
    ),
    "novelty-merge": Method(
        "ztdeploy.host.pruning.novelty_merge:NoveltyMerge",
        frozenset({"page-rank", "distances", "partners", "merging"}),
        _PARTNERS | COHERENCE_OPTIONS | _NOVELTY,
        merges=True,
        late=True,
    ),
    "ats": Method("ztdeploy.host.pruning.ats:AdaptiveSampling", needs_class_token=True),
    "evit": Method(
        "ztdeploy.host.pruning.evit:EVit", frozenset({"merging"}), merges=True, fuses=True, needs_class_token=True
    ),
    "wpr": Method("ztdeploy.host.pruning.wpr_only:WprOnly", frozenset({"page-rank"}), _RANKING),
    "random": Method("ztdeploy.host.pruning.random_drop:RandomDrop"),
    "slice": Method("ztdeploy.host.pruning.slice_first:SliceFirst"),
}


def method_named(name: str) -> Method:
    """
    Raises:
        ScheduleError: there is no such method.
    """
    if name not in METHODS:
        raise ScheduleError(f"pruning method '{name}'", "a known method", did_you_mean(name, METHODS))
    return METHODS[name]


def check_options(name: str, options: MethodOptions) -> None:
    """
    Raises:
        ScheduleError: an option is not at its default that the method does not know; no such method.
    """
    known = method_named(name).options
    unknown = sorted(options.changed - known)
    if unknown:
        others = [other for other, method in METHODS.items() if options.changed <= method.options]
        raise ScheduleError(
            f"option {', '.join(unknown)} for method '{name}'",
            f"of the method's own options: {', '.join(sorted(known)) or 'it has none'}",
            f"remove it{f', or choose {others[0]}' if others else ''}",
        )
