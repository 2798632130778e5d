"""Rows by image come back bit for bit, and damage of any kind is seen."""

import hashlib
import json
import math

import pyarrow.parquet as pq
import pytest
import torch

from cdvae_ray.errors import DataError, StorageError
from cdvae_ray.storage.row_set import (
    ROWS,
    ImageRows,
    concatenate_rows,
    find_rows,
    read_row_set,
    read_rows,
    row_shards,
    rows_bytes,
)
from cdvae_ray.storage.shards import (
    seal_shards,
    shard_facts,
    shard_name,
    shard_ranges,
    stored_facts,
    tidy_shards,
)
from cdvae_ray.storage.store import Store

KIND = "feature-set"
IDENTITY, OTHER_IDENTITY = "i" * 64, "o" * 64
LABELS = {"set": "adversarial", "attack": "PGD-Linf", "space": "class_essential", "seed": 0}
COUNT = 20


def made_up_rows(start=0, stop=COUNT):
    """Rows [start, stop) of a hundred that are always the same."""
    generator = torch.Generator().manual_seed(0)
    ids = torch.arange(100)
    columns = {
        "features/conv1": torch.randn(100, 6, generator=generator),
        "distances": torch.randn(100, 3, generator=generator).double() / 3,
        "loss": torch.randn(100, generator=generator),
        "score": torch.randn(100, generator=generator).double() / 3,
        "label": ids % 3,
        "neighbours": torch.stack([ids - 50, ids * 2**55], dim=1),
        "correct": ids % 2 == 0,
        "flags": torch.stack([ids % 3 == 0, ids % 5 == 0], dim=1),
    }
    # What a careless codec would change: denormals, minus zero, infinities, a NaN of its own bits.
    columns["features/conv1"][::2] = torch.tensor([1e-45, -0.0, 0.0, math.inf, -math.inf, 1e-42])
    columns["features/conv1"].view(torch.int32)[4, 0] = 0x7FC12345
    columns["distances"][::2] = torch.tensor([5e-324, -0.0, math.inf], dtype=torch.float64)
    columns["loss"][:3] = torch.tensor([1e-45, -0.0, -math.inf])
    columns["score"][:3] = torch.tensor([5e-324, -0.0, 1 / 3], dtype=torch.float64)
    columns["label"][:2] = torch.tensor([-(2**63), 2**63 - 1])
    return ImageRows(ids[start:stop], {name: each[start:stop] for name, each in columns.items()})


COLUMNS = tuple(made_up_rows().columns)


def bits(values):
    return values.dtype, values.shape, values.contiguous().numpy().tobytes()


def same(first, second):
    """The same columns in the same order, to the bit."""
    return bits(first.image_ids) == bits(second.image_ids) and [
        (name, bits(values)) for name, values in first.columns.items()
    ] == [(name, bits(values)) for name, values in second.columns.items()]


def shard(rows, identity=IDENTITY):
    return rows_bytes(rows, identity_digest=identity, labels=LABELS)


def store_set(folder, size, count=COUNT):
    """A set of `count` rows in shards of `size`; returns its store and content digest."""
    store, facts = Store.at(folder), []
    for name, ids in shard_ranges(count, size).items():
        rows = made_up_rows(ids.start, ids.stop)
        content = shard(rows)
        store.child(ROWS).write(name, content)
        facts.append(shard_facts(name, rows.row_digests(), content))
    made_of = {"identity_digest": IDENTITY, "images": count}
    return store, seal_shards(store, facts, kind=KIND, folder=ROWS, facts=made_of)


def shard_path(store, number):
    return f"{store.root}/{ROWS}/{shard_name(number)}"


def find(store, name="shard.parquet", ids=range(4), identity=IDENTITY):
    return find_rows(store, name, ids, identity_digest=identity)


def refused(run, match):
    """Asserts a StorageError of one line."""
    with pytest.raises(StorageError, match=match) as caught:
        run()
    assert "\n" not in str(caught.value)


def footer_place(content):
    """Where the metadata of a Parquet file begins: its length and a mark of 4 bytes are last."""
    return len(content) - 8 - int.from_bytes(content[-8:-4], "little")


def few_columns():
    rows = made_up_rows(0, 4)
    return ImageRows(rows.image_ids, {name: rows[name] for name in ("features/conv1", "correct")})


