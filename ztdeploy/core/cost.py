"""What plans cost in multiply-adds, and which schedule costs nearest to a given amount."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Sequence

from ztdeploy.core.methods import Method, method_named
from ztdeploy.core.options import DEFAULT_OPTIONS, MethodOptions
from ztdeploy.core.plan import LayerPlan, TokenPlan, compared_width, plan
from ztdeploy.core.schedule import Architecture, PruningSchedule

#: A plan's multiply-adds, in units of 1e9.
Count = Callable[[Architecture, TokenPlan], float]
#: `at_cost` tries keep ratios in steps of this.
_STEP = 0.001


def gmacs(
    architecture: Architecture, tokens_per_block: Sequence[int], mlp_tokens_per_block: Sequence[int] | None = None
) -> float:
    """Multiply-adds of one image through the whole model, in units of 1e9, without the pruning layers.

    Args:
        architecture: the model's sizes.
        tokens_per_block: that each block's attention sees.
        mlp_tokens_per_block: that its MLP sees; None: the same.
    """
    d = architecture.embed_dim
    ends = architecture.patch_tokens * architecture.patch_dim * d + d * architecture.num_classes
    ends += architecture.around_macs
    pairs = zip(tokens_per_block, mlp_tokens_per_block or tokens_per_block, strict=True)
    return sum(block_gmacs(architecture, *pair) for pair in pairs) + ends / 1e9


def block_gmacs(architecture: Architecture, tokens: int, mlp_tokens: int | None = None) -> float:
    """Multiply-adds of one block, in units of 1e9, per image.

    At N tokens, and M in the MLP: 4 N D^2 (qkv, proj) + 2 N^2 D (scores, weighted sum) + 2 M D D_mlp.
    """
    n, d, mlp = tokens, architecture.embed_dim, architecture.mlp_dim
    m = n if mlp_tokens is None else mlp_tokens
    return (4 * n * d * d + 2 * n * n * d + 2 * m * d * mlp) / 1e9


def front_gmacs(architecture: Architecture, blocks: int) -> float:
    """Multiply-adds of the patch embedding and the first blocks of the unpruned model, in units of 1e9, per image."""
    embedding = architecture.patch_tokens * architecture.patch_dim * architecture.embed_dim / 1e9
    return embedding + blocks * block_gmacs(architecture, architecture.tokens)


def whole_block_gmacs(architecture: Architecture, token_plan: TokenPlan) -> float:
    """Multiply-adds of a plan as papers count and PyTorch computes: a whole block runs before a layer behind it."""
    return gmacs(architecture, token_plan.tokens_per_block, token_plan.mlp_tokens_per_block)


def schedule_gmacs(architecture: Architecture, token_plan: TokenPlan) -> float:
    """Multiply-adds of a plan's graph whose head reads all tokens.

    Dropped tokens go no further than their block's attention: from its projection on, a block computes only the tokens
    that stay (`host/graph/live_rows.py`), unless the choice depends on its output tokens. So the result is below that
    of `whole_block_gmacs`. Keep ratios and shares are defined by it, so that they mean the same for every head.
    """
    d, mlp = architecture.embed_dim, architecture.mlp_dim
    unread = sum(
        (layer.tokens_in - layer.tokens_out) * (d * d + (0 if layer.inside else 2 * d * mlp))
        for layer in token_plan.layers
        if not layer.reads_gone
    )
    return whole_block_gmacs(architecture, token_plan) - unread / 1e9


def plan_gmacs(architecture: Architecture, token_plan: TokenPlan) -> float:
    """Multiply-adds of a plan's graph: of the last block it computes only what the head reads.

    Where that is the class token, this is one row of attention, projection and MLP. A pruning layer behind the last
    block leaves the block as it is, and one inside leaves everything ahead of the MLP as it is.
    """
    d, mlp, last = architecture.embed_dim, architecture.mlp_dim, architecture.depth - 1
    tokens, in_mlp = token_plan.tokens_per_block[last], token_plan.mlp_tokens_per_block[last]
    layer = next((one for one in token_plan.layers if one.block == last), None)
    if architecture.read_tokens is None or (layer is not None and not layer.inside):
        return schedule_gmacs(architecture, token_plan)
    unread = (in_mlp - architecture.read_tokens) * 2 * d * mlp
    if layer is None:
        unread += (tokens - architecture.read_tokens) * (2 * tokens * d + d * d)
    return schedule_gmacs(architecture, token_plan) - unread / 1e9


def pruning_gmacs(
    architecture: Architecture,
    token_plan: TokenPlan,
    method: str,
    options: MethodOptions = DEFAULT_OPTIONS,
) -> float:
    """Multiply-adds of the pruning layers themselves, in units of 1e9, per image; 0 for methods that score nothing."""
    facts = method_named(method)
    return sum(_layer_macs(architecture, layer, facts, options) for layer in token_plan.layers) / 1e9


def _layer_macs(architecture: Architecture, layer: LayerPlan, method: Method, options: MethodOptions) -> int:
    """H N^2 per weighted-page-rank iteration, and for received attention; |A| |B| f for the similarities of two groups
    with features of length f, (N - k) k f for those of the tokens that go to the tokens that stay; (N - k) k D to
    merge; N^2 D for the distances of all tokens (with D folded where they are many), and for values weighed by
    attention; P^2 d + (N - k)^2 d for energies of P patch tokens; for predictors see `predictor_macs`. Distances cost
    what products do.
    """
    n, work, gone = layer.tokens_in, method.work, layer.tokens_in - layer.tokens_out
    head, whole = architecture.embed_dim // architecture.num_heads, architecture.embed_dim
    widths = {"keys": head, "queries": head, "values": head, "all-keys": whole, "tokens": whole}
    by_similarity = "halves" in work and layer.similarity_drop > 0
    importance_first = by_similarity and options.order == "importance-first"
    total = 0
    if "page-rank" in work:
        total += _iterations(layer, method, options) * architecture.num_heads * n * n
    if by_similarity:
        live = n - layer.importance_drop if importance_first else n
        group_a, group_b = options.groups(live, layer.prefix_tokens)
        total += group_a * group_b * widths[options.feature]
    patches = n - layer.prefix_tokens
    if "received" in work:
        total += architecture.num_heads * n * n
    if "token-halves" in work:
        total += (patches // 2) * (patches - patches // 2) * whole
    if "energies" in work:
        total += (patches * patches + gone * gone) * head
    if "distances" in work:
        total += n * n * compared_width(n, whole)
    if "mixing" in work:
        total += n * n * whole
    if "partners" in work and not layer.drops:
        total += gone * (layer.tokens_out - layer.prefix_tokens) * widths[options.partner]
    if "merging" in work and not layer.drops:
        total += gone * layer.tokens_out * architecture.embed_dim
    if "predictor" in work:
        total += (n - layer.prefix_tokens) * predictor_macs(whole)
    if "head-predictors" in work:
        heads = architecture.num_heads
        total += (n - layer.prefix_tokens) * (heads * predictor_macs(head) + 2 * heads * (heads // 2))
    return total


def predictor_macs(width: int) -> int:
    """Multiply-adds of DynamicViT's predictor for a token: linear layers from D to D, D / 2, D / 4 and 2 numbers."""
    return width * width + width * (width // 2) + (width // 2) * (width // 4) + (width // 4) * 2


def _iterations(layer: LayerPlan, method: Method, options: MethodOptions) -> int:
    """Weighted-page-rank iterations of both stages together; a ranking that nothing reads is not computed."""
    by_similarity = "halves" in method.work and layer.similarity_drop > 0
    by_importance = "halves" not in method.work or layer.importance_drop > 0
    by_rank = by_similarity and options.partition != "random"
    if options.order == "importance-first":
        return layer.iterations * int(by_importance or by_rank)
    return int(by_rank) + layer.iterations * int(by_importance)


# -------------------- schedules of equal cost


def share_of_dense(schedule: PruningSchedule, architecture: Architecture, count: Count = schedule_gmacs) -> float:
    """A schedule's multiply-adds over the baseline's, where the head reads all tokens of both."""
    dense = gmacs(architecture, (architecture.tokens,) * architecture.depth)
    return count(architecture, plan(schedule, architecture)) / dense


def at_cost(
    make: Callable[[float], PruningSchedule], architecture: Architecture, share: float, count: Count = schedule_gmacs
) -> PruningSchedule:
    """The schedule at the keep ratio below 1 whose multiply-adds are nearest to a share of the baseline's.

    Args:
        make: a keep ratio in (0, 1) to a schedule, which costs the more the higher the ratio.
        share: in (0, 1); what no ratio reaches gives the nearest schedule.
        count: how multiply-adds are counted: as graphs compute, or whole blocks as papers do.
    """

    def schedule(step: int) -> PruningSchedule:
        return make(round(step * _STEP, 6))

    steps = range(1, round(1 / _STEP))
    return schedule(nearest_step(steps, share, lambda step: share_of_dense(schedule(step), architecture, count)))


def nearest_step(steps: Sequence[int], wanted: float, cost: Callable[[int], float]) -> int:
    """The step whose cost is nearest to the one wanted, where costs rise from step to step."""
    after = bisect_left(steps, wanted, key=cost)
    near = [steps[min(max(0, place), len(steps) - 1)] for place in (after - 1, after)]
    return min(near, key=lambda step: abs(cost(step) - wanted))
