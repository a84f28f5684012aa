"""Records as JSON and back, for files and between processes.

Pydantic's own writer refuses names of files that are not UTF-8 and turns a required number that is not finite into a
null that its reader refuses.
"""

from __future__ import annotations

from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError
from pydantic_core import InitErrorDetails, PydanticCustomError

from ztdeploy.core.data import first_error, parse_json
from ztdeploy.core.errors import ParityError
from ztdeploy.core.text import finite, json_text

_Record = TypeVar("_Record", bound=BaseModel)


class Record(BaseModel):
    """Data that two parts of the program, or two machines, exchange: immutable, and without unknown fields."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class FiniteRecord(Record):
    """A record whose numbers are all finite."""

    model_config = ConfigDict(allow_inf_nan=False)


def to_json(record: BaseModel, *, indent: int | None = None, by_alias: bool = False) -> str:
    """A record in ASCII; `from_json` reads it as it was, but for optional numbers that were not finite.

    Raises:
        ParityError: as `plain`.
    """
    return json_text(plain(record, by_alias=by_alias), indent=indent)


def plain(record: BaseModel, *, by_alias: bool = False) -> Any:
    """A record as what JSON can hold: None for numbers that are not finite.

    Raises:
        ParityError: a number that the record must have is not finite.
    """
    data = record.model_dump(mode="json", by_alias=by_alias)
    clean = finite(data)
    if clean != data:  # NaN is equal to nothing
        try:
            type(record).model_validate(clean)
        except ValidationError as error:
            raise ParityError(
                f"'{first_error(error)[0]}' of a {type(record).__name__} is no finite number",
                "finite numbers from every engine",
                "run 'ztdeploy verify' on the bundle, which names the engine that gives others",
            ) from error
    return clean


def from_json(model: type[_Record], text: str | bytes) -> _Record:
    """
    Raises:
        ValidationError: no JSON, or another record.
    """
    try:
        data = parse_json(text if isinstance(text, str) else text.decode())
    except ValueError as error:
        problem = PydanticCustomError("json_invalid", "Invalid JSON: {error}", {"error": str(error)})
        raise ValidationError.from_exception_data(
            model.__name__, [InitErrorDetails(type=problem, loc=(), input=None)]
        ) from error
    return model.model_validate(data)