def changes_seen(store, places):
    """Changes one byte at a time; how many changes were seen, none of which gives other rows."""
    rows, seen = few_columns(), 0
    content = shard(rows)
    for place in places:
        changed = bytearray(content)
        changed[place] ^= 0x40
        store.write("shard.parquet", bytes(changed))
        if find(store) is None:
            refused(lambda: read_rows(store, "shard.parquet", identity_digest=IDENTITY), "shard")
            seen += 1
        else:
            back = read_rows(store, "shard.parquet", identity_digest=IDENTITY)
            assert same(back, rows), f"byte {place} of {len(content)}"
    return seen


def test_a_set_that_is_sealed_and_whole_is_not_sealed_again(tmp_path):
    store, content = store_set(tmp_path / "set", 6)
    manifest = tmp_path / "set" / "manifest.json"
    written = manifest.stat().st_ino
    assert store_set(tmp_path / "set", 6)[1] == content
    assert manifest.stat().st_ino == written
    # A damaged one is.
    manifest.write_bytes(manifest.read_bytes()[:-20])
    assert store_set(tmp_path / "set", 6)[1] == content
    assert stored_facts(store, KIND)["content_digest"] == content


def test_tidying_a_set_leaves_its_shards_and_what_others_are_writing(tmp_path):
    store, _ = store_set(tmp_path / "set", 6)
    shards = store.child(ROWS)
    names = shards.names()
    for name in ("shard-00099.parquet", ".partial-shard-00000.parquet-12345678"):
        shards.write(name, b"1")
    tidy_shards(store, ROWS, names)
    assert shards.names() == [".partial-shard-00000.parquet-12345678", *names]


# --- what is written is read --------------------------------------------------------------------


def test_rows_come_back_bit_for_bit(tmp_path):
    rows, store = made_up_rows(3, 11), Store.at(tmp_path)
    assert len({values.dtype for values in rows.columns.values()}) == 4
    store.write("shard.parquet", shard(rows))
    assert same(read_rows(store, "shard.parquet", identity_digest=IDENTITY), rows)


def test_numbers_that_lie_apart_in_memory_come_back(tmp_path):
    table, store = torch.rand(5, 7, generator=torch.Generator().manual_seed(0)), Store.at(tmp_path)
    rows = ImageRows(
        torch.arange(10)[::2],
        {"column": table[:, 3], "columns": table[:, 1:6:2], "turned": table.T[:5, :4]},
    )
    packed = ImageRows(
        rows.image_ids.clone(),
        {name: values.contiguous() for name, values in rows.columns.items()},
    )
    assert rows.row_digests() == packed.row_digests()
    store.write("shard.parquet", shard(rows))
    assert same(read_rows(store, "shard.parquet", identity_digest=IDENTITY), packed)


def test_any_parquet_reader_finds_one_row_an_image_and_where_it_comes_from(tmp_path):
    store, _ = store_set(tmp_path / "set", 6)
    table = pq.read_table(f"{store.root}/{ROWS}")
    assert set(table.column_names) == {"image_id", *LABELS, *COLUMNS}
    assert table["image_id"].to_pylist() == list(range(COUNT))
    for name, text in LABELS.items():
        assert table[name].to_pylist() == [text] * COUNT
    rows = made_up_rows()
    for name in ("score", "label", "correct", "neighbours", "flags"):
        assert table[name].to_pylist() == rows[name].tolist()


def test_shards_come_in_order_and_one_at_a_time(tmp_path):
    store, _ = store_set(tmp_path / "set", 6)
    ids = [rows.image_ids.tolist() for rows in row_shards(store, KIND)]
    assert ids == [[*range(6)], [*range(6, 12)], [*range(12, 18)], [18, 19]]
    store.child(ROWS).delete(shard_name(2))
    shards = row_shards(store, KIND)
    assert same(next(shards), made_up_rows(0, 6)) and same(next(shards), made_up_rows(6, 12))
    refused(lambda: next(shards), shard_name(2))


def test_rows_of_several_shards_are_put_together_in_the_order_given():
    parts = [made_up_rows(0, 3), made_up_rows(3, 4), made_up_rows(4, 9)]
    assert same(concatenate_rows(parts), made_up_rows(0, 9))
    assert concatenate_rows(parts[::-1]).image_ids.tolist() == [4, 5, 6, 7, 8, 3, 0, 1, 2]


# --- digests ------------------------------------------------------------------------------------


def test_the_content_digest_does_not_depend_on_the_shards(tmp_path):
    made = {size: store_set(tmp_path / str(size), size) for size in (1, 6, 20)}
    assert len({digest for _, digest in made.values()}) == 1
    for store, _ in made.values():
        assert same(read_row_set(store, KIND), made_up_rows())
    _, fewer = store_set(tmp_path / "fewer", 6, count=19)
    assert fewer not in {digest for _, digest in made.values()}


