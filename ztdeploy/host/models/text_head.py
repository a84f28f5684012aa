"""A head of text embeddings for image towers trained with text: logits are scaled cosines to each embedding.

`build --text-head FILE` reads the embeddings from a safetensors file, which the user computed with the text tower of
the same model. The file is untrusted.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from ztdeploy.core.bundle import sha256_of
from ztdeploy.core.errors import CheckpointError
from ztdeploy.core.manifest import TextHeadRecord
from ztdeploy.host.models.checkpoint import read_checkpoint

#: Names of the matrix `[classes, D]`: ours, open_clip's, and that of transformers.
MATRIX = ("text_embeddings", "text_features", "text_embeds")
SCALE, BIAS = "logit_scale", "logit_bias"  #: names in both libraries; the scale is stored as its natural logarithm
#: Default scale: CLIP's, which training clips at 100.
DEFAULT_SCALE = 100.0
_LARGEST_LOG = 10.0
_TINY = 1e-24  #: avoids a division by 0 for an embedding of zeros


@dataclass(frozen=True)
class TextEmbeddings:
    """The content of such a file."""

    path: Path
    matrix: Tensor  #: fp32 `[classes, D]`, rows of length 1
    scale: float  #: factor of cosines
    bias: float  #: added to all logits

    @property
    def record(self) -> TextHeadRecord:
        classes, dimension = self.matrix.shape
        return TextHeadRecord(
            origin=self.path.name,
            sha256=sha256_of(self.path),
            classes=classes,
            dimension=dimension,
            scale=self.scale,
            bias=self.bias,
        )


class TextHead(nn.Module):
    """From embeddings `[B, D]` to logits `[B, classes]`: scale * cosine + bias."""

    weight: Tensor
    scale: Tensor
    bias: Tensor

    def __init__(self, texts: TextEmbeddings) -> None:
        super().__init__()
        self.register_buffer("weight", texts.matrix.T.contiguous())  # a plain product, which `graph.old_runtimes` knows
        self.register_buffer("scale", torch.tensor(texts.scale))
        self.register_buffer("bias", torch.tensor(texts.bias))

    def forward(self, embedding: Tensor) -> Tensor:
        length = ((embedding * embedding).sum(-1, keepdim=True) + _TINY).sqrt()
        return embedding / length @ self.weight * self.scale + self.bias


def read_text_embeddings(path: Path) -> TextEmbeddings:
    """
    Raises:
        CheckpointError: the file is not safetensors, has other tensors, or values that make no head.
    """
    if path.suffix != ".safetensors":
        raise _unfit(path, f"ends in '{path.suffix}'", "a .safetensors file")
    if not path.is_file():
        raise CheckpointError(f"text head '{path}' is not a file", "a .safetensors file", "check the path")
    state = read_checkpoint(path)
    names = [name for name in MATRIX if name in state]
    if len(names) != 1 or state.keys() - {*MATRIX, SCALE, BIAS}:
        found = ", ".join(f"'{name}'" for name in sorted(state)[:5]) or "nothing"
        raise _unfit(path, f"holds {found}", f"one of {', '.join(MATRIX)}; {SCALE} and {BIAS} if there are any")
    matrix = state[names[0]]
    if matrix.dim() != 2 or not matrix.is_floating_point() or 0 in matrix.shape:
        expected = "floating point numbers [classes, D], a row per class"
        raise _unfit(path, f"has {names[0]} of {_described(matrix)}", expected)
    rows = matrix.double()
    lengths = rows.norm(dim=1)
    if not bool((lengths > 0).all()):
        raise _unfit(path, f"has zeros alone in row {int((lengths == 0).nonzero()[0])} of {names[0]}", "a direction")
    log_scale, bias = (_scalar(state, name, path) for name in (SCALE, BIAS))
    if log_scale is not None and abs(log_scale) > _LARGEST_LOG:
        raise _unfit(path, f"has {SCALE} {log_scale:g}", "its natural logarithm, such as 4.605 for 100")
    scale = DEFAULT_SCALE if log_scale is None else math.exp(log_scale)
    return TextEmbeddings(path, (rows / lengths[:, None]).float(), scale, bias or 0.0)


def with_text_head(head: nn.Module, texts: TextEmbeddings, dimension: int) -> nn.Module:
    """The head that replaces a tower's own.

    Args:
        head: the tower's own head; a projection, or none.
        dimension: width of its output.

    Raises:
        CheckpointError: the text embeddings have another dimension.
    """
    found = texts.matrix.shape[1]
    if found != dimension:
        raise _unfit(texts.path, f"is of dimension {found}", f"{dimension}, as the model's own embedding")
    return nn.Sequential(OrderedDict(projection=head, text_head=TextHead(texts)))


def _scalar(state: dict[str, Tensor], name: str, path: Path) -> float | None:
    tensor = state.get(name)
    if tensor is None:
        return None
    if tensor.numel() != 1 or not tensor.is_floating_point():
        raise _unfit(path, f"has {name} of {_described(tensor)}", "one floating point number")
    return float(tensor)


def _described(tensor: Tensor) -> str:
    return f"{str(tensor.dtype).removeprefix('torch.')} {list(tensor.shape)}"


def _unfit(path: Path, found: str, expected: str) -> CheckpointError:
    fix = "write it with the text tower of the same model, see docs/howto/models.md"
    return CheckpointError(f"text head '{path}' {found}", expected, fix)
