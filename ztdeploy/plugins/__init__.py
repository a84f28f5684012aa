"""TensorRT plugins that stand in for the scoring subgraphs of pruning layers; the contract is in `plugins/README.md`.

The names here are what an exported graph, the C++ library and the ahead-of-time kernels must agree on.
"""

from __future__ import annotations

from typing import Final

#: ONNX domain and plugin namespace.
NAMESPACE: Final = "ztdeploy"
VERSION: Final = "1"
WEIGHTED_PAGE_RANK: Final = "ZtWeightedPageRank"
#: The page rank of a layer in which no token is gone yet, as an ahead-of-time plugin: inputs cannot be optional there.
WEIGHTED_PAGE_RANK_ALL: Final = f"{WEIGHTED_PAGE_RANK}All"
SIMILARITY_PRUNE: Final = "ZtSimilarityPrune"
