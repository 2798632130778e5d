"""The one line that is left of an error which Ray has wrapped."""

import pytest

from cdvae_ray.runtime.cluster import deepest_cause

RAY_DATA = """\x1b[36mray::MapWorker(MapBatches(AttackActor)).submit()\x1b[39m (pid=1, ip=10.0.0.1)
Traceback (most recent call last):
  File "row_actor.py", line 90, in __call__
RuntimeError: view size is not compatible with input tensor's size and stride

The above exception was the direct cause of the following exception:

ray.data.exceptions.UserCodeException: UDF failed to process a data block.
To change retry attempts, configure `DataContext` (`max_map_retries` for any task)."""


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (RAY_DATA, "RuntimeError: view size is not compatible with input tensor's size and stride"),
        ("one\ntorch.OutOfMemoryError: no memory\n  advice", "torch.OutOfMemoryError: no memory"),
        ("first line\nlast line", "last line"),
        ("", "ValueError"),
    ],
)
def test_the_line_that_names_the_deepest_error_is_kept(text, expected):
    assert deepest_cause(ValueError(text)) == expected
