"""Bodies of requests → checked models: bounded work, beside the event loop, and clear errors."""

import asyncio
from codecs import BOM_UTF8
from collections.abc import Awaitable, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

from fastapi import Request
from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails, from_json

from crome.serving.errors import ApiError, field_path

MAX_MARKS = 200_000
"""Commas, colons and brackets in a body. The longest conversation that fits a model has fewer."""
MAX_VALUES, MAX_DEPTH = 20_000, 32
MAX_ESCAPES = 1_000_000
"""Backslashes in a body. Some encoders escape the slashes of pictures; those are fewer."""
SLICE = 1 << 20

CODES = {"invalid": "invalid_value", "unsupported": "unsupported_parameter"}

Model = TypeVar("Model", bound=BaseModel)
Result = TypeVar("Result")

_parser = ThreadPoolExecutor(2, "crome-parse")


def reads(model: type[Model]) -> Callable[[Request], Awaitable[Model]]:
    """A dependency that gives a route the body of its request as a model."""

    async def read(request: Request) -> Model:
        kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
        if kind != "application/json" and not kind.endswith("+json"):
            raise ApiError(
                400,
                f"the body has the content type {kind[:100] or 'of nothing'!r}; send JSON with the "
                "header Content-Type: application/json.",
                "invalid_content_type",
            )
        return await beside(parse, model, await request.body())

    return read


async def beside(function: Callable[..., Result], *arguments: object) -> Result:
    """Runs what a large body makes long beside the event loop."""
    return await asyncio.get_running_loop().run_in_executor(_parser, function, *arguments)


def parse(model: type[Model], body: bytes) -> Model:
    """A body as a model.

    Nulls are left out first: by OpenAI's schema a field that is null is a field that is absent.

    Raises:
        ApiError: It is no JSON, has too many values, or breaks a rule of the model.
    """
    _check_size(body)
    try:
        value = from_json(body.removeprefix(BOM_UTF8), allow_inf_nan=False)
    except ValueError as error:
        raise ApiError(400, f"the body is not valid JSON: {error}.", "invalid_json") from error
    except RecursionError as error:
        raise ApiError(400, "the body is nested too deeply.", "invalid_json") from error
    _check_values(value)
    value = without_nulls(value)
    try:
        return model.model_validate(value)
    except ValidationError as error:
        raise validation_error(value, error.errors(include_url=False)) from None


def validation_error(value: Any, found: Sequence[Any]) -> ApiError:
    """What is wrong with a value, told about the field that is at fault.

    Args:
        value: What was checked.
        found: pydantic's errors.
    """
    # Of a field that takes one of several types, those errors come first whose type was right:
    # "expected at most 4 items" is a better answer to five stop strings than "expected a string".
    # Of the others the deepest says most.
    first = min(found, key=lambda f: (f["type"].endswith("_type"), -len(_path(value, f))))
    path = _path(value, first)
    if field := first.get("ctx", {}).get("field"):
        path.append(str(field))
    where = field_path(path[:12])[:200]
    code, message = _told(first)
    text = f"{where}: {message}" if where else f"body: {message}"
    return ApiError(400, text[:500], code, where or None)


def _told(error: ErrorDetails) -> tuple[str, str]:
    """The code and the words for an error of a field."""
    if error["type"] == "extra_forbidden":
        return "unknown_parameter", "this server knows no such field."
    if error["type"] == "missing":
        return "missing_required_parameter", "this field is required."
    if error["type"] in ("invalid", "unsupported"):
        return CODES[error["type"]], error["msg"]
    return "invalid_value", error["msg"].removeprefix("Value error, ") + "."


def _path(value: Any, error: ErrorDetails) -> list[str | int]:
    """The part of an error's location that is in the body: names of types are left out."""
    path: list[str | int] = []
    location = error["loc"]
    for number, part in enumerate(location):
        missing = number == len(location) - 1 and error["type"] == "missing"
        item = number > 0 and isinstance(location[number - 1], int)
        if item and isinstance(value, dict) and part == value.get("type"):
            continue  # a kind of part, which may be called like a field
        if isinstance(value, dict) and isinstance(part, str) and (part in value or missing):
            path.append(part)
            value = value.get(part)
        elif isinstance(value, list) and isinstance(part, int) and part < len(value):
            path.append(part)
            value = value[part]
    return path


def without_nulls(value: Any) -> Any:
    """JSON without those fields of objects that are null; in a JSON schema null means something."""
    if isinstance(value, dict):
        return {
            k: v if k == "schema" else without_nulls(v) for k, v in value.items() if v is not None
        }
    return [without_nulls(v) for v in value] if isinstance(value, list) else value


def _check_size(body: bytes) -> None:
    """Refuses a body whose mere number of values or escapes would take long to read."""
    marks = escapes = 0
    for start in range(0, len(body), SLICE):
        part = body[start : start + SLICE]
        marks += sum(part.count(mark) for mark in b",:[{")
        escapes += part.count(b"\\")
        if marks > MAX_MARKS:
            raise _too_many()
        if escapes > MAX_ESCAPES:
            raise ApiError(
                400, f"the body has more than {MAX_ESCAPES:,} backslashes.", "request_too_large"
            )


def _check_values(value: Any) -> None:
    """Refuses too many values, and those that are nested too deeply."""
    level, number = [value], 0
    for _ in range(MAX_DEPTH):
        number += len(level)
        if number > MAX_VALUES:
            raise _too_many()
        level = [
            inner
            for outer in level
            if isinstance(outer, (dict, list))
            for inner in (outer.values() if isinstance(outer, dict) else outer)
        ]
        if not level:
            return
    raise ApiError(400, f"the body is nested more than {MAX_DEPTH} deep.", "invalid_json")


def _too_many() -> ApiError:
    return ApiError(400, f"the body has more than {MAX_VALUES:,} values.", "request_too_large")
