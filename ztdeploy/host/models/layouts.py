"""Find the tensors of a checkpoint that are a model's weights, by the model's own names and shapes.

A file may hold several tables (a model, its average, an optimizer), and a table may hold several networks (a student
and a teacher) and unrelated tensors. Each table is translated to timm's names by every dialect in `dialects`, and each
common prefix is tried. timm's own filters do the rest (OpenAI's and OpenCLIP's towers, Meta's DINOv2 and DINOv3, other
image sizes). The candidate that fills most of the model's tensors wins.
"""

from __future__ import annotations

import re
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import cached_property
from heapq import nlargest
from typing import Any

import torch
from torch import Tensor, nn

from ztdeploy.core.errors import CheckpointError
from ztdeploy.host.models.checkpoint import Tables
from ztdeploy.host.models.dialects import DIALECTS, without_wrappers
from ztdeploy.host.pruning.trained import pruning_weights, readers_of

State = dict[str, Tensor]

#: Parts of transformers: tensors with these names are never left out as unrelated.
_PARTS = {
    *("blocks", "patch_embed", "pos_embed", "cls_token", "dist_token", "reg_token", "register_tokens"),
    *("norm", "norm_pre", "fc_norm", "attn_pool", "head_dist", "aux_head", "rel_pos_bias", "rope", "pre_logits"),
}
#: Parts that only training reads.
_LEFTOVERS = re.compile(r"(.*\.)?(mask_token|position_ids|relative_position_index|num_batches_tracked)$")
#: Words for an average of weights. Averages come first, because usually they are published.
_AVERAGED = re.compile(r"(^|[\W_])(ema|teacher|swa|averaged?|momentum_encoder|target_encoder)([\W_]|$)")
#: Tables with the parameters' names and shapes, but other values.
_OF_OPTIMIZERS = re.compile(r"optim|exp_avg|momentum_buffer|grad", re.IGNORECASE)
#: Names of classifiers other than timm's.
_CLASSIFIER = re.compile(r"head|fc|cls|class|linear|logit|output|\d+$")
#: Forms that cannot be loaded, by a part of a name, and what to do about them.
_UNMERGED = (
    (r"(^|[._])lora_", "LoRA adapters beside the weights", "merge them before (peft: model.merge_and_unload())"),
    (r"(^|\.)_?flat_param", "weights that FSDP flattened", "save a full state_dict (StateDictType.FULL_STATE_DICT)"),
)
_DEEPEST, _LISTED = 12, 3
#: Most tables of a file and prefixes of a table that are tried: files are untrusted, and each try takes time.
_MOST_TABLES, _MOST_PREFIXES = 16, 32


@dataclass(frozen=True, kw_only=True)
class _Head:
    """The classifier in a table."""

    head: State = field(default_factory=dict)  #: under the model's names; empty where none was found
    used: frozenset[str] = frozenset()  #: its names in the table
    head_name: str = ""  #: the head's name in the table, where it is not timm's
    rivals: tuple[str, ...] = ()  #: candidates for the head, where there are several
    wide: int | None = None  #: input width of a head with the model's name, where it does not fit


@dataclass(frozen=True, kw_only=True)
class Fit(_Head):
    """A candidate from a file, and how well it fits."""

    table: str  #: path of the table in the file; "" is the file itself
    prefix: str  #: common prefix of the names
    trunk: State  #: everything but the head, under the model's names
    classes: int | None  #: classes of the head; None without a head
    faults: int  #: number of tensors that are missing, of another shape, or unknown to the model
    unnamed: int  #: names of the model that are missing
    resampled: bool  #: whether positions were resampled to the model's image size
    ignored: tuple[str, ...]  #: names of unrelated tensors
    of_pruning: State  #: weights of pruning layers that were trained, by their names in the table without the prefix
    others: tuple[str, ...] = field(default=(), compare=False)  #: other places that fit equally well

    @property
    def state(self) -> State:
        return {**self.trunk, **self.head}

    @property
    def place(self) -> str:
        return f"{self.table}:{self.prefix}" if self.table and self.prefix else self.table or self.prefix

    @property
    def head_trouble(self) -> str:
        """Why no head was found, in words; empty where the table has none."""
        if self.wide is not None:
            return f" that fits: its own takes {self.wide} numbers"
        return f", but {_listed(self.rivals)} that might be it" if self.rivals else ""

    @property
    def averaged(self) -> bool:
        return _AVERAGED.search(self.place) is not None

    @property
    def remarks(self) -> tuple[str, ...]:
        """Remarks for the user who gave the file."""
        lines = []
        if self.others:
            why = "an average comes first" if self.averaged else "the first in the file"
            lines.append(f"took '{self.place}' ({why}), where {_listed(self.others)} would fit as well")
        if self.head_name:
            lines.append(f"took '{self.head_name}' for the head")
        if self.ignored:
            count = "1 tensor that is" if len(self.ignored) == 1 else f"{len(self.ignored)} tensors that are"
            lines.append(f"left out {count} not the network's: {_listed(self.ignored)}")
        if self.of_pruning:
            readers = ", ".join(readers_of(next(iter(self.of_pruning))))
            lines.append(f"{len(self.of_pruning)} tensors are named as weights of pruning layers: --method {readers}")
        return tuple(lines)


