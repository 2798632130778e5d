"""From a folder or Parquet files to shards: everything arrives, unchanged, whole or not at all."""

from __future__ import annotations

import hashlib
import json
import os
import re
import threading
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pyarrow as pa
import pyarrow.fs
import pyarrow.parquet as pq
import pytest
import torch

import cdvae_ray.data.prepare as prepare
from cdvae_ray.config.data import DataConfig
from cdvae_ray.config.prepare_job import PrepareConfig
from cdvae_ray.config.restricted_imagenet import RESTRICTED_IMAGENET
from cdvae_ray.data import ImageSet, Splits, image_source, load_splits, parquet_source
from cdvae_ray.data.folder_source import FolderSource
from cdvae_ray.errors import CdvaeError, DataError, StorageError
from cdvae_ray.storage import prepared_images
from cdvae_ray.storage.artifact import read_artifact, read_manifest
from cdvae_ray.storage.prepared_images import PreparedImages, prepare_images
from cdvae_ray.storage.store import Store

FROG, TOAD, BIRD, DOG, CAT = "n01641577", "n01644373", "n01795545", "n02085620", "n02123045"
TENCH, CAR = "n01440764", "n04285008"
RESTRICTED = (FROG, TOAD, BIRD, DOG, CAT)
CLASSES = (TENCH, *RESTRICTED, CAR)
ONE_LINE = r"^[^\n]*: got [^\n]*, expected [^\n]*; [^\n]*$"
TRAIN_IMAGES, TEST_IMAGES = 6, 2


@pytest.fixture
def source(tmp_path: Path, encode, noise) -> Path:
    """A folder of seven classes, five of them restricted, in the layout of ILSVRC2012."""
    seed = 0
    for split, count in (("train", TRAIN_IMAGES), ("val", TEST_IMAGES)):
        for name in CLASSES:
            folder = tmp_path / "source" / split / name
            folder.mkdir(parents=True)
            for image in range(count):
                (folder / f"{name}_{image}.JPEG").write_bytes(encode(noise(seed)))
                seed += 1
    return tmp_path / "source"


@pytest.fixture
def parquet(source: Path, tmp_path: Path) -> Path:
    """The same images as Parquet files, classes interleaved, in several files and row groups."""
    folder = tmp_path / "parquet/data"
    folder.mkdir(parents=True)
    for split, half in (("train", "train"), ("validation", "val")):
        files = sorted((source / half).rglob("*.JPEG"), key=lambda file: file.name[::-1])
        for number in range(2):
            write_parquet(folder / f"{split}-0000{number}-of-00002.parquet", files[number::2])
    return tmp_path / "parquet"


def write_parquet(target: Path, files: list[Path], names: tuple[str, ...] = CLASSES) -> None:
    images = [{"bytes": file.read_bytes(), "path": file.name} for file in files]
    labels = [names.index(file.parent.name) for file in files]
    label = {"names": list(names), "_type": "ClassLabel"}
    info = {"info": {"features": {"image": {"_type": "Image"}, "label": label}}}
    table = pa.table({"image": images, "label": pa.array(labels, pa.int64())})
    pq.write_table(
        table.replace_schema_metadata({"huggingface": json.dumps(info)}), target, row_group_size=3
    )


def run(source: Path, out: Path | str, say=lambda _: None, /, **settings) -> PreparedImages:
    defaults = {"path": str(source), "out": str(out), "images_per_shard": 7, "num_threads": 3}
    return prepare_images(PrepareConfig(**{**defaults, **settings}), say=say)


def load(source: Path, kind: str = "parquet") -> Splits:
    return load_splits(DataConfig(source=kind, path=str(source), image_size=16))


def by_class(image_set: ImageSet) -> Counter:
    """How often each pair of class name and pixels occurs."""
    return Counter(
        (image_set.class_names[label], image.numpy().tobytes())
        for image, label in zip(image_set.images, image_set.labels.tolist(), strict=True)
    )


def shards(out: Path, split: str) -> list[Path]:
    return sorted(out.glob(f"{split}-*.parquet"))


def rows(out: Path, split: str) -> list[dict]:
    return [row for shard in shards(out, split) for row in pq.read_table(shard).to_pylist()]


def contents(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in folder.iterdir()}


def test_all_of_a_folder_comes_back_through_load_splits(source: Path, tmp_path: Path) -> None:
    run(source, tmp_path / "out", classes="all")
    (source / "val").rename(source / "test")
    whole, prepared = load(source, "folder"), load(tmp_path / "out")
    assert prepared.train.class_names == whole.train.class_names == CLASSES
    assert by_class(prepared.train) == by_class(whole.train)
    assert torch.equal(prepared.test.images, whole.test.images)  # the test half is not shuffled
    assert torch.equal(prepared.test.labels, whole.test.labels)


