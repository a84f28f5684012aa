"""TensorRT plugins that stand in for the scoring subgraphs of pruning layers; the contract is in `plugins/README.md`.

The names here are what an exported graph and the C++ library must agree on.
"""

from __future__ import annotations

from typing import Final

from ztdeploy.core.methods import COHERENCE_OPTIONS, NOVELTY_OPTIONS, method_named
from ztdeploy.core.options import MethodOptions

#: ONNX domain and plugin namespace.
NAMESPACE: Final = "ztdeploy"
VERSION: Final = "1"
WEIGHTED_PAGE_RANK: Final = "ZtWeightedPageRank"
SIMILARITY_PRUNE: Final = "ZtSimilarityPrune"
#: The options that the kernels know, and those of what a layer does when they are done.
_KNOWN: Final = (
    frozenset({"start", "head_filter", "join", "partner", "least_similarity", "proportional", "coherent"})
    | COHERENCE_OPTIONS
    | NOVELTY_OPTIONS
)


def unknown_options(method: str, options: MethodOptions) -> tuple[str, ...]:
    """The options that keep a method's graphs on plain operators; none where plugins would have nothing to do."""
    if "page-rank" not in method_named(method).work:
        return ()
    known = _KNOWN | ({"feature"} if options.feature in ("queries", "values") else set())  # averaged as keys are
    return tuple(sorted(options.changed - known))
