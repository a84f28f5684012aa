"""How an image becomes a model's input: data that travels inside the bundle, read by both halves."""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal, NamedTuple

from pydantic import (
    AfterValidator,
    Field,
    GetCoreSchemaHandler,
    GetJsonSchemaHandler,
    model_validator,
)
from pydantic_core import CoreSchema, core_schema

from ztdeploy.core.records import FiniteRecord, Record

ImageInput = Literal["float32", "uint8"]
#: What a model gives: the output of its head, `[B, classes]`; the input of its head, `[B, D]`; the last tokens of all
#: patches, `[B, P, D]`, row by row of the grid; or what a dense head makes of them, `[B, C, h, w]`.
Output = Literal["logits", "embedding", "features", "maps"]
#: The outputs in words.
NOUNS: dict[Output, str] = {"logits": "logits", "embedding": "embeddings", "features": "features", "maps": "maps"}


#: How probabilities come from logits, of an image or of each position of a map, see `runtime.postprocess`.
Activation = Literal["softmax", "sigmoid", "none"]


def given(output: Output, classes: int) -> Output:
    """What a model gives for an output that was asked for: without classes, its logits are its embedding."""
    return "embedding" if output == "logits" and not classes else output


#: The longest side of a model's input, and of a resized image, in pixels.
LARGEST_SIDE, LARGEST_RESIZED = 4096, 8192
MOST_CHANNELS = 64


class ImageSize(NamedTuple):
    """Height and width in pixels. In text and in JSON, a square is one number and anything else is `HEIGHTxWIDTH`."""

    height: int
    width: int

    @classmethod
    def of(cls, value: object) -> ImageSize:
        """From a side, `(height, width)`, or text such as "224" and "96x384".

        Raises:
            ValueError: anything else, or a side that is not from 1 to `LARGEST_RESIZED`.
        """
        sides: tuple[object, ...] = tuple(value) if isinstance(value, (tuple, list)) else (value,)
        if isinstance(value, str) and re.fullmatch(r"[0-9]{1,5}(x[0-9]{1,5})?", value, re.ASCII):
            sides = tuple(map(int, value.split("x")))
        numbers = [side for side in sides if type(side) is int and 1 <= side <= LARGEST_RESIZED]
        if len(numbers) != len(sides) or len(sides) not in (1, 2):
            raise ValueError(f"an image size is a side, or HEIGHTxWIDTH, from 1 to {LARGEST_RESIZED} pixels")
        return cls(numbers[0], numbers[-1])

    @property
    def plain(self) -> int | str:
        """Its form in JSON."""
        return self.height if self.height == self.width else f"{self.height}x{self.width}"

    @property
    def pixels(self) -> int:
        return self.height * self.width

    @property
    def in_full(self) -> str:
        return f"{self.height} x {self.width}"

    def __str__(self) -> str:
        return str(self.plain)

    @classmethod
    def __get_pydantic_core_schema__(cls, _source: Any, _handler: GetCoreSchemaHandler) -> CoreSchema:
        plain = core_schema.plain_serializer_function_ser_schema(lambda size: cls.of(size).plain)
        return core_schema.no_info_plain_validator_function(cls.of, serialization=plain)

    @classmethod
    def __get_pydantic_json_schema__(cls, _schema: CoreSchema, _handler: GetJsonSchemaHandler) -> dict[str, Any]:
        return {"anyOf": [{"type": "integer"}, {"type": "string"}]}


def _of_a_model(size: ImageSize) -> ImageSize:
    if max(size) > LARGEST_SIDE:
        raise ValueError(f"at most {LARGEST_SIDE} pixels along a side")
    return size


_Positive = Annotated[float, Field(gt=0)]


class PreprocessOptions(Record):
    """Settings that replace those that a model was published with; None: not replaced."""

    crop_pct: float | None = None  #: image size over resize
    crop_mode: Literal["center", "squash"] | None = None
    interpolation: Literal["nearest", "bilinear", "bicubic", "lanczos"] | None = None
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    bit_depth: int | None = Field(default=None, ge=9, le=16)  #: see `PreprocessSpec`


class PreprocessSpec(FiniteRecord):
    """Resize, centre crop, normalise, in timm's terms and with PIL's filters."""

    image_size: Annotated[ImageSize, AfterValidator(_of_a_model)]  #: size of the model's input
    resize: ImageSize  #: crop mode `center` scales an image until it covers this size; `squash` distorts it to it
    interpolation: Literal["nearest", "bilinear", "bicubic", "lanczos"] = "bicubic"
    crop_mode: Literal["center", "squash"] = "center"
    #: Where a crop starts that would start at half a pixel: at the even one beside it, as in torchvision, or at the one
    #: before it, as in transformers.
    crop_rounding: Literal["even", "down"] = "even"
    mean: tuple[float, ...] = Field(min_length=1, max_length=MOST_CHANNELS)  #: per channel, of values from 0 to 1
    std: tuple[_Positive, ...] = Field(min_length=1, max_length=MOST_CHANNELS)
    #: How many bits the values of images with more than 8 bits per channel use; None: all bits of the file.
    bit_depth: int | None = Field(default=None, ge=9, le=16)

    @model_validator(mode="after")
    def _of_one_length(self) -> PreprocessSpec:
        if len(self.mean) != len(self.std):
            raise ValueError(f"a mean of {len(self.mean)} channels, and a std of {len(self.std)}")
        return self

    @property
    def channels(self) -> int:
        return len(self.mean)

    @property
    def shape(self) -> tuple[int, int, int]:
        """Of one image's pixels: `[H, W, C]`."""
        return (*self.image_size, self.channels)