def test_restricted_classes_alone_are_kept_with_their_pixels(source: Path, tmp_path: Path) -> None:
    prepared = run(source, tmp_path / "out")
    (source / "val").rename(source / "test")
    whole, kept = load(source, "folder"), load(tmp_path / "out")
    assert kept.train.class_names == RESTRICTED
    for before, after in zip(whole, kept, strict=True):
        expected = {key: n for key, n in by_class(before).items() if key[0] in RESTRICTED}
        assert by_class(after) == expected
    assert not prepared.found
    assert prepared.facts["splits"]["train"]["classes"] == dict.fromkeys(RESTRICTED, TRAIN_IMAGES)
    assert prepared.facts["splits"]["test"]["classes"] == dict.fromkeys(RESTRICTED, TEST_IMAGES)


def test_super_labels_are_those_of_each_images_class(source: Path, tmp_path: Path) -> None:
    run(source, tmp_path / "out", labels="super")
    names = load(tmp_path / "out").train.class_names
    assert names == ("dog", "cat", "frog", "bird")
    super_class = {each.wordnet_id: each.super_class for each in RESTRICTED_IMAGENET}
    for split in ("train", "test"):
        for row in rows(tmp_path / "out", split):
            wordnet_id = row["image"]["path"].partition("/")[0]
            assert names[row["label"]] == super_class[wordnet_id]
    counts = Counter(row["label"] for row in rows(tmp_path / "out", "train"))
    assert counts == {0: 6, 1: 6, 2: 12, 3: 6}


def test_bytes_and_paths_are_the_files_own(source: Path, tmp_path: Path) -> None:
    run(source, tmp_path / "out")
    for split, half in (("train", "train"), ("test", "val")):
        found = {
            row["image"]["path"]: row["image"]["bytes"] for row in rows(tmp_path / "out", split)
        }
        expected = {
            f"{name}/{file.name}": file.read_bytes()
            for name in RESTRICTED
            for file in (source / half / name).iterdir()
        }
        assert found == expected


def test_parquet_gives_the_same_images_as_its_folder(
    source: Path, parquet: Path, tmp_path: Path
) -> None:
    run(source, tmp_path / "out")
    run(parquet, tmp_path / "again", source="parquet")
    for split, half in (("train", "train"), ("test", "val")):
        pairs = [
            Counter((row["label"], row["image"]["bytes"]) for row in rows(tmp_path / out, split))
            for out in ("out", "again")
        ]
        assert pairs[0] == pairs[1]
        for row in rows(tmp_path / "again", split):
            name = row["image"]["path"]
            assert row["image"]["bytes"] == (source / half / name[:9] / name).read_bytes()
    labels = [row["label"] for row in rows(tmp_path / "again", "test")]
    assert labels == sorted(labels)


def test_what_was_prepared_can_be_prepared_again(source: Path, tmp_path: Path) -> None:
    run(source, tmp_path / "all", classes="all")
    run(tmp_path / "all", tmp_path / "out", source="parquet", labels="super")
    run(source, tmp_path / "direct", labels="super")
    assert by_class(load(tmp_path / "out").train) == by_class(load(tmp_path / "direct").train)
    paths = {row["image"]["path"] for row in rows(tmp_path / "out", "train")}
    assert paths == {row["image"]["path"] for row in rows(tmp_path / "direct", "train")}


def test_parquet_without_names_or_paths_counts_its_training_labels(
    tmp_path: Path, encode, noise
) -> None:
    images = [{"bytes": encode(noise(seed))} for seed in range(3)]
    (tmp_path / "source").mkdir()
    for split in ("train", "test"):
        table = pa.table({"img": images, "label": pa.array([1, 0, 1], pa.int8())})
        pq.write_table(table, tmp_path / f"source/{split}.parquet")
    run(tmp_path / "source", tmp_path / "out", source="parquet", classes="all")
    assert load(tmp_path / "out").train.class_names == ("0", "1")
    assert [row["label"] for row in rows(tmp_path / "out", "test")] == [0, 1, 1]
    assert {row["image"]["path"] for row in rows(tmp_path / "out", "test")} == {None}
    with pytest.raises(DataError, match=r"class names: got 2: 0, 1, expected WordNet ids"):
        run(tmp_path / "source", tmp_path / "other", source="parquet")


@pytest.mark.parametrize("kind", ["folder", "parquet"])
def test_shards_do_not_depend_on_threads_or_on_places(
    source: Path, parquet: Path, tmp_path: Path, kind: str
) -> None:
    place = source if kind == "folder" else parquet
    first = run(place, tmp_path / "one", source=kind, num_threads=1)
    place = place.rename(tmp_path / "moved")
    second = run(place, tmp_path / "two", source=kind, num_threads=16)
    assert first.config_digest == second.config_digest
    one, two = contents(tmp_path / "one"), contents(tmp_path / "two")
    del one["manifest.json"], two["manifest.json"]
    assert one == two


