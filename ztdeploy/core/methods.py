"""The pruning methods, and the facts about each that schedules, the cost model and readers of bundles need.

To add one, write a file in `ztdeploy/host/pruning/` with its pruning layer, a subclass of `PruningLayer` or of
`DroppingLayer`, and add a line to `METHODS` below: `"name": Method("module:Class")`, and in it what differs from the
defaults of `Method`. An installed package adds one with an entry point of the group `ztdeploy.methods`,
`name = "module:attribute"`, where the attribute is a `Method`; that module must be importable without PyTorch, since
the target half reads the table as well.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pkgutil import resolve_name
from typing import Literal

from ztdeploy.core.errors import ScheduleError, did_you_mean
from ztdeploy.core.options import MethodOptions
from ztdeploy.core.tables import with_entry_points

#: What a build without `--method` takes: it keeps most of the answers at equal latency (docs/explanation/fidelity.md).
DEFAULT_METHOD = "novelty-merge"
#: The paper's. A keep ratio means what this method computes with it, for methods with schedules of their own as well.
PAPER_METHOD = "zero-tprune"
ENTRY_POINTS = "ztdeploy.methods"  #: the group of those of installed packages
#: What a pruning layer computes. "page-rank": the ranking; "halves": similarities of one half of the tokens to the
#: other, by the option `feature`; "token-halves": the same by whole tokens; "energies": those of all keys to all, and
#: of those that go to as many others; "distances": those of all tokens to all; "partners": those of tokens that go to
#: tokens that stay; "received": attention that each token gets from all; "merging": weighted sums; "mixing":
#: values weighed by attention; "predictor": a network of the tokens' width; "head-predictors": of each head's. Rows of
#: class attention are not counted.
Work = Literal[
    "page-rank",
    "halves",
    "token-halves",
    "energies",
    "distances",
    "partners",
    "received",
    "merging",
    "mixing",
    "predictor",
    "head-predictors",
]
#: What a keep ratio alone means. "thirds": that share of the tokens stays at each of three layers; "late": more layers,
#: of which the first stands as late as the ratio allows; "count": every block drops the same number of tokens;
#: "count-from-2": every block but the first; "count-in-thirds": each of three layers; "share": every block keeps the
#: same share; "curve": the shape of DiffRate's published counts.
Spread = Literal["thirds", "late", "count", "count-from-2", "count-in-thirds", "share", "curve"]
#: Which tokens a merging method drops all the same. "early": those of layers in the first half of the blocks;
#: "unimportant": those that do not go by similarity; "by-image": those of images whose scores differ enough.
Drops = Literal["early", "unimportant", "by-image"]

_RANKING = frozenset({"start", "head_filter", "join"})
_COMPARING = frozenset({"feature", "metric"})
_PARTNERS = frozenset({"partner", "least_similarity", "proportional", "coherent"})
#: Exponents of what is lost with a token.
NOVELTY_OPTIONS = frozenset({"importance_power", "size_power", "distance_power", "average_power"})
#: Options without effect where `coherent` is false.
COHERENCE_OPTIONS = frozenset({"coherence_power", "update_power"})
#: Options without effect where the S-stage drops nothing.
SIMILARITY_OPTIONS = frozenset({"order", "partition"}) | _COMPARING


@dataclass(frozen=True)
class Trained:
    """The part of a method's pruning layers that is trained, as published checkpoints hold it beside the network."""

    names: str  #: what the names of a layer's weights begin with; `{stage}` counts the layers of a schedule from 0
    keep_ratio: float = 0.7  #: of published checkpoints; a build takes it where it is given neither ratio nor schedule

    def stage_of(self, name: str) -> int | None:
        """The layer that a tensor of a checkpoint belongs to; None: to no pruning layer."""
        found = re.match(re.escape(self.names).replace(r"\{stage\}", "(0|[1-9][0-9]{0,2})"), name)
        return int(found[1]) if found else None


@dataclass(frozen=True)
class Method:
    """Facts about a method that need no import of it."""

    layer: str  #: "module:Class" of its pruning layer
    work: frozenset[Work] = frozenset()
    options: frozenset[str] = frozenset()  #: names of the `MethodOptions` that it knows
    merges: bool = False  #: tokens that go are merged into tokens that stay; otherwise they are dropped
    fuses: bool = False  #: all tokens that go become one token, which stands for no patch
    inside: bool = False  #: the layer stands between attention and MLP of its block; otherwise behind the block
    spread: Spread = "thirds"
    drops: Drops | None = None
    needs_class_token: bool = False
    decides_by_image: bool = True  #: False: the same tokens go from every image
    reads_tokens: bool = False  #: the choice depends on the block's output tokens
    #: The head reads what the prefix tokens were behind each block with a layer, and not only behind the last.
    reads_blocks: bool = False
    trained: Trained | None = None  #: its layers have weights of their own; None: they have none

    @property
    def only_by_similarity(self) -> bool:
        """Whether tokens go only by their similarity to one of the other half, so that at most half of them can go."""
        return bool(self.work & {"halves", "token-halves", "energies"}) and "page-rank" not in self.work