@pytest.mark.parametrize("name", ["image_id", *COLUMNS])
def test_one_bit_changes_the_digest_of_its_row_alone(name):
    rows, other = made_up_rows(0, 5), made_up_rows(0, 5)
    values = other.image_ids if name == "image_id" else other[name]
    if values.dtype == torch.bool:
        values[3] ^= True
    else:
        # The last bit of a number: the sign of a zero and the payload of a NaN count as well.
        integers = values.view(torch.int32 if values.element_size() == 4 else torch.int64)
        integers.view(5, -1)[3, -1] ^= 1
    equal = [one == two for one, two in zip(rows.row_digests(), other.row_digests(), strict=True)]
    assert equal == [True, True, True, False, True]


def test_the_manifest_holds_the_digests_of_the_files_and_what_made_them(tmp_path):
    store, content_digest = store_set(tmp_path / "set", 6)
    manifest = store.read_json("manifest.json")
    assert list(manifest["files"]) == [f"{ROWS}/{shard_name(number)}" for number in range(4)]
    for file, promised in manifest["files"].items():
        content = store.read(file)
        expected = {"sha256": hashlib.sha256(content).hexdigest(), "bytes": len(content)}
        assert promised == expected
    assert stored_facts(store, KIND) == {
        "identity_digest": IDENTITY,
        "images": COUNT,
        "content_digest": content_digest,
    }


@pytest.mark.parametrize(("count", "size"), [(20, 6), (18, 6), (1, 6), (250, 1)])
def test_shards_hold_all_images_once_and_their_names_sort_in_order(count, size):
    ranges = shard_ranges(count, size)
    assert [number for ids in ranges.values() for number in ids] == list(range(count))
    assert list(ranges) == sorted(ranges)
    assert all(len(ids) == size for ids in list(ranges.values())[:-1])


# --- a shard that an earlier job stored ---------------------------------------------------------


def test_a_sound_shard_is_found_with_its_facts(tmp_path):
    store, rows = Store.at(tmp_path), made_up_rows(0, 4)
    content = shard(rows)
    store.write("shard.parquet", content)
    found = find(store)
    assert found == shard_facts("shard.parquet", rows.row_digests(), content)
    assert found.num_bytes == (tmp_path / "shard.parquet").stat().st_size


def test_a_shard_of_another_set_or_of_other_images_is_not_taken(tmp_path):
    store = Store.at(tmp_path)
    store.write("shard.parquet", shard(made_up_rows(0, 4)))
    assert find(store) is not None
    assert find(store, identity=OTHER_IDENTITY) is None
    assert find(store, "absent.parquet") is None
    for ids in (range(3), range(5), range(1, 5), range(3, -1, -1)):
        assert find(store, ids=ids) is None
    refused(
        lambda: read_rows(store, "shard.parquet", identity_digest=OTHER_IDENTITY),
        f"got a shard of set {IDENTITY[:12]}, expected {OTHER_IDENTITY[:12]}",
    )
    refused(lambda: read_rows(store, "absent.parquet", identity_digest=IDENTITY), "absent")


@pytest.mark.parametrize("kept", [0.0, 0.2, 0.5, 0.9, 1.0])
def test_a_truncated_shard_is_made_again(tmp_path, kept):
    store, content = Store.at(tmp_path), shard(made_up_rows(0, 4))
    store.write("shard.parquet", content[: int(kept * (len(content) - 1))])
    assert find(store) is None
    refused(lambda: read_rows(store, "shard.parquet", identity_digest=IDENTITY), "Parquet file")


def test_a_file_that_another_program_wrote_is_not_taken(tmp_path):
    store = Store.at(tmp_path)
    (tmp_path / "shard").write_bytes(shard(made_up_rows(0, 4)))
    bare = pq.read_table(tmp_path / "shard").replace_schema_metadata(None)
    pq.write_table(bare, tmp_path / "bare")
    (tmp_path / "text").write_text("image_id,score\n0,1.0\n")
    for name in ("bare", "text"):
        assert find(store, name) is None
        refused(lambda name=name: read_rows(store, name, identity_digest=IDENTITY), name)


def test_one_changed_byte_among_the_rows_is_seen(tmp_path):
    places = range(0, footer_place(shard(few_columns())), 2)
    # The others lie in statistics and page headers, on which no row depends.
    assert changes_seen(Store.at(tmp_path), places) > len(places) / 4


