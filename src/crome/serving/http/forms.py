"""A form with files → a checked model: beside the event loop, as a form of 30 MB takes a while."""

import asyncio
from collections.abc import AsyncGenerator
from typing import Any

from fastapi import Request
from pydantic import ValidationError
from starlette.datastructures import Headers, UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser

from crome.serving.errors import ApiError
from crome.serving.http.body import beside, validation_error
from crome.serving.schema import FitForm

KIND = "multipart/form-data"


async def read_form(request: Request) -> FitForm:
    """The form that a request sends; a dependency of its route."""
    kind = request.headers.get("content-type", "")
    if kind.partition(";")[0].strip().lower() != KIND:
        raise ApiError(400, f"the body is no form; send it as {KIND}.", "invalid_content_type")
    return await beside(parse_form, kind, await request.body())


def parse_form(kind: str, body: bytes) -> FitForm:
    """The form in a body.

    Args:
        kind: Its content type, which names what stands between its parts.
        body: All of it.

    Raises:
        ApiError: It is no form, has too many parts, or breaks a rule of the model.
    """

    async def whole() -> AsyncGenerator[bytes, None]:
        yield body

    try:
        parts = asyncio.run(MultiPartParser(Headers({"content-type": kind}), whole()).parse())
    except (MultiPartException, UnicodeError) as error:
        reason = getattr(error, "message", "its text is not of its character set.")
        raise ApiError(400, f"the form cannot be read: {reason}", "invalid_form") from error
    fields: dict[str, Any] = {}
    for name, value in parts.multi_items():
        found = _content(value) if isinstance(value, UploadFile) else value
        if name in ("labels", "images"):
            fields.setdefault(name, []).append(found)
        else:
            fields[name] = found
    try:
        return FitForm.model_validate(fields)
    except ValidationError as error:
        raise validation_error(fields, error.errors(include_url=False)) from None


def _content(upload: UploadFile) -> bytes:
    with upload.file as file:
        return file.read()