def best_fit(tables: Tables, model: nn.Module, where: str) -> Fit:
    """The tensors of a file that the model can load, or the nearest candidate.

    Args:
        model: only its names and shapes matter, and not its number of classes.
        where: the name of the file in errors.

    Raises:
        CheckpointError: the file holds weights in a form that has to be changed by whoever trained them.
    """
    target = _Target(model)
    usable = {table: state for table, state in tables.items() if not _OF_OPTIMIZERS.search(table)} or tables
    largest = set(nlargest(_MOST_TABLES, usable, key=lambda table: len(usable[table])))
    fits = [fit for table, state in usable.items() if table in largest for fit in _fits(table, state, target)]
    if len(usable) > 1 and not any(fit.head and not fit.faults for fit in fits):
        # Its parts may be tables of their own.
        whole = {f"{table}.{name}".lstrip("."): usable[table][name] for table in usable for name in usable[table]}
        fits += _fits("", whole, target)
    best = min(fits, key=lambda fit: (fit.faults, fit.unnamed, not fit.head, not fit.averaged))
    if best.faults:
        for pattern, what, fix in _UNMERGED:
            if any(re.search(pattern, name) for state in tables.values() for name in state):
                raise CheckpointError(f"checkpoint '{where}' holds {what}", "the network's own weights", fix)
        return best
    others = {fit.place: fit for fit in fits if not fit.faults and fit.place != best.place and not _same(fit, best)}
    return replace(best, others=tuple(others))


class _Target:
    """The model's names and shapes, with the head apart."""

    def __init__(self, model: nn.Module) -> None:
        known: Any = model
        self.model = model
        named = (getattr(model, "pretrained_cfg", None) or {}).get("classifier") or "head"
        self.heads = (named,) if isinstance(named, str) else tuple(named)
        self.of_heads = tuple(f"{head}." for head in self.heads)
        self.width = int(getattr(known, "head_hidden_size", None) or known.embed_dim)
        self.own = {name: tensor for name, tensor in model.state_dict().items() if not name.startswith(self.of_heads)}
        self.parts = {name.partition(".")[0] for name in self.own} | _PARTS

    @cached_property
    def filter(self) -> Callable[..., State]:
        """The filter for published checkpoints of the module that defines the model's class."""
        module: Any = sys.modules[type(self.model).__module__]
        known = getattr(module, "checkpoint_filter_fn", None) or getattr(module, "filter_checkpoint", None)
        if known is None:
            return lambda state, _model: state
        # DeiT-III published its layer scales under older names; the filter for all others leaves them alone.
        takes_scales = "adapt_layer_scale" in known.__code__.co_varnames
        return (lambda state, one: known(state, one, adapt_layer_scale=True)) if takes_scales else known

    def lacks(self, state: State) -> list[str]:
        """The model's names that are missing in a state, or differ in shape or type."""
        return [name for name, own in self.own.items() if name not in state or not _alike(state[name], own)]

    def strange(self, state: State) -> list[str]:
        """Parts of a network in a state that the model lacks, such as learned prompts."""

        def is_strange(name: str, tensor: Tensor) -> bool:
            is_token = "." not in name and tensor.dim() == 3 and tensor.shape[::2] == (1, self.width)
            return name.partition(".")[0] in self.parts or is_token

        unknown = {name: tensor for name, tensor in state.items() if name not in self.own}
        foreign = (name for name in unknown if not name.startswith(self.of_heads) and not _LEFTOVERS.match(name))
        return [name for name in foreign if is_strange(name, unknown[name])]


def _alike(one: Tensor, other: Tensor) -> bool:
    return one.shape == other.shape and one.is_floating_point() == other.is_floating_point()


