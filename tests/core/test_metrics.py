"""Tallies are exact however the images are split."""

import torch
from hypothesis import given
from hypothesis import strategies as st

from cdvae_ray.core.metrics import Tally


@given(
    st.lists(st.integers(min_value=0, max_value=1000), min_size=1, max_size=30),
    st.integers(min_value=1, max_value=7),
)
def test_any_split_into_batches_gives_the_same_sums(values, batch_size):
    tally = Tally()
    for start in range(0, len(values), batch_size):
        part = torch.tensor(values[start : start + batch_size])
        tally.add({"sum": part.sum(), "ones": torch.ones(len(part)).sum()}, len(part))
    assert tally.count == len(values)
    assert tally.sums() == {"sum": float(sum(values)), "ones": float(len(values))}
    assert tally.means()["sum"] == sum(values) / len(values)


def test_a_rank_without_images_takes_part_in_the_reduction():
    other_rank = torch.tensor([6.0, 3.0], dtype=torch.float64)
    tally = Tally()
    tally.reduce(lambda mine: mine + other_rank, ("correct",))
    assert tally.count == 3
    assert tally.means() == {"correct": 2.0}


def test_the_mean_is_over_images_and_not_over_batches():
    tally = Tally()
    tally.add({"correct": torch.tensor(9)}, 9)
    tally.add({"correct": torch.tensor(0)}, 1)
    assert tally.means()["correct"] == 0.9