def test_the_seed_alone_orders_training_images(source: Path, tmp_path: Path) -> None:
    orders = []
    for out, seed in (("a", 0), ("b", 0), ("c", 1)):
        run(source, tmp_path / out, seed=seed)
        orders.append([row["image"]["path"] for row in rows(tmp_path / out, "train")])
        test = [row["image"]["path"] for row in rows(tmp_path / out, "test")]
        assert test == sorted(test)
    assert orders[0] == orders[1] != orders[2]
    assert sorted(orders[0]) == sorted(orders[2]) != orders[0]


def test_every_shard_holds_all_classes_mixed(tmp_path: Path, encode, noise) -> None:
    for split, count in (("train", 60), ("val", 1)):
        for name in (FROG, DOG, CAT):
            folder = tmp_path / "source" / split / name
            folder.mkdir(parents=True)
            for image in range(count):
                (folder / f"{image:02d}.png").write_bytes(encode(noise(0, 8, 8)))
    run(tmp_path / "source", tmp_path / "out", images_per_shard=60)
    for shard in shards(tmp_path / "out", "train"):
        labels = Counter(pq.read_table(shard)["label"].to_pylist())
        # 20 are expected of each; a hypergeometric count has a deviation of 3.
        assert all(8 <= labels[label] <= 32 for label in range(3)), labels


def test_shards_are_named_and_filled_as_promised(source: Path, tmp_path: Path) -> None:
    run(source, tmp_path / "out")
    names = [shard.name for shard in shards(tmp_path / "out", "train")]
    assert names == [f"train-{number:05d}-of-00005.parquet" for number in range(5)]
    sizes = [pq.read_metadata(shard).num_rows for shard in shards(tmp_path / "out", "train")]
    assert sizes == [7, 7, 7, 7, 2]
    schema = pq.read_schema(shards(tmp_path / "out", "test")[0])
    assert schema.field("image").type == pa.struct({"bytes": pa.binary(), "path": pa.string()})
    assert schema.field("label").type == pa.int64()
    features = json.loads(schema.metadata[b"huggingface"])["info"]["features"]
    assert features["label"] == {"names": list(RESTRICTED), "_type": "ClassLabel"}


