"""The record of what each fault cost, which tests of any folder may write."""

import json
import os
import time
from pathlib import Path

import pytest


class Fault:
    """What one fault cost: when it struck, when the job was under way again, what it did twice."""

    def __init__(self, test):
        self._facts = {"test": test}

    def strikes(self):
        """The fault is there."""
        self._struck = time.monotonic()

    def ends(self):
        """The fault is over: cable back, server up, room again."""
        self._facts["lasted_seconds"] = round(time.monotonic() - self._struck, 1)
        self._ended = time.monotonic()

    def recovered(self):
        """The first new epoch, shard or trial after the fault is stored."""
        self._facts["recovery_seconds"] = round(
            time.monotonic() - getattr(self, "_ended", self._struck), 1
        )

    def lost(self, what):
        """What was computed and is computed again."""
        self._facts["lost"] = what

    def facts(self):
        return self._facts


@pytest.fixture
def fault(request):
    """Takes what the fault cost; RELIABILITY_RECORD names a file of such lines, if any."""
    made = Fault(request.node.nodeid)
    yield made
    if path := os.environ.get("RELIABILITY_RECORD"):
        with Path(path).open("a") as record:
            record.write(json.dumps(made.facts()) + "\n")
