"""From the runtime's account of every node to where the time of a call goes, and how attention is computed. Pure.

Nodes are named after the modules that they came from (`blocks.2/attn/qkv/MatMul_0`, `blocks.2/prune/wpr/Mul_3`). What
a runtime merges or inserts may have a name of its own (`BiasGelu_token_192`, `Squeeze`): such a node belongs where the
next node with a proper name does, which as a rule is the one that it works for.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median

from ztdeploy.core.errors import EnvironmentLacksError
from ztdeploy.core.names import block_of, in_pruning_layer
from ztdeploy.core.setting import Setting
from ztdeploy.target.backends.base import NodeRun, ProfiledCall
from ztdeploy.target.measure.sweep_report import BlockAttention, Kind, OperatorProfile, OperatorTime, Part

#: Attention in a single operator.
FUSED_ATTENTION = frozenset(
    (
        "Attention",
        "MultiHeadAttention",
        "PackedAttention",
        "PackedMultiHeadAttention",
        "GroupQueryAttention",
        "QAttention",
    )
)
PRODUCTS = frozenset(("MatMul", "FusedMatMul", "TransposeMatMul", "MatMulNBits", "MatMulInteger", "QLinearMatMul"))
_KINDS: dict[Kind, str] = {
    "linear": "Gemm FusedGemm Conv FusedConv NhwcFusedConv Einsum QLinearConv ConvInteger DynamicQuantizeMatMul",
    "norm": "LayerNormalization SkipLayerNormalization SimplifiedLayerNormalization SkipSimplifiedLayerNormalization"
    " RMSNormalization GroupNormalization InstanceNormalization BatchNormalization LpNormalization",
    "activation": "Gelu FastGelu BiasGelu QuickGelu Erf Relu Tanh Sigmoid Swish BiasSplitGelu HardSwish Elu Silu",
    "elementwise": "Add Sub Mul Div Sqrt Pow Exp Log Neg Abs Clip Max Min Sum Mean Where And Or Not Equal Greater Less"
    " GreaterOrEqual LessOrEqual ReduceSum ReduceMean ReduceMax ReduceMin ReduceL2 BiasAdd QuickAdd Reciprocal",
    "data movement": "Reshape Transpose Squeeze Unsqueeze Slice Split Concat Gather GatherND GatherElements Expand Tile"
    " Pad Identity Flatten Cast Shape ConstantOfShape Constant ScatterElements ScatterND ReorderInput ReorderOutput"
    " MemcpyToHost MemcpyFromHost QuantizeLinear DequantizeLinear DynamicQuantizeLinear",
}
_KIND_OF: dict[str, Kind] = {operator: kind for kind, operators in _KINDS.items() for operator in operators.split()}
#: Why a block's attention is not one operator.
EXPOSED = "a pruning layer reads its attention matrix"
PLAIN = "its graph has plain operators, and the runtime fused none of them"
UNLIKE = "it has plain operators, though the same engine computes attention in one operator elsewhere"
NONE = "no operator in it was recognised as attention"


@dataclass(frozen=True)
class PlacedNode:
    """A node, where it belongs, and the median time of its calls."""

    run: NodeRun
    ms: float
    block: int | None
    pruning: bool

    @property
    def kind(self) -> Kind:
        return "pruning" if self.pruning else kind_of(self.run)


def take_apart(calls: Sequence[ProfiledCall], variant: str, setting: Setting) -> OperatorProfile:
    """Medians over calls of the same engine on inputs of the same shape.

    Raises:
        EnvironmentLacksError: there are no nodes, or not the same ones in every call.
    """
    names = [[(node.name, node.operator) for node in call.nodes] for call in calls]
    if not names or not names[0] or any(other != names[0] for other in names):
        raise EnvironmentLacksError(
            f"a profile of {len(calls)} calls with {sorted({len(own) for own in names})} nodes",
            "the same nodes in every call",
            "install another version of onnxruntime, or leave the details out",
        )
    columns = list(zip(*(call.nodes for call in calls), strict=True))
    nodes = place([column[0] for column in columns], [median(node.ms for node in column) for column in columns])
    between_ms = median(max(0.0, call.ms - sum(node.ms for node in call.nodes)) for call in calls)
    return OperatorProfile(
        variant=variant,
        image_size=setting.image_size,
        batch=setting.batch,
        threads=setting.threads,
        calls=len(calls),
        call_ms=round(sum(node.ms for node in nodes) + between_ms, 6),
        parts=parts_of(nodes),
        operators=operators_of(nodes),
        attention=attention_of(nodes),
        between_ms=round(between_ms, 6),
    )


def place(runs: Sequence[NodeRun], times_ms: Sequence[float]) -> tuple[PlacedNode, ...]:
    """Where each node belongs; they are given in the order in which they run."""
    scopes = [_scope(run.name) for run in runs]
    following: tuple[int | None, bool] | None = None
    filled: list[tuple[int | None, bool] | None] = []
    for scope in reversed(scopes):
        following = scope or following
        filled.append(following)
    filled.reverse()
    last = next((scope for scope in reversed(scopes) if scope is not None), (None, False))
    return tuple(PlacedNode(run, ms, *(scope or last)) for run, ms, scope in zip(runs, times_ms, filled, strict=True))


def _scope(name: str) -> tuple[int | None, bool] | None:
    """Block and whether it is a pruning layer's; None where the name says neither."""
    block = block_of(name)
    return (block, in_pruning_layer(name)) if block is not None or "/" in name else None