def test_the_manifest_tells_the_truth(source: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    run(source, out)
    manifest = read_manifest(Store.at(tmp_path), "out", kind="prepared-images")
    assert set(manifest["files"]) == {file.name for file in out.iterdir()} - {"manifest.json"}
    for name, promised in manifest["files"].items():
        content = (out / name).read_bytes()
        assert promised["bytes"] == len(content)
        assert promised["sha256"] == hashlib.sha256(content).hexdigest()
        assert promised["images"] == pq.read_metadata(out / name).num_rows
    facts = manifest["facts"]
    assert facts["class_names"] == list(RESTRICTED)
    assert facts["settings"]["images_per_shard"] == 7
    assert facts["source"]["kind"] == "folder"
    for split, images, shard_count in (("train", 30, 5), ("test", 10, 2)):
        told = facts["splits"][split]
        assert (told["images"], told["shards"]) == (images, shard_count)
        assert told["bytes"] == sum(shard.stat().st_size for shard in shards(out, split))
        assert told["skipped"] == {"undecodable": 0, "too_small": 0, "names": []}
    (out / "test-00000-of-00002.parquet").write_bytes(b"other")
    with pytest.raises(StorageError, match="the file is damaged"):
        read_artifact(Store.at(tmp_path), "out", kind="prepared-images")


# What is left out, and what stops the job.


def break_images(source: Path, encode, noise, count: int) -> list[str]:
    """Truncates images of the training half, the last of them to nothing; their names."""
    files = sorted((source / "train" / DOG).iterdir())[:count]
    for file in files:
        file.write_bytes(encode(noise(0, 32, 32), "JPEG")[:-300])
    files[-1].write_bytes(b"")
    return [f"train/{DOG}/{file.name}" for file in files]


def test_unusable_images_are_counted_and_the_first_five_named(
    source: Path, tmp_path: Path, encode, noise
) -> None:
    broken = break_images(source, encode, noise, 5)
    tiny = source / "train" / CAT / f"{CAT}_3.JPEG"
    tiny.write_bytes(encode(noise(0, 40, 7)))
    lines: list[str] = []
    prepared = run(source, tmp_path / "out", lines.append, max_corrupt_fraction=0.2)
    told = prepared.facts["splits"]["train"]["skipped"]
    assert (told["undecodable"], told["too_small"], len(told["names"])) == (5, 1, 5)
    assert set(told["names"]) < {*broken, f"train/{CAT}/{tiny.name}"}
    assert any("train: left out 6 images" in line and told["names"][4] in line for line in lines)
    assert prepared.facts["splits"]["train"]["classes"][DOG] == 1
    assert prepared.facts["splits"]["train"]["images"] == 24 == len(load(tmp_path / "out").train)
    assert prepared.metrics["train_undecodable"] == 5
    assert prepared.facts["splits"]["test"]["skipped"]["names"] == []
    names = [row["image"]["path"] for row in rows(tmp_path / "out", "train")]
    assert not {f"train/{name}" for name in names} & set(told["names"])


@pytest.mark.parametrize(("fraction", "stops"), [(0.0, True), (0.0999, True), (0.1, False)])
def test_the_fraction_is_a_share_of_the_splits_images(
    source: Path, tmp_path: Path, encode, noise, fraction: float, stops: bool
) -> None:
    break_images(source, encode, noise, 3)
    if not stops:
        run(source, tmp_path / "out", max_corrupt_fraction=fraction)
        return
    with pytest.raises(DataError, match=ONE_LINE) as refused:
        run(source, tmp_path / "out", max_corrupt_fraction=fraction)
    if fraction == 0.0:
        assert re.match(
            rf"train/{DOG}/{DOG}_\d.JPEG: got \d+ bytes that do not", str(refused.value)
        )
        assert "--max-corrupt-fraction" in refused.value.remedy
    else:
        assert str(refused.value).startswith("images of train: got 3 unusable ones so far: train/")
        assert "at most 2 of 30" in str(refused.value)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(("side", "usable"), [(8, True), (7, False)])
def test_the_shorter_side_decides(
    source: Path, tmp_path: Path, encode, noise, side: int, usable: bool
) -> None:
    (source / "val" / CAT / f"{CAT}_0.JPEG").write_bytes(encode(noise(0, 40, side)))
    if usable:
        run(source, tmp_path / "out")
        return
    with pytest.raises(DataError, match=rf"val/{CAT}/{CAT}_0.JPEG: got an image of 40 x 7 pixels"):
        run(source, tmp_path / "out")
    run(source, tmp_path / "out", min_side=7)


def test_odd_colour_modes_are_usable_and_kept_as_they_are(
    source: Path, tmp_path: Path, encode, noise
) -> None:
    folder = source / "train" / FROG
    for number, (mode, kind) in enumerate(
        [("L", "JPEG"), ("CMYK", "JPEG"), ("P", "PNG"), ("RGBA", "PNG"), ("1", "PNG")]
    ):
        (folder / f"odd{number}.jpg").write_bytes(encode(noise(number).convert(mode), kind))
    run(source, tmp_path / "out")
    found = {row["image"]["path"]: row["image"]["bytes"] for row in rows(tmp_path / "out", "train")}
    for number in range(5):
        name = f"odd{number}.jpg"
        assert found[f"{FROG}/{name}"] == (folder / name).read_bytes()
    assert len(load(tmp_path / "out").train) == 35


def test_a_class_that_loses_all_its_images_is_named(
    source: Path, tmp_path: Path, encode, noise
) -> None:
    break_images(source, encode, noise, 6)
    with pytest.raises(DataError, match=rf"class {DOG} of train: got no usable image among 6"):
        run(source, tmp_path / "out", max_corrupt_fraction=1.0)
    assert not (tmp_path / "out").exists()


def test_broken_rows_of_parquet_are_counted_by_file_and_row(
    source: Path, parquet: Path, tmp_path: Path
) -> None:
    file = parquet / "data/train-00001-of-00002.parquet"
    table = pq.read_table(file)
    images = table["image"].to_pylist()
    row = table["label"].to_pylist().index(CLASSES.index(DOG))
    images[row] = None
    other = pa.table({"image": pa.array(images, table.schema.field("image").type)})
    pq.write_table(
        other.append_column("label", table["label"]).replace_schema_metadata(table.schema.metadata),
        file,
    )
    with pytest.raises(DataError, match=rf"{file.name} row {row}: got 0 bytes that do not decode"):
        run(parquet, tmp_path / "out", source="parquet")
    prepared = run(parquet, tmp_path / "out", source="parquet", max_corrupt_fraction=0.1)
    assert prepared.facts["splits"]["train"]["skipped"]["names"] == [f"{file.name} row {row}"]


def test_a_shard_whose_images_are_all_left_out_is_empty_but_there(
    source: Path, tmp_path: Path, encode, noise
) -> None:
    break_images(source, encode, noise, 2)
    run(source, tmp_path / "out", images_per_shard=1, max_corrupt_fraction=0.1)
    assert len(shards(tmp_path / "out", "train")) == 30
    assert len(load(tmp_path / "out").train) == 28


@pytest.mark.parametrize(
    ("trouble", "complaint"),
    [
        (
            lambda root: (root / "train").rename(root / "x"),
            "got a folder with val, x, exp.* train ",
        ),
        (
            lambda root: (root / "val").rename(root / "x"),
            "got a folder with train, x, .* val or te",
        ),
        (lambda root: (root / "train" / DOG).rename(root / "x"), f"source/train: .* class {DOG}"),
        (
            lambda root: (root / "val" / DOG).rename(root / "x"),
            f"source/val: got no folder .* {DOG}",
        ),
        (
            lambda root: [each.unlink() for each in (root / "val" / CAT).iterdir()],
            f"class folder .*source/val/{CAT}: got no images",
        ),
        (
            lambda root: [each.rename(root / each.name) for each in (root / "val").iterdir()],
            "folder .*source/val: got no class folders",
        ),
    ],
)
def test_an_incomplete_folder_is_named(
    source: Path, tmp_path: Path, trouble, complaint: str
) -> None:
    trouble(source)
    with pytest.raises(DataError, match=complaint) as refused:
        run(source, tmp_path / "out")
    assert re.match(ONE_LINE, str(refused.value))
    assert not (tmp_path / "out").exists()


def test_a_missing_source_is_named(tmp_path: Path) -> None:
    for kind in ("folder", "parquet"):
        with pytest.raises(DataError, match="got no such folder, or an empty one"):
            run(tmp_path / "absent", tmp_path / "out", source=kind)
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match="expected a folder that can be listed"):
        run(tmp_path / "file", tmp_path / "out")


