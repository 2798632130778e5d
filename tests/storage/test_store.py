"""Files are whole or absent, on disk and in storage that has no renaming."""

import os
import time
from pathlib import Path
from types import SimpleNamespace

import pyarrow.fs
import pytest

from cdvae_ray.errors import StorageError
from cdvae_ray.storage.artifact import read_artifact, read_manifest, write_artifact
from cdvae_ray.storage.store import Store


@pytest.fixture(params=["local", "remote"])
def store(request, tmp_path):
    if request.param == "local":
        return Store.at(tmp_path / "root")
    # pyarrow's in-memory filesystem stands for object storage: it is not local to this code.
    filesystem = pyarrow.fs._MockFileSystem()
    filesystem.create_dir("bucket")
    return Store(filesystem, "bucket/root", "mock://bucket/root")


def test_files_come_back_and_are_listed(store):
    assert store.names() == []
    assert not store.exists("a.txt")
    store.write("a.txt", b"one")
    store.write("a.txt", b"two")
    store.child("folder").write_json("b.json", {"x": 1})
    assert store.names() == ["a.txt", "folder"]
    assert store.read("a.txt") == b"two"
    assert store.child("folder").read_json("b.json") == {"x": 1}
    parent, name = store.child("folder").parent()
    assert (parent.uri, name) == (store.uri, "folder")
    store.delete("a.txt")
    store.delete("folder")
    store.delete("never there")
    assert store.names() == []


def test_an_artifact_replaces_one_of_the_same_name_whole(store):
    write_artifact(store, "thing", kind="k", files={"a": b"1", "b": b"2"}, facts={"n": 1})
    write_artifact(store, "thing", kind="k", files={"a": b"3"}, facts={"n": 2})
    artifact = read_artifact(store, "thing", kind="k")
    assert artifact.facts == {"n": 2}
    assert artifact.files == {"a": b"3"}
    assert store.child("thing").names() == ["a", "manifest.json"]


@pytest.mark.parametrize(
    ("damage", "complaint"),
    [
        (lambda folder: folder.write("a", b"1234"), "got 4 bytes, expected 3 bytes"),
        (lambda folder: folder.write("a", b"xyz"), "SHA-256"),
        (lambda folder: folder.delete("a"), "/a: got"),
        (lambda folder: folder.delete("manifest.json"), "no manifest.json"),
        (lambda folder: folder.write("manifest.json", b"{"), "no JSON"),
        (lambda folder: folder.write("manifest.json", b"[]"), "other content"),
        (
            lambda folder: folder.write(
                "manifest.json", folder.read("manifest.json").replace(b'"n": 1', b'"n": 7')
            ),
            "content of digest",
        ),
    ],
)
def test_damage_is_named(store, damage, complaint):
    write_artifact(store, "thing", kind="k", files={"a": b"abc"}, facts={"n": 1})
    damage(store.child("thing"))
    with pytest.raises(StorageError, match=complaint):
        read_artifact(store, "thing", kind="k")


def test_another_kind_or_an_unknown_file_is_refused(store):
    write_artifact(store, "thing", kind="k", files={"a": b"abc"}, facts={})
    with pytest.raises(StorageError, match="got k in format 1, expected other"):
        read_manifest(store, "thing", kind="other")
    with pytest.raises(StorageError, match="no such file in the manifest"):
        read_artifact(store, "thing", kind="k", only=("b",))


def test_an_interrupted_writer_leaves_no_artifact(tmp_path, monkeypatch):
    store = Store.at(tmp_path)
    write = Store._write_stream

    def fail_on_second(self, path, content):
        if path.endswith("/b"):
            raise OSError("No space left on device")
        write(self, path, content)

    monkeypatch.setattr(Store, "_write_stream", fail_on_second)
    with pytest.raises(StorageError, match="No space left on device"):
        write_artifact(store, "thing", kind="k", files={"a": b"1", "b": b"2"}, facts={})
    assert not store.exists("thing")
    assert [name.startswith(".partial-thing-") for name in store.names()] == [True]
    store.delete_partial()
    assert store.names() == []


def test_what_another_writer_has_in_hand_is_not_tidied_away(tmp_path):
    store = Store.at(tmp_path)
    for name in (".partial-thing-old", ".partial-thing-new", "thing"):
        store.write(name, b"1")
    long_ago = time.time() - 1000
    os.utime(tmp_path / ".partial-thing-old", (long_ago, long_ago))
    os.utime(tmp_path / "thing", (long_ago, long_ago))
    store.delete_partial(older_than_seconds=600)
    assert store.names() == [".partial-thing-new", "thing"]


def test_deleting_what_another_job_deletes_meanwhile_is_no_error(tmp_path):
    class Deleting(Store):
        """Another job is always the first."""

        def path(self, name):
            found = super().path(name)
            Path(found).unlink(missing_ok=True)
            return found

    (tmp_path / "a").write_text("1")
    there = pyarrow.fs.LocalFileSystem().get_file_info(str(tmp_path / "a"))
    store = Deleting.at(tmp_path)
    store.filesystem = SimpleNamespace(
        get_file_info=lambda path: there,
        delete_file=pyarrow.fs.LocalFileSystem().delete_file,
    )
    store.delete("a")
    assert not (tmp_path / "a").exists()


def test_a_file_in_the_way_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match="check the path, its permissions"):
        Store.at(tmp_path / "file").child("run").write("a", b"")


def test_an_unknown_scheme_is_named():
    with pytest.raises(StorageError, match="nowhere://x"):
        Store.at("nowhere://x/y")
