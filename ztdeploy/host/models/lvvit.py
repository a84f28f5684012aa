"""LV-ViT: plain attention in blocks with damped residuals; at the end, the best patch has a say as well."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import nn

from ztdeploy.host.models.adapter import ModelAdapter
from ztdeploy.host.models.lvvit_module import DampedBlock, LvVit
from ztdeploy.host.models.residual import ResidualAdapter

if TYPE_CHECKING:
    from ztdeploy.host.models.text_head import TextEmbeddings


class LvVitAdapter(ResidualAdapter):
    """Reads what it needs where `VitAdapter` does."""

    family = "lvvit"
    model: LvVit
    plain_block = DampedBlock

    @classmethod
    def accepts(cls, model: nn.Module) -> bool:
        return isinstance(model, LvVit)

    def check_blocks(self) -> None:
        """All are our own."""

    def answer_with(self, texts: TextEmbeddings) -> None:
        ModelAdapter.answer_with(self, texts)  # it has two heads, of which one reads patches

    def patch_dim(self) -> int:
        """The convolutions before the projection run at half the resolution, shared by all output channels."""
        embed, model = self.model.patch_embed, self.model
        pixels = (embed.patch_size[0] // 2) ** 2
        before = sum(layer.weight.numel() for layer in (embed.conv1, embed.conv2, embed.conv3))
        return round((pixels * before + embed.proj.weight.numel()) / model.embed_dim)
