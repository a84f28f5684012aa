"""Maps of dense models as pictures: coloured, beside the baseline's, and in the place of the image that they cover."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ztdeploy.core.preprocess_spec import Activation
from ztdeploy.report.kit.colours import class_colour, scale_colour, signed_colour
from ztdeploy.report.kit.numbers import short
from ztdeploy.target.evaluate.maps import map_values, value_range

_STEPS = 256  #: colours of a scale
_LEAST_REACH = 0.05  #: a smaller difference is never drawn in full colour
_NEAREST, _SMOOTH = Image.Resampling.NEAREST, Image.Resampling.BILINEAR


@dataclass(frozen=True)
class MapScale:
    """What the colours of a picture stand for: classes, or the numbers of one channel."""

    activation: Activation
    channel: int = 0  #: the one that is drawn; of classes all channels count
    low: float = 0.0
    high: float = 1.0

    @classmethod
    def of(cls, given: NDArray[Any], activation: Activation, channel: int = 0) -> MapScale:
        """Probabilities from 0 to 1; values from the lowest to the highest of a map `[C, h, w]`."""
        if activation != "none":
            return cls(activation, channel)
        return cls(activation, channel, float(given[channel].min()), float(given[channel].max()))

    @property
    def classes(self) -> bool:
        return self.activation == "softmax"

    @property
    def words(self) -> str:
        """What the colours mean, such as "violet 0, yellow 1"."""
        if self.classes:
            return "a colour per class"
        return f"violet {self.low:.3g}, yellow {self.high:.3g}"

    def layer(self, given: NDArray[Any]) -> NDArray[Any]:
        """What is drawn of a map `[C, h, w]`: `[h, w]` classes as int32, or shares of the scale as float32, 0 to 1."""
        if self.classes:
            return np.asarray(given.argmax(0), np.int32)
        values = map_values(given[self.channel : self.channel + 1], self.activation)[0]
        return np.asarray((values - self.low) / ((self.high - self.low) or 1.0), np.float32)

    def tile(self, given: NDArray[Any], size: tuple[int, int]) -> Image.Image:
        """A map `[C, h, w]` as RGB of another width and height."""
        return Image.fromarray(self._colours(self._resized(self.layer(given), size)))

    def difference(self, dense: NDArray[Any], variant: NDArray[Any], size: tuple[int, int]) -> tuple[Image.Image, str]:
        """What a variant's map has more or less than the baseline's, as RGB, and the meaning of the colours."""
        ours, theirs = self.layer(dense), self.layer(variant)
        if self.classes:
            changed = self._resized((ours != theirs).astype(np.int32), size)
            return Image.fromarray(
                _whole(signed_colour(changed))
            ), f"orange: another class, {100 * (ours != theirs).mean():.1f} %"
        apart = theirs - ours
        reach = max(float(np.abs(apart).max()), _LEAST_REACH)
        unit = f"{short(100 * reach)} % of the range" if self.activation == "none" else short(reach, 2)
        colours = signed_colour(self._resized(apart, size) / reach)
        return Image.fromarray(_whole(colours)), f"orange: more, blue: less, up to {unit}"

    def on_image(
        self, given: NDArray[Any], size: tuple[int, int], box: tuple[float, float, float, float]
    ) -> Image.Image:
        """A map in the place of the image that it covers, as RGBA; transparent where the model saw nothing.

        Args:
            size: width and height of the image.
            box: left, top, right and lower edge of what the map covers, in pixels of the image; see `seen_box`.
        """
        layer, (left, top, right, bottom) = self.layer(given), box
        x, y = layer.shape[1] / (right - left), layer.shape[0] / (bottom - top)
        extent = (-left * x, -top * y, (size[0] - left) * x, (size[1] - top) * y)
        method = _NEAREST if self.classes else _SMOOTH
        placed = Image.fromarray(layer).transform(size, Image.Transform.EXTENT, extent, method)
        seen = Image.fromarray(np.full(layer.shape, 255, np.uint8))
        alpha = seen.transform(size, Image.Transform.EXTENT, extent, _NEAREST)
        picture = Image.fromarray(self._colours(np.asarray(placed)))
        picture.putalpha(alpha)
        return picture

    def _resized(self, layer: NDArray[Any], size: tuple[int, int]) -> NDArray[Any]:
        return np.asarray(Image.fromarray(layer).resize(size, _NEAREST if self.classes else _SMOOTH))

    def _colours(self, layer: NDArray[Any]) -> NDArray[np.uint8]:
        if self.classes:
            return np.take(class_table(int(layer.max()) + 1), layer, 0)
        steps = np.clip(layer * (_STEPS - 1) + 0.5, 0, _STEPS - 1).astype(np.uint8)
        return np.take(scale_table(), steps, 0)


def compared_tiles(
    dense: NDArray[Any], variant: NDArray[Any], activation: Activation, size: tuple[int, int]
) -> list[tuple[str, Image.Image]]:
    """The baseline's map `[C, h, w]`, a variant's, and their difference, with captions; of several channels the one
    that differs most.
    """
    channel = furthest_channel(dense, variant, activation)
    scale = MapScale.of(dense, activation, channel)
    which = "" if scale.classes or len(dense) == 1 else f", channel {channel} of {len(dense)}"
    difference, words = scale.difference(dense, variant, size)
    return [
        (f"the baseline's map{which}; {scale.words}", scale.tile(dense, size)),
        ("the variant's map", scale.tile(variant, size)),
        (f"difference; {words}", difference),
    ]


def furthest_channel(dense: NDArray[Any], variant: NDArray[Any], activation: Activation) -> int:
    """The channel of two maps `[C, h, w]` that is drawn: the one that differs most."""
    if activation == "softmax":
        return 0
    ours, theirs = (map_values(one, activation) for one in (dense, variant))
    return int((np.abs(ours - theirs).mean((1, 2)) / (value_range(ours) if activation == "none" else 1)).argmax())


@cache
def scale_table() -> NDArray[np.uint8]:
    return _whole(scale_colour(np.linspace(0, 1, _STEPS)))


@cache
def class_table(count: int) -> NDArray[np.uint8]:
    return _whole(class_colour(np.arange(count)))


def _whole(colours: NDArray[np.float64]) -> NDArray[np.uint8]:
    return np.asarray(colours.round(), np.uint8)
