"""What transformers prints while it loads, hidden where it would mislead."""

from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def quiet_transformers() -> Iterator[None]:
    """Hide transformers' bars and warnings: it calls GGUF weights "packed" that it has unpacked."""
    from transformers.utils import logging

    verbosity = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        with no_bars():
            yield
    finally:
        logging.set_verbosity(verbosity)


@contextmanager
def no_bars() -> Iterator[None]:
    """Hide transformers' bars, which end before one has read them."""
    from transformers.utils import logging

    enabled = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if enabled:
            logging.enable_progress_bar()
