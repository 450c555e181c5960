"""What a client is told when a request fails, in the shape of OpenAI's errors."""

from typing import Any

from crome.errors import InputError

KINDS = {401: "authentication_error", 403: "permission_error", 429: "rate_limit_error"}


class ApiError(Exception):
    """An answer in the shape of OpenAI's errors.

    Args:
        status: Status of the HTTP answer.
        message: An explanation for the person who reads it.
        code: A word for the caller's program.
        param: The field at fault, as `messages[0].content[1].image_url`.
        headers: Further headers of the answer.
    """

    def __init__(
        self,
        status: int,
        message: str,
        code: str | None = None,
        param: str | None = None,
        headers: dict[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.headers = headers or {}
        kind = "server_error" if status >= 500 else KINDS.get(status, "invalid_request_error")
        self.body: dict[str, Any] = {
            "error": {"message": message, "type": kind, "param": param, "code": code}
        }


class TakenError(InputError):
    """The name is in use."""


class UnknownError(LookupError):
    """Nothing has that name."""


def field_path(location: list[str | int]) -> str:
    """Where a field is in a body: `["messages", 0, "content"]` becomes `messages[0].content`."""
    path = ""
    for part in location:
        path += f"[{part}]" if isinstance(part, int) else f".{part}" if path else part
    return path
