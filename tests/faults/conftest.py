"""One cluster of namespaces for all fault tests."""

from pathlib import Path

import pytest

from .lab import Lab, why_not


def pytest_collection_modifyitems(items):
    for item in items:
        if item.path.is_relative_to(Path(__file__).parent):
            item.add_marker(pytest.mark.cluster)
            item.add_marker(pytest.mark.faults)
            item.add_marker(pytest.mark.timeout(600))


@pytest.fixture(scope="session")
def lab():
    """Two nodes with a CPU each, and a head."""
    if reason := why_not():
        pytest.skip(reason)
    made = Lab()
    yield made
    made.close()
