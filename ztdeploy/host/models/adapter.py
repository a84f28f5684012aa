"""What a model family must provide for its blocks to be pruned from outside."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Protocol

from torch import Tensor, nn

from ztdeploy.core.errors import ModelError
from ztdeploy.core.preprocess_spec import ImageSize, Output
from ztdeploy.core.schedule import Architecture

if TYPE_CHECKING:
    from ztdeploy.host.models.text_head import TextEmbeddings


class TapSink(Protocol):
    """Where a block's attention matrix, keys, values and queries are put during a forward pass."""

    attention: Tensor | None
    keys: Tensor | None
    values: Tensor | None
    queries: Tensor | None


class ModelAdapter(ABC):
    """A model whose blocks can be reached. One subclass per family, one line in `models.FAMILIES`."""

    family: str
    output: Output = "logits"

    def __init__(self, model: nn.Module, image_size: int | tuple[int, int]) -> None:
        self.model, self.image_size = model, ImageSize.of(image_size)
        self.architecture = self.describe()

    def give(self, output: Output) -> None:
        """Have the model give something else, in place.

        Raises:
            ModelError: it has no such output.
        """
        if output != "logits":
            raise ModelError(f"output '{output}' of a model of family {self.family}", "logits", "leave --output out")

    def answer_with(self, texts: TextEmbeddings) -> None:
        """Have the model end in a head of text embeddings, in place.

        Raises:
            CheckpointError: they do not fit what the model gives.
            ModelError: it has no embedding to compare with them.
        """
        raise ModelError(
            f"text head for a model of family {self.family}", "an image tower with one head", "leave --text-head out"
        )

    @classmethod
    @abstractmethod
    def accepts(cls, model: nn.Module) -> bool:
        """Whether this family is the model's."""

    @abstractmethod
    def describe(self) -> Architecture:
        """Sizes of the model.

        Raises:
            ModelError: the model is of this family but can't be pruned soundly, with the reason.
        """

    @property
    @abstractmethod
    def blocks(self) -> Sequence[nn.Module]:
        """The transformer blocks in order; each returns tokens `[B, N, D]`."""

    def between(self, index: int, reduce: Callable[[Tensor], Tensor]) -> list[Callable[[], None]]:
        """Have a block's tokens reduced between its attention and its MLP.

        Args:
            index: the block, from 0.
            reduce: takes what the attention's residual branch leads to, `[B, N, D]`, and returns `[B, k, D]`.

        Returns:
            What undoes it, to be called in reverse order.

        Raises:
            ModelError: the block is not made of attention and then MLP, each beside a residual.
        """
        raise ModelError(
            f"method that works between attention and MLP, for a model of family {self.family}",
            "a family whose blocks can be reached there",
            "choose a method that prunes behind blocks, such as zero-tprune",
        )

    def bias(self, index: int, bias: Callable[[], Tensor | None]) -> list[Callable[[], None]]:
        """Have something added to a block's attention logits: `[B, 1, 1, N]`, or None for nothing.

        Returns:
            What undoes it, to be called in reverse order.

        Raises:
            ModelError: the block's attention takes no such thing.
        """
        raise ModelError(
            f"method that merges tokens, for a model of family {self.family}",
            "a family whose attention takes a bias",
            "choose a method that drops tokens, such as zero-tprune",
        )

    @property
    def has_positions(self) -> bool:
        """Whether blocks are given, beside tokens, something with a part for each place of the image."""
        return False

    def follow(self, index: int, places: Callable[[], Tensor | None]) -> list[Callable[[], None]]:
        """Have what a block is given for each place gathered, per image, for the tokens that are present.

        Args:
            index: the block, from 0.
            places: which of the image's tokens enter the block, prefix tokens included: `[B, k]` int64, ascending;
                None where all do.

        Returns:
            What undoes it, to be called in reverse order.
        """
        return []

    @abstractmethod
    def scale(self, index: int, scale: Callable[[], Tensor | None]) -> list[Callable[[], None]]:
        """Have what enters a block's attention, behind its norm, multiplied: by `[B, N, 1]`, or None for nothing.

        Returns:
            What undoes it, to be called in reverse order.
        """

    @abstractmethod
    def update(self, index: int, update: Callable[[], Tensor | None]) -> list[Callable[[], None]]:
        """Have what a block's attention and its MLP add to the tokens multiplied: by `[B, N, 1]`, or None for nothing.

        Returns:
            What undoes it, to be called in reverse order.
        """

    @abstractmethod
    def tap(
        self, index: int, sink: TapSink, *, attention: bool, keys: bool, values: bool, queries: bool
    ) -> list[Callable[[], None]]:
        """Make a block put what is asked for into the sink on every forward pass: keys and queries behind
        their norms where it has any, and in front of a rotation by their places.

        Returns:
            What undoes it, to be called in reverse order.
        """
