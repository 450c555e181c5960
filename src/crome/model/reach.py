"""Whether the hub can be reached: found out once, where libraries would try for a minute a file."""

from functools import cache

from huggingface_hub import constants, get_session


@cache
def reach_hub() -> None:
    """Asks the hub once; without a connection, names on it mean what is cached of them.

    Only a connection that cannot be made counts (no such name, no route, nobody there): what is
    slow or fails later is asked again by the libraries, as ever.
    """
    if constants.is_offline_mode():
        return
    try:
        get_session().head(constants.ENDPOINT, timeout=constants.HF_HUB_ETAG_TIMEOUT)
    except Exception as error:  # of whichever HTTP client the library has
        if type(error).__name__ in ("ConnectError", "ConnectTimeout", "ProxyError"):
            constants.HF_HUB_OFFLINE = True
