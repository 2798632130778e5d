from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from cdvae_ray.data import (
    Batch,
    BatchSource,
    ImageSet,
    InMemoryBatches,
    epoch_order,
    evaluation_batches,
)
from cdvae_ray.errors import ConfigError

SEEDS = st.integers(min_value=0, max_value=2**63)


def _image_set(num_images: int) -> ImageSet:
    images = torch.arange(num_images * 3).to(torch.uint8).view(num_images, 3, 1, 1)
    return ImageSet.build(images, torch.arange(num_images) % 2, ("even", "odd"), "made/train")


def _assert_rows(batch: Batch, image_set: ImageSet) -> None:
    assert batch.image_ids.dtype == torch.int64
    assert torch.equal(batch.images, image_set.images[batch.image_ids])
    assert torch.equal(batch.labels, image_set.labels[batch.image_ids])


@settings(deadline=None, max_examples=50)
@given(num_images=st.integers(1, 200), seed=SEEDS, epoch=st.integers(0, 1000))
def test_the_order_is_a_permutation_of_seed_and_epoch(num_images, seed, epoch) -> None:
    order = epoch_order(num_images, seed=seed, epoch=epoch)
    assert torch.equal(order.sort().values, torch.arange(num_images))
    torch.manual_seed(1)
    assert torch.equal(order, epoch_order(num_images, seed=seed, epoch=epoch))


def test_orders_differ_between_seeds_and_epochs_and_leave_the_global_generator_alone() -> None:
    state = torch.get_rng_state()
    orders = {
        tuple(epoch_order(100, seed=seed, epoch=epoch).tolist())
        for seed in range(10)
        for epoch in range(10)
    }
    assert len(orders) == 100
    assert torch.equal(state, torch.get_rng_state())


def test_the_order_is_the_documented_one() -> None:
    # Pinned: another order would make old checkpoints resume into another run.
    assert epoch_order(8, seed=0, epoch=0).tolist() == [3, 5, 6, 0, 1, 2, 4, 7]


@settings(deadline=None, max_examples=60)
@given(data=st.data())
def test_the_ranks_blocks_make_up_the_global_batch_of_one_worker(data) -> None:
    world_size = data.draw(st.integers(1, 5))
    global_batch_size = world_size * data.draw(st.integers(1, 6))
    image_set = _image_set(data.draw(st.integers(global_batch_size, 100)))
    seed, epoch = data.draw(SEEDS), data.draw(st.integers(0, 50))

    def source(rank: int, world_size: int) -> BatchSource:
        return InMemoryBatches(
            image_set,
            global_batch_size=global_batch_size,
            seed=seed,
            rank=rank,
            world_size=world_size,
        )

    alone = source(0, 1)
    batches = list(alone.epoch_batches(epoch))
    order = epoch_order(len(image_set), seed=seed, epoch=epoch)
    kept = len(image_set) // global_batch_size * global_batch_size
    assert alone.num_images == len(image_set)
    assert len(batches) == alone.batches_per_epoch == len(image_set) // global_batch_size
    assert torch.equal(torch.cat([batch.image_ids for batch in batches]), order[:kept])
    ranks = [list(source(rank, world_size).epoch_batches(epoch)) for rank in range(world_size)]
    for whole, *parts in zip(batches, *ranks, strict=True):
        _assert_rows(whole, image_set)
        assert {len(part.labels) for part in parts} == {global_batch_size // world_size}
        for name in Batch._fields:
            joined = torch.cat([getattr(part, name) for part in parts])
            assert torch.equal(joined, getattr(whole, name))


def test_batches_are_copies() -> None:
    image_set = _image_set(4)
    source = InMemoryBatches(image_set, global_batch_size=2, seed=0, rank=0, world_size=1)
    next(source.epoch_batches(0)).images.zero_()
    assert torch.equal(image_set.images, _image_set(4).images)


@pytest.mark.parametrize(
    ("global_batch_size", "rank", "world_size", "message"),
    [
        (
            100,
            0,
            3,
            r"^training\.global_batch_size: got 100 with 3 workers, expected a multiple of 3; ",
        ),
        (0, 0, 1, "got 0 with 1 workers"),
        (201, 0, 1, "got 201, expected at most the 200 images of made/train"),
        (4, 2, 2, r"rank: got 2 of 2 workers, expected a rank in \[0, number of workers\)"),
        (4, -1, 2, "got -1 of 2 workers"),
    ],
)
def test_impossible_batches_are_config_errors(
    global_batch_size: int, rank: int, world_size: int, message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        InMemoryBatches(
            _image_set(200),
            global_batch_size=global_batch_size,
            seed=0,
            rank=rank,
            world_size=world_size,
        )


@settings(deadline=None, max_examples=100)
@given(
    num_images=st.integers(1, 60),
    batch_size=st.integers(1, 70),
    world_size=st.integers(1, 9),
    limit=st.none() | st.integers(1, 80),
)
def test_evaluation_covers_every_image_exactly_once(
    num_images: int, batch_size: int, world_size: int, limit: int | None
) -> None:
    image_set = _image_set(num_images)
    image_ids: list[int] = []
    shard_sizes = []
    for rank in range(world_size):
        batches = list(
            evaluation_batches(
                image_set, batch_size=batch_size, rank=rank, world_size=world_size, limit=limit
            )
        )
        for batch in batches:
            _assert_rows(batch, image_set)
        sizes = [len(batch.labels) for batch in batches]
        assert all(size == batch_size for size in sizes[:-1])
        assert all(1 <= size <= batch_size for size in sizes[-1:])
        shard_sizes.append(sum(sizes))
        image_ids += [int(i) for batch in batches for i in batch.image_ids]
    assert image_ids == list(range(min(num_images, limit or num_images)))
    assert max(shard_sizes) - min(shard_sizes) <= 1


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"batch_size": 0}, "batch size of an evaluation: got 0"),
        ({"limit": 0}, "limit of an evaluation: got 0"),
        ({"rank": 1}, "got 1 of 1 workers"),
    ],
)
def test_impossible_evaluations_fail_at_the_call(change: dict[str, int], message: str) -> None:
    arguments = {"batch_size": 2, "rank": 0, "world_size": 1, **change}
    with pytest.raises(ConfigError, match=message):
        evaluation_batches(_image_set(3), **arguments)