def test_classes_left_out_may_be_incomplete_and_other_files_are_ignored(
    source: Path, tmp_path: Path
) -> None:
    before = run(source, tmp_path / "out")
    for file in (source / "train" / TENCH).iterdir():
        file.unlink()
    (source / "val" / CAR).rename(tmp_path / "elsewhere")
    (source / "train" / DOG / "notes.txt").write_text("no image")
    (source / "train" / DOG / ".hidden.png").write_text("no image")
    (source / "train" / DOG / "deeper.png").mkdir()
    (source / "train/.cache").mkdir()
    assert run(source, tmp_path / "out").config_digest == before.config_digest


def test_an_unlabelled_test_folder_gives_way_to_val_and_a_labelled_one_stands_in(
    source: Path, tmp_path: Path, encode, noise
) -> None:
    (source / "test").mkdir()
    (source / "test/ILSVRC2012_test_00000001.JPEG").write_bytes(encode(noise(0)))
    before = run(source, tmp_path / "out")
    (source / "test").rename(tmp_path / "unlabelled")
    (source / "val").rename(source / "test")
    assert run(source, tmp_path / "out").config_digest == before.config_digest
    assert before.facts["splits"]["test"]["images"] == 10


def test_linked_class_folders_are_followed(source: Path, tmp_path: Path) -> None:
    before = run(source, tmp_path / "out")
    (source / "train" / DOG).rename(tmp_path / "dogs")
    (source / "train" / DOG).symlink_to(tmp_path / "dogs")
    again = run(source, tmp_path / "again")
    assert again.config_digest == before.config_digest and not again.found


@pytest.mark.parametrize("content", [b"", b"PAR1", b"not Parquet at all"])
def test_a_file_that_is_no_parquet_is_named(parquet: Path, tmp_path: Path, content: bytes) -> None:
    (parquet / "data/train-00001-of-00002.parquet").write_bytes(content)
    with pytest.raises(DataError, match=r"train-00001.* expected a complete Parquet file"):
        run(parquet, tmp_path / "out", source="parquet")


def test_damage_inside_a_parquet_file_is_named(parquet: Path, tmp_path: Path) -> None:
    file = parquet / "data/validation-00000-of-00002.parquet"
    content = bytearray(file.read_bytes())
    content[4:64] = b"\xff" * 60  # the first page header
    file.write_bytes(content)
    with pytest.raises(DataError, match=r"validation-00000.* expected a complete Parquet file"):
        run(parquet, tmp_path / "out", source="parquet")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("metadata", "complaint"),
    [
        (b"not JSON", "huggingface metadata of .*got JSONDecodeError"),
        (b"[]", "huggingface metadata of .*got TypeError"),
        (
            b'{"info": {"features": {"label": {"names": [1]}}}}',
            r"huggingface .*got class names \[1\]",
        ),
        (
            b'{"info": {"features": {"label": {"names": ["a"]}}}}',
            "class names in .*: got 1 names: a",
        ),
    ],
)
def test_bad_metadata_of_a_file_is_named(
    parquet: Path, tmp_path: Path, metadata: bytes, complaint: str
) -> None:
    file = parquet / "data/validation-00000-of-00002.parquet"
    table = pq.read_table(file).replace_schema_metadata({b"huggingface": metadata})
    pq.write_table(table, file)
    with pytest.raises(DataError, match=complaint):
        run(parquet, tmp_path / "out", source="parquet")


def test_a_class_name_twice_is_refused(source: Path, tmp_path: Path) -> None:
    (tmp_path / "twice").mkdir()
    files = sorted((source / "train" / DOG).iterdir())
    for split in ("train", "test"):
        write_parquet(tmp_path / f"twice/{split}.parquet", files, (DOG, CAT, CAT))
    for classes in ("all", "restricted-imagenet"):
        with pytest.raises(DataError, match=f"got {CAT} more than once"):
            run(tmp_path / "twice", tmp_path / "out", source="parquet", classes=classes)


