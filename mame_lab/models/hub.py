"""Fetching from a model hub, and what to say where it cannot be reached."""

from collections.abc import Iterator
from contextlib import contextmanager

from huggingface_hub import constants, get_session


@contextmanager
def no_retries_offline() -> Iterator[None]:
    """Where the hub does not answer, use its local cache at once instead of retrying for a minute."""
    offline = constants.HF_HUB_OFFLINE
    try:
        get_session().head(constants.ENDPOINT, timeout=5)
    except Exception:
        constants.HF_HUB_OFFLINE = True
    try:
        yield
    finally:
        constants.HF_HUB_OFFLINE = offline


def in_one_line(error: Exception) -> str:
    """The first lines of an error, as one."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return " ".join(lines[:2]) if lines else type(error).__name__
