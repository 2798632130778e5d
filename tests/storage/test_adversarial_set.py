"""Adversarial sets come back bit for bit, and damage of any kind is seen."""

import dataclasses

import pyarrow.parquet as pq
import pytest
import torch

from cdvae_ray.errors import StorageError
from cdvae_ray.storage.adversarial_set import (
    SHARDS,
    AdversarialImages,
    find_shard,
    read_adversarial_set,
    read_outcomes,
    read_shard,
    seal_set,
    shard_bytes,
    stored_set_facts,
)
from cdvae_ray.storage.shards import shard_facts, shard_name
from cdvae_ray.storage.store import Store

LABELS = {"attack": "PGD", "threat_model": "class-essential", "seed": 0}


def made_up_rows(start, stop):
    """Rows [start, stop) of a hundred that are always the same."""
    generator = torch.Generator().manual_seed(0)
    ids = torch.arange(100)
    images = torch.rand(100, 3, 4, 4, generator=generator)
    # Values that a careless codec would change: denormals, the largest below 1, minus zero.
    images[:, 0, 0] = torch.tensor([1e-42, 1 - 2**-24, -0.0, 1 / 3])
    whole = {
        "image_ids": ids,
        "images": images,
        "labels": ids % 3,
        "clean_predictions": ids % 2,
        "predictions": ids % 5,
        "success": ids % 2 == 0,
        "loss": torch.randn(100, generator=generator),
        "norm": torch.rand(100, generator=generator),
        "linf": torch.rand(100, generator=generator),
        "l2": torch.rand(100, generator=generator),
        "zero_gradient": ids % 4 == 0,
        "nonfinite_gradient": ids < 0,
    }
    return AdversarialImages(**{name: values[start:stop] for name, values in whole.items()})


def store_set(folder, size, count=20, identity="i" * 64):
    """A set of `count` rows in shards of `size`; returns its store and content digest."""
    store, facts = Store.at(folder), []
    for first in range(0, count, size):
        rows, name = made_up_rows(first, min(first + size, count)), shard_name(first // size)
        content = shard_bytes(rows, identity_digest=identity, labels=LABELS)
        store.child(SHARDS).write(name, content)
        facts.append(shard_facts(name, rows.row_digests(), content))
    return store, seal_set(store, facts, facts={"identity_digest": identity})


def equal(first, second):
    return all(
        torch.equal(getattr(first, field.name), getattr(second, field.name))
        for field in dataclasses.fields(AdversarialImages)
    )


def test_rows_come_back_bit_for_bit(tmp_path):
    rows = made_up_rows(3, 11)
    store = Store.at(tmp_path)
    store.write("shard.parquet", shard_bytes(rows, identity_digest="a", labels=LABELS))
    back = read_shard(store, "shard.parquet", identity_digest="a")
    assert equal(rows, back)
    assert torch.equal(rows.images.view(torch.int32), back.images.view(torch.int32))


def test_any_parquet_reader_finds_one_row_an_image(tmp_path):
    store_set(tmp_path / "set", 6)
    frame = pq.read_table(tmp_path / "set" / SHARDS).to_pandas()
    assert sorted(frame["image_id"]) == list(range(20))
    assert set(frame["attack"]) == {"PGD"}
    assert set(frame["threat_model"]) == {"class-essential"}
    assert len(frame["image"][0]) == 48
    assert {"label", "clean_prediction", "adversarial_prediction", "success", "linf", "l2"} <= set(
        frame.columns
    )


def test_the_digest_does_not_depend_on_the_shards(tmp_path):
    made = {size: store_set(tmp_path / str(size), size) for size in (1, 6, 20)}
    sets = {size: read_adversarial_set(store) for size, (store, _) in made.items()}
    assert len({digest for _, digest in made.values()}) == 1
    assert torch.equal(sets[1].rows.images, sets[20].rows.images)
    assert torch.equal(sets[6].rows.image_ids, torch.arange(20))


def test_one_bit_of_one_pixel_changes_the_digest():
    rows, other = made_up_rows(0, 3), made_up_rows(0, 3)
    other.images.view(torch.int32)[2, 0, 0, 0] ^= 1
    digests, others = rows.row_digests(), other.row_digests()
    assert digests[:2] == others[:2]
    assert digests[2] != others[2]


def test_a_shard_of_another_set_is_not_taken(tmp_path):
    rows, store = made_up_rows(0, 4), Store.at(tmp_path)
    store.write("shard.parquet", shard_bytes(rows, identity_digest="a", labels=LABELS))
    assert find_shard(store, "shard.parquet", range(4), identity_digest="a") is not None
    assert find_shard(store, "shard.parquet", range(4), identity_digest="b") is None
    assert find_shard(store, "shard.parquet", range(5), identity_digest="a") is None
    assert find_shard(store, "absent.parquet", range(4), identity_digest="a") is None
    with pytest.raises(StorageError, match="a shard of set a"):
        read_shard(store, "shard.parquet", identity_digest="b")


@pytest.mark.parametrize("place", [0.1, 0.4, 0.7, 0.99])
def test_a_damaged_shard_is_made_again_and_not_read(tmp_path, place):
    store, _ = store_set(tmp_path, 6)
    path = tmp_path / SHARDS / shard_name(1)
    content = bytearray(path.read_bytes())
    content[int(place * len(content))] ^= 0x40
    path.write_bytes(bytes(content))
    found = find_shard(store.child(SHARDS), shard_name(1), range(6, 12), identity_digest="i" * 64)
    if found is None:
        with pytest.raises(StorageError):
            read_adversarial_set(store)
    else:
        # The byte lies in a part of the file that no row depends on.
        path.unlink()
        with pytest.raises(StorageError):
            read_adversarial_set(store)


def test_a_truncated_shard_is_made_again(tmp_path):
    store, _ = store_set(tmp_path, 6)
    path = tmp_path / SHARDS / shard_name(2)
    path.write_bytes(path.read_bytes()[:-100])
    assert (
        find_shard(store.child(SHARDS), shard_name(2), range(12, 18), identity_digest="i" * 64)
        is None
    )


def test_outcomes_are_those_of_the_set_and_keep_no_pixel(tmp_path):
    store, _ = store_set(tmp_path / "set", 6)
    whole, outcomes = read_adversarial_set(store).rows, read_outcomes(store)
    assert torch.equal(outcomes.predictions, whole.predictions)
    assert torch.equal(outcomes.image_ids, whole.image_ids)
    assert outcomes.images.untyped_storage().nbytes() == 0


@pytest.mark.parametrize("parts", [1, 3])
def test_a_shards_outcomes_keep_none_of_its_pixels_alive(tmp_path, parts, monkeypatch):
    store, _ = store_set(tmp_path / "set", 20 // parts)
    kept = []
    concatenate = AdversarialImages.concatenate
    monkeypatch.setattr(
        AdversarialImages,
        "concatenate",
        lambda found: kept.extend(found) or concatenate(found),
    )
    read_outcomes(store)
    assert [part.images.untyped_storage().nbytes() for part in kept] == [0] * len(kept)
    assert len(kept) >= parts


def test_without_its_manifest_there_is_no_set(tmp_path):
    store, _ = store_set(tmp_path / "set", 6)
    assert stored_set_facts(store) is not None
    (tmp_path / "set" / "manifest.json").unlink()
    assert stored_set_facts(store) is None
    with pytest.raises(StorageError, match="in it, expected"):
        read_adversarial_set(store)
