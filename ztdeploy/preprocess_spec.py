"""How an image becomes a model's input: data that travels inside the bundle, read by both halves."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

ImageInput = Literal["float32", "uint8"]
#: What a model gives: what its head does, `[B, classes]`; what goes into the head, `[B, D]`; or the last tokens of all
#: patches `[B, P, D]`, row by row of the grid.
Output = Literal["logits", "embedding", "features"]
#: The same in words.
NOUNS: dict[Output, str] = {"logits": "logits", "embedding": "embeddings", "features": "features"}


def given(output: Output, classes: int) -> Output:
    """What a model gives that was asked for an output: without classes, logits are its embedding."""
    return "embedding" if output == "logits" and not classes else output


_Positive = Annotated[float, Field(gt=0)]


class PreprocessSpec(BaseModel):
    """Resize, centre crop, normalise, in timm's terms and with PIL's filters."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    image_size: int = Field(ge=1, le=4096)  #: side of the square that the model takes, in pixels
    resize: int = Field(ge=1, le=8192)  #: length that the shorter side is resized to, in pixels
    interpolation: Literal["nearest", "bilinear", "bicubic", "lanczos"] = "bicubic"
    crop_mode: Literal["center", "squash"] = "center"
    mean: tuple[float, float, float]
    std: tuple[_Positive, _Positive, _Positive]