def kind_of(run: NodeRun) -> Kind:
    """What a node outside the pruning layers does."""
    if run.operator in FUSED_ATTENTION or run.operator in ("Softmax", "BiasSoftmax"):
        return "attention"
    if run.operator in PRODUCTS:
        return "attention" if _of_activations(run) else "linear"
    return _KIND_OF.get(run.operator, "other")


def _of_activations(run: NodeRun) -> bool:
    """Whether a product is one of two computed tensors; weights are matrices, or packed away and not listed at all."""
    return sum(len(shape) > 2 for shape in run.inputs) > 1


def parts_of(nodes: Sequence[PlacedNode]) -> tuple[Part, ...]:
    """By block, what lies outside last; then by kind, the longest first."""
    sums: dict[tuple[int | None, Kind], float] = defaultdict(float)
    for node in nodes:
        sums[node.block, node.kind] += node.ms
    order = sorted(sums.items(), key=lambda item: (item[0][0] is None, item[0][0] or 0, -item[1], item[0][1]))
    return tuple(Part(block=block, kind=kind, ms=round(ms, 6)) for (block, kind), ms in order)


def operators_of(nodes: Sequence[PlacedNode]) -> tuple[OperatorTime, ...]:
    """The longest first."""
    counts = Counter(node.run.operator for node in nodes)
    sums: dict[str, float] = defaultdict(float)
    for node in nodes:
        sums[node.run.operator] += node.ms
    order = sorted(sums.items(), key=lambda item: (-item[1], item[0]))
    return tuple(OperatorTime(operator=name, count=counts[name], ms=round(ms, 6)) for name, ms in order)


def attention_of(nodes: Sequence[PlacedNode]) -> tuple[BlockAttention, ...]:
    """One record per block that ran."""
    blocks = sorted({node.block for node in nodes if node.block is not None})
    own = {block: [node for node in nodes if node.block == block] for block in blocks}
    operators = {block: tuple(one.run.operator for one in own[block] if one.kind == "attention") for block in blocks}
    fused = {block: not FUSED_ATTENTION.isdisjoint(names) for block, names in operators.items()}
    return tuple(
        BlockAttention(
            block=block,
            fused=fused[block],
            operators=operators[block],
            reason="" if fused[block] else _reason(own[block], anywhere=any(fused.values())),
        )
        for block in blocks
    )


def _reason(nodes: Sequence[PlacedNode], *, anywhere: bool) -> str:
    """Why a block's attention is not one operator; `anywhere`: another block's is."""
    matrices = {
        shape
        for node in nodes
        if node.kind == "attention" and "Softmax" in node.run.operator
        for shape in node.run.outputs
    }
    if any(node.pruning and not matrices.isdisjoint(node.run.inputs) for node in nodes):
        return EXPOSED
    if not any(node.kind == "attention" for node in nodes):
        return NONE
    return UNLIKE if anywhere else PLAIN