class MethodTable(Mapping[str, Method]):
    """Methods by name: our own, and those of installed packages, whose names never replace ours."""

    def __init__(self, own: dict[str, Method]) -> None:
        self.own = own

    def __getitem__(self, name: str) -> Method:
        """
        Raises:
            KeyError: there is no such method.
            ScheduleError: the package that adds the method is broken.
        """
        if name in self.own:
            return self.own[name]
        reference = self._references()[name]
        try:
            method = resolve_name(reference)
        except Exception as error:  # of somebody else's code
            raise _broken(name, reference, f"{type(error).__name__}: {error}") from error
        if not isinstance(method, Method):
            raise _broken(name, reference, f"it is a {type(method).__name__}")
        return method

    def __iter__(self) -> Iterator[str]:
        return iter(dict.fromkeys([*self.own, *self._references()]))

    def __len__(self) -> int:
        return len(list(iter(self)))

    @staticmethod
    def _references() -> dict[str, str]:
        return with_entry_points({}, ENTRY_POINTS)


def _broken(name: str, reference: str, why: str) -> ScheduleError:
    return ScheduleError(
        f"method '{name}' of an installed package, whose entry point '{reference}' cannot be used ({why})",
        "a ztdeploy.core.methods.Method",
        "repair or uninstall the package",
    )


_PREDICTORS = Trained("score_predictor.{stage}.")  #: DynamicViT's names, which later methods took over

METHODS = MethodTable(
    {
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
            spread="count",
        ),
        "zero-tprune-merge": Method(
            "ztdeploy.host.pruning.zero_tprune_merge:ZeroTPruneMerge",
            frozenset({"page-rank", "halves", "partners", "merging"}),
            _RANKING | SIMILARITY_OPTIONS | _PARTNERS | COHERENCE_OPTIONS,
            merges=True,
            spread="late",
        ),
        "novelty-merge": Method(
            "ztdeploy.host.pruning.novelty_merge:NoveltyMerge",
            frozenset({"page-rank", "distances", "partners", "merging"}),
            _PARTNERS | COHERENCE_OPTIONS | NOVELTY_OPTIONS,
            merges=True,
            spread="late",
        ),
        "ats": Method("ztdeploy.host.pruning.ats:AdaptiveSampling", needs_class_token=True),
        "evit": Method(
            "ztdeploy.host.pruning.evit:EVit", frozenset({"merging"}), merges=True, fuses=True, needs_class_token=True
        ),
        "diffrate": Method(
            "ztdeploy.host.pruning.diffrate:DiffRate",
            frozenset({"partners", "merging"}),
            merges=True,
            drops="unimportant",
            inside=True,
            spread="curve",
            needs_class_token=True,
        ),
        "pitome": Method(
            "ztdeploy.host.pruning.pitome:PiToMe",
            frozenset({"energies", "merging"}),
            merges=True,
            inside=True,
            spread="share",
        ),
        "mctf": Method(
            "ztdeploy.host.pruning.mctf:Mctf",
            frozenset({"received", "token-halves", "merging"}),
            merges=True,
            inside=True,
            spread="count-from-2",
        ),
        "tofu": Method(
            "ztdeploy.host.pruning.tofu:ToFu",
            frozenset({"halves", "merging"}),
            merges=True,
            drops="early",
            inside=True,
            spread="count",
        ),
        "ppt": Method(
            "ztdeploy.host.pruning.ppt:Ppt",
            frozenset({"halves", "merging"}),
            merges=True,
            drops="by-image",
            inside=True,
            spread="count-in-thirds",
            needs_class_token=True,
        ),
        "dynamicvit": Method(
            "ztdeploy.host.pruning.dynamicvit:DynamicViT",
            frozenset({"predictor"}),
            reads_tokens=True,
            trained=_PREDICTORS,
        ),
        "dtps": Method(
            "ztdeploy.host.pruning.tps:PredictedSqueezing",
            frozenset({"predictor", "partners", "merging"}),
            merges=True,
            reads_tokens=True,
            trained=_PREDICTORS,
        ),
        "etps": Method(
            "ztdeploy.host.pruning.tps:AttendedSqueezing",
            frozenset({"partners", "merging"}),
            merges=True,
            inside=True,
            needs_class_token=True,
        ),
        "sp-vit": Method(
            "ztdeploy.host.pruning.sp_vit:SPViT",
            frozenset({"head-predictors", "merging"}),
            merges=True,
            fuses=True,
            reads_tokens=True,
            trained=_PREDICTORS,
        ),
        "heatvit": Method(
            "ztdeploy.host.pruning.heatvit:HeatViT",
            frozenset({"head-predictors", "merging"}),
            merges=True,
            fuses=True,
            reads_tokens=True,
            trained=_PREDICTORS,
        ),
        "as-vit": Method("ztdeploy.host.pruning.as_vit:AdaptiveSparse", frozenset({"mixing"}), needs_class_token=True),
        "a-vit": Method(
            "ztdeploy.host.pruning.a_vit:AViT",
            options=frozenset({"halting_scale", "halting_center"}),
            spread="count",
            needs_class_token=True,
            reads_tokens=True,
            reads_blocks=True,
        ),
        "power-bert": Method("ztdeploy.host.pruning.power_bert:PowerBert", frozenset({"received"}), spread="count"),
        "spatten": Method("ztdeploy.host.pruning.spatten:SpAtten", frozenset({"received"}), spread="count"),
        "wpr": Method("ztdeploy.host.pruning.wpr_only:WprOnly", frozenset({"page-rank"}), _RANKING),
        "random": Method("ztdeploy.host.pruning.random_drop:RandomDrop", decides_by_image=False),
        "slice": Method("ztdeploy.host.pruning.slice_first:SliceFirst", decides_by_image=False),
    }
)


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
        ScheduleError: an option that the method does not know is not at its default; no such method.
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
