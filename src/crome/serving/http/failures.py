"""Whatever goes wrong → the answer that a client gets."""

import logging

from starlette.exceptions import HTTPException

from crome.errors import InputError
from crome.serving.engine.protocol import ClosedError, EngineError, RemovedError, RoomError
from crome.serving.errors import ApiError, TakenError, UnknownError

logger = logging.getLogger(__name__)


def as_api_error(error: BaseException) -> ApiError:
    """What a client is told about an error: everything about its own, nothing about ours."""
    match error:
        case ApiError():
            return error
        case TakenError():
            return ApiError(409, str(error), "name_taken", "name")
        case UnknownError() | RemovedError():
            return ApiError(404, str(error), "model_not_found", "model")
        case RoomError():
            return ApiError(400, str(error), "context_length_exceeded", "max_tokens")
        case InputError():
            return ApiError(400, str(error), "invalid_value")
        case HTTPException():
            return ApiError(error.status_code, error.detail, headers=dict(error.headers or {}))
    return _own_failure(error)


def _own_failure(error: BaseException) -> ApiError:
    """What a client is told about an error that is not its own."""
    if isinstance(error, TimeoutError):
        words = str(error) or "the server took too long."
        return ApiError(503, words, "timeout", headers={"retry-after": "1"})
    if isinstance(error, ClosedError):
        return ApiError(503, str(error), "shutting_down")
    if isinstance(error, EngineError):
        logger.error("%s", error)
        return ApiError(502, "the engine behind this server failed.", "engine_failed")
    logger.error("a request failed", exc_info=error)
    return ApiError(500, "the server failed on this request.", "internal_error")


NOT_FOUND = "no such path: {path}; expected one of those in /openapi.json."


def not_found(path: str) -> ApiError:
    """Nothing is at a path."""
    return ApiError(404, NOT_FOUND.format(path=path[:200]), "unknown_url")
