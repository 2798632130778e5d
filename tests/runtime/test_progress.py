"""Lines of progress say how far training is and how long it will still take."""

import pytest

from cdvae_ray.runtime.progress import ProgressLines, clock
from cdvae_ray.training.epoch import Progress


def test_a_line_within_an_epoch_has_the_time_left_of_the_whole_run():
    lines = []
    # A quarter of the second of three epochs took 30 s: three quarters and one epoch are left.
    ProgressLines(3, lines.append, quiet_seconds=0.0).within_epoch(
        Progress(epoch=1, batches_done=25, batches=100, images_per_second=1234.0, seconds=30.0)
    )
    assert lines == ["epoch 2/3   25%  1,234 images/s  left 3:30"]


@pytest.mark.parametrize(
    ("seconds", "shown"), [(0.4, "0:00"), (59.6, "1:00"), (3599, "59:59"), (3600, "1:00:00")]
)
def test_a_clock_has_hours_where_there_are_some(seconds, shown):
    assert clock(seconds) == shown
