"""transformers draws bars while it reads and writes weights; in a log they are only noise."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from transformers.utils import logging


@contextmanager
def no_progress_bars() -> Iterator[None]:
    """By the library's own switch, which is as it was afterwards."""
    were_on = logging.is_progress_bar_enabled()
    _quietly(logging.disable_progress_bar)
    try:
        yield
    finally:
        if were_on:
            _quietly(logging.enable_progress_bar)


def _quietly(switch: Callable[[], None]) -> None:
    """It also switches the hub's bars, which warns where HF_HUB_DISABLE_PROGRESS_BARS has the last word on those."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        switch()