def _fits(table: str, state: State, target: _Target) -> Iterator[Fit]:
    """The candidates of a table, for each dialect and each prefix."""
    # Cast ahead of resampling and adding, whose results fp16 would round.
    clean = {
        n: tensor.float() if tensor.is_floating_point() else tensor for n, tensor in without_wrappers(state).items()
    }
    for dialect in DIALECTS:
        named: State | None = None
        with suppress(RuntimeError, IndexError):  # shapes that no tensor of the dialect has
            named = dialect(clean)
        if named is not None:
            for prefix in _prefixes(named, min(len(target.own), len(named)) // 2):
                yield _fit(table, prefix, named, target)


def _prefixes(names: Iterable[str], least: int) -> list[str]:
    """No prefix, and each prefix of whole words that enough names share."""
    counts: Counter[str] = Counter()
    for name in names:
        words = name.split(".")[:-1][:_DEEPEST]
        counts.update(".".join(words[:depth]) + "." for depth in range(1, len(words) + 1))
    shared = [prefix for prefix, count in counts.most_common(_MOST_PREFIXES) if count >= max(1, least)]
    return ["", *sorted(shared, key=list(counts).index)]


def _fit(table: str, prefix: str, state: State, target: _Target) -> Fit:
    inside = {name[len(prefix) :]: tensor for name, tensor in state.items() if name.startswith(prefix)}
    trunk, resampled = _filtered(inside, target)
    lacks, strange = target.lacks(trunk), target.strange(trunk)
    placed = {prefix + name: tensor for name, tensor in trunk.items()}
    head = _head({**state, **placed}, prefix, target)
    taken = {prefix + name for name in (*target.own, *strange)} | head.used
    of_pruning = pruning_weights({name: trunk[name] for name in trunk if prefix + name not in taken})
    taken |= {prefix + name for name in of_pruning}
    rest = [*(name for name in state if not name.startswith(prefix)), *placed]
    return Fit(
        **vars(head),
        table=table,
        prefix=prefix,
        trunk={name: trunk[name] for name in (*target.own, *strange) if name in trunk},
        classes=next(iter(head.head.values())).shape[0] if head.head else None,
        faults=len(lacks) + len(strange),
        unnamed=sum(name not in trunk for name in target.own),
        resampled=resampled,
        ignored=tuple(name for name in rest if name not in taken and not _LEFTOVERS.match(name)),
        of_pruning=of_pruning,
    )


def _filtered(state: State, target: _Target) -> tuple[State, bool]:
    """The result of timm's own filter, where the state does not fit and the filter helps."""
    if not (target.lacks(state) or target.strange(state)) or _other_patches(state, target.own):
        return state, False
    try:
        found = target.filter(dict(state), target.model)
    except (KeyError, ValueError, RuntimeError, AttributeError, AssertionError, IndexError, TypeError):
        return state, False  # the filter expected another form; errors will name what does not fit
    found |= {name: tensor for name, tensor in state.items() if "pre_logits" in name}  # which the filter drops silently
    before, after = (one.get("pos_embed") for one in (state, target.own))
    return found, before is not None and after is not None and before.shape != after.shape


def _other_patches(state: State, own: State) -> bool:
    """Whether patches have another size, which resampling would turn into another model."""
    ours = own.get("patch_embed.proj.weight")
    theirs = [
        tensor for name, tensor in state.items() if name.endswith("patch_embed.proj.weight") and tensor.dim() == 4
    ]
    return ours is not None and any(tensor.shape[2:] != ours.shape[2:] for tensor in theirs)


def _head(state: State, prefix: str, target: _Target) -> _Head:
    """The classifier beside the tensors with a prefix, or further outside."""
    words = prefix.split(".")[:-1]
    places = ["".join(f"{word}." for word in words[:depth]) for depth in range(len(words), -1, -1)]
    for place in places:
        found = {head: _linear(state, f"{place}{head}", target.width) for head in target.heads}
        if all(found.values()):
            head = {f"{name}.{part}": tensor for name, linear in found.items() for part, tensor in linear.items()}
            return _Head(head=head, used=frozenset(place + name for name in head))
    names = tuple(name for place in places for name in _classifiers(state, place, prefix, target))
    if len(names) != 1 or len(target.heads) != 1:
        called = [state.get(f"{place}{target.heads[0]}.weight") for place in places]
        return _Head(
            rivals=names, wide=next((one.shape[1] for one in called if one is not None and one.dim() == 2), None)
        )
    linear = _linear(state, names[0], target.width)
    head = {f"{target.heads[0]}.{part}": tensor for part, tensor in linear.items()}
    return _Head(head=head, used=frozenset(f"{names[0]}.{part}" for part in linear), head_name=names[0])


def _linear(state: State, name: str, width: int) -> State:
    """Weight and bias of a linear layer with this input width; a missing bias becomes zeros."""
    weight, bias = state.get(f"{name}.weight"), state.get(f"{name}.bias")
    if weight is None or weight.dim() != 2 or weight.shape[1] != width:
        return {}
    return {"weight": weight, "bias": torch.zeros(weight.shape[0]) if bias is None else bias}


def _classifiers(state: State, place: str, prefix: str, target: _Target) -> list[str]:
    """Modules under a prefix that have a classifier's name and consist of one linear layer."""
    modules: dict[str, list[str]] = {}
    for name in state:
        top = name[len(place) :].partition(".")[0]
        own = place == prefix and top in target.parts
        if name.startswith(place) and not own and not prefix.startswith(f"{place}{top}.") and _CLASSIFIER.search(top):
            modules.setdefault(top, []).append(name)
    found = []
    for names in modules.values():
        linear = names[0].rpartition(".")[0]
        alone = {*names} == {f"{linear}.weight", f"{linear}.bias"}
        if alone and _linear(state, linear, target.width):
            found.append(linear)
    return found


def _same(one: Fit, other: Fit) -> bool:
    """Whether two candidates have the same values, as where a file has a table under two names."""
    return all(
        name in other.trunk
        and not (tensor.is_meta or other.trunk[name].is_meta)  # without values, see `checkpoint.read_tables`
        and torch.equal(tensor, other.trunk[name])
        for name, tensor in one.trunk.items()
    )


def _listed(names: Iterable[str]) -> str:
    quoted = [f"'{name}'" for name in names]
    more = f" and {len(quoted) - _LISTED} more" if len(quoted) > _LISTED else ""
    return ", ".join(quoted[:_LISTED]) + more