def test_an_unreadable_file_is_no_corrupt_image(source: Path, tmp_path: Path) -> None:
    config = PrepareConfig(path=str(source), out=str(tmp_path / "out"), max_corrupt_fraction=1.0)
    listed = prepare.open_source(config, lambda _: None)
    selection = listed.select()
    image = selection.images["train"][0]
    (source / image.name).unlink()
    with (
        listed.reading("train", selection, scratch=None, say=lambda _: None) as read,
        ThreadPoolExecutor(1) as pool,
        pytest.raises(DataError, match=rf"{image.name}: got .* expected a readable file"),
    ):
        list(prepare.checked_images([image], read, min_side=1, pool=pool))


# Outputs are found again, never mixed, never half-written.


def test_a_finished_output_is_found_and_not_made_anew(
    source: Path, tmp_path: Path, monkeypatch
) -> None:
    first = run(source, tmp_path / "out")
    before = contents(tmp_path / "out")
    monkeypatch.setattr(prepared_images, "_make", lambda *_: pytest.fail("made anew"))
    again = run(source, tmp_path / "out", num_threads=2)
    assert again.found and again.facts == first.facts and again.metrics == first.metrics
    assert contents(tmp_path / "out") == before


def other_source(source: Path) -> dict:
    (source / "train" / DOG / "more.png").write_bytes(
        (source / "train" / DOG / f"{DOG}_0.JPEG").read_bytes()
    )
    return {}


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        (lambda _: {"seed": 1}, "another seed"),
        (lambda _: {"labels": "super", "min_side": 4}, "another labels, min_side"),
        (other_source, "another source_digest"),
    ],
)
def test_another_finished_output_is_refused_without_overwrite(
    source: Path, tmp_path: Path, change, complaint: str
) -> None:
    run(source, tmp_path / "out", images_per_shard=5)
    before = contents(tmp_path / "out")
    settings = {"images_per_shard": 5, **change(source)}
    with pytest.raises(StorageError, match=f"a finished output of {complaint}") as refused:
        run(source, tmp_path / "out", **settings)
    assert re.match(ONE_LINE, str(refused.value)) and "--overwrite" in str(refused.value)
    assert contents(tmp_path / "out") == before
    run(source, tmp_path / "out", overwrite=True, **settings)
    run(source, tmp_path / "fresh", **settings)
    names = {file.name for file in (tmp_path / "fresh").iterdir()}
    assert {file.name for file in (tmp_path / "out").iterdir()} == names
    for name in names - {"manifest.json"}:
        assert (tmp_path / "out" / name).read_bytes() == (tmp_path / "fresh" / name).read_bytes()


def test_overwriting_leaves_no_shard_of_before(source: Path, tmp_path: Path) -> None:
    run(source, tmp_path / "out", images_per_shard=2)
    run(source, tmp_path / "out", images_per_shard=20, overwrite=True)
    assert [shard.name for shard in shards(tmp_path / "out", "train")] == [
        "train-00000-of-00002.parquet",
        "train-00001-of-00002.parquet",
    ]
    assert len(load(tmp_path / "out").train) == 30


@pytest.mark.parametrize("name", ["train-00000-of-00001.parquet", "notes.txt", "manifest.json"])
def test_a_folder_of_something_else_is_never_written_to(
    source: Path, tmp_path: Path, name: str
) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / name).write_text('{"kind": "cdvae-checkpoint"}')
    for overwrite in (False, True):
        with pytest.raises(StorageError, match="expected a new or empty folder") as refused:
            run(source, tmp_path / "out", overwrite=overwrite)
        assert re.match(ONE_LINE, str(refused.value))
    assert len(contents(tmp_path / "out")) == 1


def test_the_source_is_never_overwritten(source: Path, tmp_path: Path, monkeypatch) -> None:
    run(source, tmp_path / "made/data")
    before = contents(tmp_path / "made/data")
    (tmp_path / "link").symlink_to(tmp_path / "made/data")
    monkeypatch.chdir(tmp_path / "made/data")
    for path in ("made/data", "made", "link"):
        for out in (".", str(tmp_path / "made/data"), (tmp_path / "made/data").as_uri()):
            with pytest.raises(CdvaeError, match=r"out.*: got the .*source's own"):
                run(
                    tmp_path / path,
                    out,
                    source="parquet",
                    classes="all",
                    overwrite=True,
                )
    assert contents(tmp_path / "made/data") == before


@pytest.mark.parametrize("damage", [Path.unlink, lambda file: file.write_bytes(b"short")])
def test_a_damaged_output_is_not_taken_for_finished(source: Path, tmp_path: Path, damage) -> None:
    run(source, tmp_path / "out")
    before = contents(tmp_path / "out")
    damage(tmp_path / "out/train-00003-of-00005.parquet")
    with pytest.raises(StorageError, match=r"train-00003.*add --overwrite"):
        run(source, tmp_path / "out")
    run(source, tmp_path / "out", overwrite=True)
    after = contents(tmp_path / "out")
    del before["manifest.json"], after["manifest.json"]
    assert after == before


