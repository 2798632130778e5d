"""The epoch's order: a few properties hold for every way in which the images may be grouped."""

from __future__ import annotations

import pickle
from collections import Counter
from itertools import chain

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from cdvae_ray.data.stream_order import Chunk, StreamOrder
from cdvae_ray.errors import ConfigError

SEEDS = st.integers(min_value=0, max_value=2**63)
Image = tuple[int, int]  # of which group, of which row


@st.composite
def layouts(draw) -> tuple[list[int], int, int]:
    """Rows of the groups, lanes, global batch size."""
    groups_rows = draw(st.lists(st.integers(1, 9), min_size=1, max_size=12))
    lanes = draw(st.integers(1, min(8, sum(groups_rows))))
    return groups_rows, lanes, lanes * draw(st.integers(1, sum(groups_rows) // lanes))


def order_of(layout, *, seed: int = 0, rank: int = 0, world_size: int = 1) -> StreamOrder:
    groups_rows, lanes, global_batch_size = layout
    return StreamOrder(
        groups_rows,
        global_batch_size=global_batch_size,
        lanes=lanes,
        seed=seed,
        rank=rank,
        world_size=world_size,
    )


def lane_images(order: StreamOrder, chunks: list[Chunk]) -> dict[int, list[Image]]:
    """The images of each lane, put where the chunks say they belong."""
    images: dict[int, list[Image]] = {lane: [] for lane in order.lanes}
    for chunk in chunks:
        assert chunk.first == len(images[chunk.lane])  # in order, without gaps
        images[chunk.lane] += [(chunk.group, row) for row in chunk.rows]
    return images


def rank_batches(order: StreamOrder, epoch: int) -> list[list[Image]]:
    """The oracle for assembling: batch g has images [g b, (g + 1) b) of each lane."""
    images, b = lane_images(order, order.chunks(epoch)), order.lane_batch_size
    return [
        [image for lane in order.lanes for image in images[lane][g * b : (g + 1) * b]]
        for g in range(order.batches_per_epoch)
    ]


def joined(ranks: list[list[list[Image]]]) -> list[list[Image]]:
    """The ranks' parts of each batch, one after another."""
    return [list(chain.from_iterable(parts)) for parts in zip(*ranks, strict=True)]


@settings(deadline=None, max_examples=150)
@given(layout=layouts(), seed=SEEDS, epoch=st.integers(0, 1000))
def test_an_epoch_is_whole_batches_of_different_images(layout, seed, epoch) -> None:
    groups_rows, lanes, global_batch_size = layout
    order = order_of(layout, seed=seed)
    batches = rank_batches(order, epoch)
    assert order.num_images == sum(groups_rows)
    assert order.batches_per_epoch == sum(groups_rows) // global_batch_size
    assert order.lane_batch_size * lanes == global_batch_size
    assert [len(batch) for batch in batches] == [global_batch_size] * order.batches_per_epoch
    seen = Counter(image for batch in batches for image in batch)
    assert set(seen.values()) == {1}
    assert all(0 <= row < groups_rows[group] for group, row in seen)
    # Nothing is read that is not used.
    assert sum(len(chunk.rows) for chunk in order.chunks(epoch)) == seen.total()


@settings(deadline=None, max_examples=150)
@given(layout=layouts(), seed=SEEDS, epoch=st.integers(0, 50), data=st.data())
def test_the_ranks_parts_make_up_the_batches_of_one_worker(layout, seed, epoch, data) -> None:
    lanes = layout[1]
    world_size = data.draw(st.sampled_from([r for r in range(1, lanes + 1) if lanes % r == 0]))
    whole = rank_batches(order_of(layout, seed=seed), epoch)
    ranks = [
        rank_batches(order_of(layout, seed=seed, rank=rank, world_size=world_size), epoch)
        for rank in range(world_size)
    ]
    assert joined(ranks) == whole


def test_one_two_and_four_ranks_see_one_order() -> None:
    layout = ([5, 7, 1, 9, 4, 6, 3, 8], 4, 8)
    one, two, four = (
        joined([rank_batches(order_of(layout, rank=r, world_size=n), 2) for r in range(n)])
        for n in (1, 2, 4)
    )
    assert one == two == four


@settings(deadline=None, max_examples=150)
@given(layout=layouts(), seed=SEEDS)
def test_chunks_come_in_order_of_need(layout, seed) -> None:
    order = order_of(layout, seed=seed)
    chunks = order.chunks(0)
    b = order.lane_batch_size
    assert chunks == sorted(chunks, key=lambda each: (each.needed_by, each.lane, each.first))
    for batch in range(order.batches_per_epoch):
        arrived = lane_images(order, [each for each in chunks if each.needed_by <= batch])
        assert all(len(images) >= (batch + 1) * b for images in arrived.values())
    assert all(each.needed_by == each.first // b for each in chunks)


@settings(deadline=None, max_examples=100)
@given(layout=layouts())
def test_a_group_is_read_once_but_for_the_borders_of_lanes(layout) -> None:
    groups_rows, lanes, _ = layout
    chunks = order_of(layout).chunks(0)
    assert len(chunks) <= len(groups_rows) + lanes - 1
    for lane in range(lanes):
        groups = [chunk.group for chunk in chunks if chunk.lane == lane]
        assert len(groups) == len(set(groups))


def test_orders_are_of_seed_and_epoch_alone() -> None:
    layout = ([10] * 10, 2, 10)
    state = torch.get_rng_state()
    orders = {
        pickle.dumps(order_of(layout, seed=seed).chunks(epoch))
        for seed in range(10)
        for epoch in range(10)
    }
    assert len(orders) == 100
    assert torch.equal(state, torch.get_rng_state())
    torch.manual_seed(1)
    assert order_of(layout, seed=3).chunks(7) == order_of(layout, seed=3).chunks(7)


def test_groups_and_rows_are_both_shuffled_anew() -> None:
    order = order_of(([50] * 20, 1, 50))
    first, second = order.chunks(0), order.chunks(1)
    for chunks in (first, second):
        groups = [chunk.group for chunk in chunks]
        assert sorted(groups) == list(range(20))
        assert groups != sorted(groups)
        assert len({chunk.rows for chunk in chunks}) == 20  # no two groups alike
        assert all(sorted(chunk.rows) == list(range(50)) for chunk in chunks)
    assert [chunk.group for chunk in first] != [chunk.group for chunk in second]
    rows = [{chunk.group: chunk.rows for chunk in chunks} for chunks in (first, second)]
    assert all(rows[0][group] != rows[1][group] for group in range(20))


def test_what_is_left_out_differs_between_epochs() -> None:
    order = order_of(([4, 3, 4], 2, 6))  # 11 images, 6 of them in an epoch
    used = Counter(
        image for epoch in range(60) for batch in rank_batches(order, epoch) for image in batch
    )
    assert len(used) == 11
    assert min(used.values()) > 15


def test_the_order_is_the_documented_one() -> None:
    # Pinned: another order would make old checkpoints resume into another run.
    assert order_of(([3, 2, 4], 2, 4)).chunks(0) == [
        Chunk(lane=0, group=0, rows=(2, 1, 0), first=0, needed_by=0),
        Chunk(lane=1, group=1, rows=(0,), first=0, needed_by=0),
        Chunk(lane=1, group=2, rows=(0, 2, 3), first=1, needed_by=0),
        Chunk(lane=0, group=1, rows=(1,), first=3, needed_by=1),
    ]


def test_a_batch_mixes_as_many_groups_as_there_are_lanes() -> None:
    order = order_of(([100] * 64, 16, 64))
    for batch in rank_batches(order, 0):
        assert len({group for group, _ in batch}) >= 14  # neighbouring lanes may share one


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"global_batch_size": 10},
            r"^training\.global_batch_size: got 10 with 4 lanes, expected a multiple of 4; "
            r"change --training\.global-batch-size or --data\.lanes$",
        ),
        (
            {"world_size": 3},
            r"^data\.lanes: got 4 with 3 workers, expected a multiple of 3; "
            r"change --data\.lanes or the number of workers$",
        ),
        ({"lanes": 0}, "got 0 with 1 workers"),
        ({"global_batch_size": 0}, "got 0 with 4 lanes"),
        ({"global_batch_size": 24}, "got 24, expected at most the 20 training images"),
        ({"rank": 1}, r"rank: got 1 of 1 workers, expected a rank in \[0, number of workers\)"),
        ({"rank": -1}, "rank: got -1 of 1 workers"),
    ],
)
def test_impossible_orders_are_config_errors(changes: dict[str, int], message: str) -> None:
    settings = {"global_batch_size": 8, "lanes": 4, "rank": 0, "world_size": 1, **changes}
    with pytest.raises(ConfigError, match=message):
        StreamOrder([10, 10], seed=0, **settings)
