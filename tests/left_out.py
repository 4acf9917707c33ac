"""Tests that need a program which is not there: left out aloud, or failed where all must run."""

from __future__ import annotations

import os
import shutil
from typing import NoReturn

import pytest


def left_out(reason: str) -> NoReturn:
    """Skip with a reason, or fail where SIGNALBOX_NOTHING_LEFT_OUT says that nothing may be."""
    if os.environ.get("SIGNALBOX_NOTHING_LEFT_OUT"):
        pytest.fail(reason)
    pytest.skip(reason)


def need(program: str, what: str) -> None:
    """Leave the test out when a program is not installed."""
    if shutil.which(program) is None:
        left_out(f"{what} is not installed: its tests were left out.")