class Killed(BaseException):
    """What no handler expects."""


def kill_at(monkeypatch, count: int) -> None:
    """Makes the count-th stream that is opened for writing break off in its middle."""
    write, calls = Store._write_stream, iter(range(1, 1000))

    def break_off(self: Store, path: str, content: bytes) -> None:
        if next(calls) == count:
            write(self, path, content[: len(content) // 2])
            raise Killed
        write(self, path, content)

    monkeypatch.setattr(Store, "_write_stream", break_off)


LAST_WRITE = 1 + 5 + 2 + 1
"""The marker, five training and two test shards, the manifest."""


@pytest.mark.parametrize("count", range(1, LAST_WRITE + 1))
def test_a_killed_call_leaves_nothing_that_is_taken_for_whole(
    source: Path, tmp_path: Path, monkeypatch, count: int
) -> None:
    out = tmp_path / "out"
    with monkeypatch.context() as patch:
        kill_at(patch, count)
        patch.setattr(prepared_images, "_withdraw", lambda *_, **__: None)  # as SIGKILL would
        with pytest.raises(Killed):
            run(source, out)
    assert not (out / "manifest.json").exists()
    for shard in (*shards(out, "train"), *shards(out, "test")):
        assert count == LAST_WRITE  # all shards are renamed when all are written
        pq.read_table(shard)
    if count < LAST_WRITE:
        with pytest.raises(DataError, match="expected train"):
            load(out)
    # The next call, of other settings, clears up and is not mixed with it.
    run(source, out, images_per_shard=4)
    run(source, tmp_path / "fresh", images_per_shard=4)
    assert {file.name for file in out.iterdir()} == {
        file.name for file in (tmp_path / "fresh").iterdir()
    }
    assert load(out).train.digest == load(tmp_path / "fresh").train.digest


@pytest.mark.parametrize("count", range(7))
def test_a_call_killed_between_renames_is_cleared_up_by_the_next(
    source: Path, tmp_path: Path, monkeypatch, count: int
) -> None:
    out, rename, calls = tmp_path / "out", prepared_images._rename, iter(range(7))

    def kill(*arguments) -> None:
        if next(calls) == count:
            raise Killed
        rename(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(prepared_images, "_rename", kill)
        patch.setattr(prepared_images, "_withdraw", lambda *_, **__: None)
        with pytest.raises(Killed):
            run(source, out)
    assert len(list(out.glob("t*.parquet"))) == count
    if count <= 5:  # training shards go first: a half without the other is no dataset
        with pytest.raises(DataError, match="expected train"):
            load(out)
    assert not run(source, out, images_per_shard=4).found
    run(source, tmp_path / "fresh", images_per_shard=4)
    assert {file.name for file in out.iterdir()} == {
        file.name for file in (tmp_path / "fresh").iterdir()
    }


@pytest.mark.parametrize("count", [1, 4, 8, LAST_WRITE])
def test_a_failed_call_clears_up_after_itself(
    source: Path, tmp_path: Path, monkeypatch, count: int
) -> None:
    kill_at(monkeypatch, count)
    with pytest.raises(Killed):
        run(source, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_failed_overwrite_leaves_the_earlier_output_whole(
    source: Path, tmp_path: Path, encode, noise
) -> None:
    run(source, tmp_path / "out")
    before = contents(tmp_path / "out")
    break_images(source, encode, noise, 1)
    with pytest.raises(DataError, match="do not decode"):
        run(source, tmp_path / "out", overwrite=True)
    assert contents(tmp_path / "out") == before


def test_what_is_written_in_object_storage_is_the_same(
    source: Path, tmp_path: Path, monkeypatch
) -> None:
    run(source, tmp_path / "local")
    (tmp_path / "bucket").mkdir()
    bucket = pyarrow.fs.SubTreeFileSystem(str(tmp_path / "bucket"), pyarrow.fs.LocalFileSystem())
    at = Store.at

    def store_at(location: str) -> Store:
        if not str(location).startswith("s3://"):
            return at(location)
        return Store(bucket, str(location).removeprefix("s3://"), str(location))

    monkeypatch.setattr(Store, "at", store_at)
    with monkeypatch.context() as patch:
        kill_at(patch, 4)
        patch.setattr(prepared_images, "_withdraw", lambda *_, **__: None)
        with pytest.raises(Killed):
            run(source, "s3://a/out", images_per_shard=3)
    assert not (tmp_path / "bucket/a/out/manifest.json").exists()
    assert not run(source, "s3://a/out").found
    assert run(source, "s3://a/out").found
    made, local = contents(tmp_path / "bucket/a/out"), contents(tmp_path / "local")
    del made["manifest.json"], local["manifest.json"]
    assert made == local
    # An overwrite that fails there leaves no output at all, rather than a mixture.
    with monkeypatch.context() as patch:
        kill_at(patch, 4)
        with pytest.raises(Killed):
            run(source, "s3://a/out", overwrite=True)
    assert contents(tmp_path / "bucket/a/out") == {}


# Memory, progress, and the real thing.


class Counted(bytes):
    """Bytes that are counted from birth to death; most is the largest count."""

    alive = most = 0
    lock = threading.RLock()  # a death may interrupt a birth

    def __new__(cls, content: bytes) -> Counted:
        with cls.lock:
            Counted.alive += 1
            Counted.most = max(Counted.most, Counted.alive)
        return super().__new__(cls, content)

    def __del__(self) -> None:
        with self.lock:
            Counted.alive -= 1


def test_no_more_than_two_groups_of_images_are_alive(
    source: Path, tmp_path: Path, monkeypatch
) -> None:
    read = FolderSource._read
    monkeypatch.setattr(FolderSource, "_read", lambda self, image: Counted(read(self, image)))
    monkeypatch.setattr(prepare, "IMAGES_PER_GROUP", 4)
    written: list[int] = []
    write = Store.write

    def record(self: Store, name: str, content: bytes) -> None:
        written.append(len(content))
        write(self, name, content)

    monkeypatch.setattr(Store, "write", record)
    run(source, tmp_path / "out", images_per_shard=25)
    assert 4 <= Counted.most <= 8
    assert Counted.alive == 0
    whole = sum(shard.stat().st_size for shard in shards(tmp_path / "out", "train"))
    assert max(written[:3]) < whole  # never the whole half at once


def test_a_copy_of_parquet_is_made_beside_the_shards_and_goes_away(
    parquet: Path, tmp_path: Path, monkeypatch
) -> None:
    folders = []
    make = parquet_source.tempfile.TemporaryFile

    def record(dir=None):
        folders.append(dir)
        return make(dir=dir)

    monkeypatch.setattr(parquet_source.tempfile, "TemporaryFile", record)
    run(parquet, tmp_path / "out", source="parquet")
    assert folders == [tmp_path / "out"] * 2
    assert {file.suffix for file in (tmp_path / "out").iterdir()} == {".parquet", ".json"}

    def fail(dir=None):
        raise OSError("No space left on device")

    monkeypatch.setattr(parquet_source.tempfile, "TemporaryFile", fail)
    with pytest.raises(StorageError, match=r"No space left on device.*TMPDIR"):
        run(parquet, tmp_path / "again", source="parquet")
    assert not (tmp_path / "again").exists()


def test_long_work_says_how_far_it_is(
    source: Path, parquet: Path, tmp_path: Path, monkeypatch
) -> None:
    lines: list[str] = []
    run(source, tmp_path / "quiet", lines.append)
    assert len(lines) == 2 and "40 " not in lines[0]
    assert lines[1] == (
        "30 train and 10 test images of 5 classes (5 of the 203 of restricted ImageNet)"
    )
    monkeypatch.setattr(image_source, "SECONDS_BETWEEN_LINES", 0.0)
    lines.clear()
    run(source, tmp_path / "out", lines.append)
    assert any(line.startswith("  listed 10 of 10 class folders") for line in lines)
    assert any(line.startswith("  train: written 30 of 30 images") for line in lines)
    lines.clear()
    run(parquet, tmp_path / "again", lines.append, source="parquet")
    assert any(line.startswith("  test: copied 10 of 10 images") for line in lines)


@pytest.mark.skipif(
    "CDVAE_IMAGENET_SAMPLE" not in os.environ,
    reason="CDVAE_IMAGENET_SAMPLE is not set to a folder with restricted ImageNet in Parquet",
)
@pytest.mark.parametrize("labels", ["fine", "super"])
def test_real_images_come_through(tmp_path: Path, labels: str) -> None:
    (tmp_path / "source").mkdir()
    for file in Path(os.environ["CDVAE_IMAGENET_SAMPLE"]).glob("test*.parquet"):
        for split in ("train", "test"):
            (tmp_path / "source" / f"{split}{file.name[4:]}").symlink_to(file)
    prepared = run(
        tmp_path / "source", tmp_path / "out", source="parquet", labels=labels, images_per_shard=64
    )
    source = load_splits(DataConfig(source="parquet", path=str(tmp_path / "source"), image_size=64))
    made = load_splits(DataConfig(source="parquet", path=str(tmp_path / "out"), image_size=64))
    assert len(made.train.class_names) == (203 if labels == "fine" else 9)
    super_class = {each.wordnet_id: each.super_class for each in RESTRICTED_IMAGENET}
    for before, after in zip(source, made, strict=True):
        expected = by_class(before)
        if labels == "super":
            expected = Counter(
                {(super_class[name], image): n for (name, image), n in expected.items()}
            )
        assert by_class(after) == expected
    assert prepared.facts["splits"]["train"]["skipped"]["names"] == []