def test_one_changed_byte_of_the_footer_is_seen_or_harmless(tmp_path):
    content = shard(few_columns())
    places = range(footer_place(content), len(content), 3)
    assert changes_seen(Store.at(tmp_path), places) > len(places) / 4


# --- sets that are not whole --------------------------------------------------------------------


def test_a_changed_byte_ends_the_set_where_it_lies(tmp_path):
    store, _ = store_set(tmp_path / "set", 6)
    content = bytearray(store.read(f"{ROWS}/{shard_name(1)}"))
    content[footer_place(content) // 2] ^= 0x01
    store.child(ROWS).write(shard_name(1), bytes(content))
    shards = row_shards(store, KIND)
    assert same(next(shards), made_up_rows(0, 6))
    refused(lambda: next(shards), shard_name(1))
    refused(lambda: read_row_set(store, KIND), shard_name(1))


def test_a_missing_shard_is_no_smaller_set(tmp_path):
    for number in range(4):
        store, _ = store_set(tmp_path / str(number), 6)
        store.child(ROWS).delete(shard_name(number))
        refused(lambda store=store: read_row_set(store, KIND), shard_name(number))


def test_a_shard_of_another_set_is_refused(tmp_path):
    store, _ = store_set(tmp_path / "set", 6)
    store.child(ROWS).write(shard_name(3), shard(made_up_rows(18, 20), OTHER_IDENTITY))
    refused(lambda: read_row_set(store, KIND), f"a shard of set {OTHER_IDENTITY[:12]}")


@pytest.mark.parametrize("change", ["swapped", "other rows", "fewer rows"])
def test_sound_shards_that_are_not_those_sealed_are_seen_at_the_end(tmp_path, change):
    store, _ = store_set(tmp_path / "set", 6)
    rows = store.child(ROWS)
    first, second = (rows.read(shard_name(number)) for number in (0, 1))
    if change == "swapped":
        rows.write(shard_name(0), second)
        rows.write(shard_name(1), first)
    else:
        stop = 18 if change == "other rows" else 17
        part = made_up_rows(12, stop)
        part["label"][-1] += 1 if change == "other rows" else 0
        rows.write(shard_name(2), shard(part))
    given = []
    refused(lambda: given.extend(row_shards(store, KIND)), "its rows: got content")
    assert len(given) == 4
    refused(lambda: read_row_set(store, KIND), "its rows: got content")


def test_without_its_manifest_there_is_no_set(tmp_path):
    store, _ = store_set(tmp_path / "set", 6)
    store.delete("manifest.json")
    assert stored_facts(store, KIND) is None
    refused(lambda: read_row_set(store, KIND), "in it, expected a complete feature-set")
    absent = Store.at(tmp_path / "absent")
    assert stored_facts(absent, KIND) is None
    refused(lambda: read_row_set(absent, KIND), "absent")


def test_a_set_of_another_kind_or_with_a_changed_manifest_is_refused(tmp_path):
    store, _ = store_set(tmp_path / "set", 6)
    for read in (stored_facts, read_row_set):
        refused(lambda read=read: read(store, "score-set"), "expected score-set in format")
    manifest = store.read_json("manifest.json")
    del manifest["files"][f"{ROWS}/{shard_name(3)}"]
    store.write("manifest.json", json.dumps(manifest).encode())
    for read in (stored_facts, read_row_set):
        refused(lambda read=read: read(store, KIND), "manifest.json: got content of digest")


# --- rows in memory -----------------------------------------------------------------------------


@pytest.mark.parametrize("length", [0, 2, 4])
def test_columns_of_unequal_length_are_refused(length):
    with pytest.raises(DataError, match=f"3 of label, {length} of score, expected 3 each"):
        ImageRows(torch.arange(3), {"label": torch.arange(3), "score": torch.zeros(length)})


def test_an_unknown_column_is_an_error_that_names_those_there_are():
    rows = made_up_rows(0, 2)
    with pytest.raises(DataError, match=r"loss, score, label.*expected prediction among them"):
        rows["prediction"]


def test_rows_are_selected_by_mask_or_by_places():
    rows = made_up_rows()
    assert same(rows.select((rows.image_ids >= 3) & (rows.image_ids < 9)), made_up_rows(3, 9))
    turned = rows.select(torch.tensor([5, 2]))
    assert len(turned) == 2 and turned.image_ids.tolist() == [5, 2]
    assert turned["neighbours"].tolist() == [[-45, 5 * 2**55], [-48, 2 * 2**55]]
    assert turned.row_digests() == [rows.row_digests()[place] for place in (5, 2)]
