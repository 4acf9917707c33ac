"""Where tests run: data of their own, never the data of an installation.

Loaded before the settings are (`-p tests.surroundings`). The database cluster is kept between
runs, since making one takes seconds; databases in it are made anew.
"""

import hashlib
import os
import tempfile
from pathlib import Path

_here = hashlib.sha256(str(Path(__file__).resolve()).encode()).hexdigest()[:10]
_data = Path(tempfile.gettempdir()) / f"signalbox-tests-{_here}-{os.getuid()}"

# SIGNALBOX_TEST_DATA is for a second run beside a first one.
os.environ["SIGNALBOX_DATA"] = os.environ.get("SIGNALBOX_TEST_DATA", str(_data))
os.environ["SIGNALBOX_POSTGRES_FAST"] = "1"
os.environ.setdefault("SIGNALBOX_POLL_SECONDS", "0.2")
os.environ.setdefault("SIGNALBOX_JOB_POLL_SECONDS", "0.2")
for ours in ("HOST", "PORT", "REDIS_URL", "SECRET_KEY", "ALLOWED_HOSTS"):
    os.environ.pop(ours, None)


def pytest_unconfigure() -> None:
    """Let go of the database cluster: the last process to do so stops it."""
    if "DATABASE_URL" not in os.environ:
        from config import embedded

        embedded.stop(Path(os.environ["SIGNALBOX_DATA"]))
