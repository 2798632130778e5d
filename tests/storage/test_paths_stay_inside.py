"""No name leads out of its folder: neither one that is asked for, nor one that a manifest says."""

import json
import re
import shutil

import pyarrow.fs
import pytest
from PIL import Image

from cdvae_ray.config.prepare_job import PrepareConfig
from cdvae_ray.errors import CdvaeError, StorageError
from cdvae_ray.evaluation.detector_files import DETECTOR_KIND, read_detector
from cdvae_ray.storage.adversarial_set import read_adversarial_set, read_outcomes
from cdvae_ray.storage.artifact import read_artifact, read_manifest, seal, write_artifact
from cdvae_ray.storage.prepared_images import prepare_images
from cdvae_ray.storage.row_set import read_row_set
from cdvae_ray.storage.store import Store
from cdvae_ray.training.checkpoint import newest_sound_checkpoint, read_checkpoint
from cdvae_ray.training.run_folder import store_results, stored_results
from cdvae_ray.training.state import TrainState
from tests.stored_checkpoints import save_checkpoint

from ..training.conftest import CPU, tiny_task
from . import test_adversarial_set, test_row_set

ONE_LINE = re.compile(r"[^\n\0]+: got [^\n\0]+, expected a relative name of [^\n\0]+; [^\n\0]+")
BAD_NAMES = [
    "",
    ".",
    "..",
    "/",
    "../outside/file",
    "inside/../../outside/file",
    "./file",
    "inside//file",
    "inside/",
    "/etc/passwd",
    "..\\outside\\file",
    "C:\\file",
    "file\0",
    "../outside/file\0.json",
]
CALLS = {
    "child": lambda store, name: store.child(name),
    "exists": lambda store, name: store.exists(name),
    "read": lambda store, name: store.read(name),
    "read_json": lambda store, name: store.read_json(name),
    "write": lambda store, name: store.write(name, b"new"),
    "write_json": lambda store, name: store.write_json(name, {}),
    "write_folder": lambda store, name: store.write_folder(name, {"a": b"new"}, last="a"),
    "a file of write_folder": lambda store, name: store.write_folder(
        "thing", {name: b"new", "a": b""}, last="a"
    ),
    "read_manifest": lambda store, name: read_manifest(store, name, kind="k"),
    "write_artifact": lambda store, name: write_artifact(
        store, name, kind="k", files={"a": b""}, facts={}
    ),
}


def refused(call, kind=StorageError):
    with pytest.raises(kind) as caught:
        call()
    assert ONE_LINE.fullmatch(str(caught.value)), str(caught.value)


def contents(folder):
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


@pytest.fixture
def outside(tmp_path):
    """A folder beside the store's, with files that nobody may touch through it."""
    folder = tmp_path / "outside"
    folder.mkdir()
    (folder / "file").write_bytes(b"old")
    (folder / "manifest.json").write_text("{}")
    return folder


@pytest.fixture(params=["local", "remote"])
def store(request, tmp_path, outside):
    root = tmp_path / "root"
    (root / "inside").mkdir(parents=True)
    if request.param == "local":
        return Store.at(root)
    filesystem = pyarrow.fs.SubTreeFileSystem(str(tmp_path), pyarrow.fs.LocalFileSystem())
    return Store(filesystem, "root", "mock://bucket/root")


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize("name", BAD_NAMES)
def test_a_name_that_leads_out_is_refused(store, tmp_path, call, name):
    before = contents(tmp_path)
    refused(lambda: CALLS[call](store, name))
    assert contents(tmp_path) == before


@pytest.mark.parametrize("name", [name for name in BAD_NAMES if name])
def test_nothing_outside_is_deleted(store, tmp_path, name):
    before = contents(tmp_path)
    refused(lambda: store.delete(name))
    assert contents(tmp_path) == before


@pytest.mark.parametrize("name", ["a", "a b", "..a", "a..b", ".hidden", "epoch-0001", "ä", "a:b"])
def test_other_names_are_taken(store, name):
    store.write(name, b"1")
    store.child("inside").write(name, b"2")
    assert store.read(name) == b"1" and store.read(f"inside/{name}") == b"2"
    store.delete(name)
    assert not store.exists(name)


# --- links --------------------------------------------------------------------------------------


@pytest.mark.parametrize("call", [*CALLS, "delete"])
@pytest.mark.parametrize("target", ["outside", "outside/file", "outside/absent", "root/link", ""])
def test_a_link_that_leads_out_is_refused(tmp_path, outside, call, target):
    store = Store.at(tmp_path / "root")
    (tmp_path / "root").mkdir()
    (tmp_path / "root" / "link").symlink_to(tmp_path / target)
    before = contents(outside)
    name = "link"
    if call == "a file of write_folder":  # the folder is written anew, so that it holds no link
        call = "write_folder"
    act = {**CALLS, "delete": lambda store, name: store.delete(name)}[call]
    refused(lambda: act(store, name))
    if target == "outside":
        refused(lambda: act(store, "link/file"))
    assert contents(outside) == before


def test_a_link_that_stays_inside_is_followed(tmp_path):
    store = Store.at(tmp_path / "root")
    store.child("real").write("a", b"1")
    (tmp_path / "root" / "link").symlink_to(tmp_path / "root" / "real")
    assert store.child("link").read("a") == store.read("link/a") == b"1"


def test_a_store_may_itself_be_a_link(tmp_path):
    Store.at(tmp_path / "real").write("a", b"1")
    (tmp_path / "link").symlink_to(tmp_path / "real")
    assert Store.at(tmp_path / "link").read("a") == b"1"


# --- manifests ----------------------------------------------------------------------------------


def make_checkpoint(folder):
    run = Store.at(folder / "run")
    name = save_checkpoint(
        run,
        TrainState(tiny_task(), CPU),
        epochs_done=1,
        config_digest="d",
        identity={},
        metrics={},
    )
    return folder / "run" / name, lambda: read_checkpoint(run, name)


def make_checkpoint_for_facts(folder):
    path, _ = make_checkpoint(folder)
    return path, lambda: read_checkpoint(Store.at(folder / "run"), path.name, only=())


def make_resumed_run(folder):
    path, _ = make_checkpoint(folder)
    return path, lambda: newest_sound_checkpoint(Store.at(folder / "run"))


def make_results(folder):
    run = Store.at(folder / "run")
    store_results(run, "d" * 64, identity={}, values={"a": 1}, picture=b"")
    return folder / "run" / f"results-{'d' * 12}", lambda: stored_results(run, "d" * 64)


def make_detector(folder):
    store = Store.at(folder)
    files = {"detector.safetensors": b"content"}
    write_artifact(store, "detector", kind=DETECTOR_KIND, files=files, facts={"parts": {}})
    return folder / "detector", lambda: read_detector(store, "detector")


def make_report(folder):
    store = Store.at(folder)
    write_artifact(store, "report", kind="a-report", files={"report.md": b"text"}, facts={})
    return folder / "report", lambda: read_artifact(store, "report", kind="a-report")


def make_adversarial_set(folder):
    store, _ = test_adversarial_set.store_set(folder / "set", 6)
    return folder / "set", lambda: read_adversarial_set(store)


def make_outcomes(folder):
    store, _ = test_adversarial_set.store_set(folder / "set", 6)
    return folder / "set", lambda: read_outcomes(store)


def make_row_set(folder):
    store, _ = test_row_set.store_set(folder / "set", 6)
    return folder / "set", lambda: read_row_set(store, test_row_set.KIND)


def make_prepared_images(folder):
    for split in ("train", "test"):
        for name in ("cat", "dog"):
            (folder / "source" / split / name).mkdir(parents=True)
            Image.new("RGB", (16, 16)).save(folder / "source" / split / name / "0.png")
    config = PrepareConfig(
        path=str(folder / "source"), out=str(folder / "out"), classes="all", min_side=1
    )
    prepare_images(config, say=lambda _: None)
    return folder / "out", lambda: prepare_images(config, say=lambda _: None)


MAKERS = {
    "checkpoint": make_checkpoint,
    "facts of a checkpoint": make_checkpoint_for_facts,
    "run to be resumed": make_resumed_run,
    "results": make_results,
    "detector": make_detector,
    "report": make_report,
    "adversarial set": make_adversarial_set,
    "outcomes of an adversarial set": make_outcomes,
    "row set": make_row_set,
    "prepared images": make_prepared_images,
}


def rename_in_manifest(folder, name):
    """The manifest's first file under another name, with the digest that this manifest has."""
    path = folder / "manifest.json"
    manifest = json.loads(path.read_text())
    (first, promised), *others = manifest["files"].items()
    manifest["files"] = {name: promised, **dict(others)}
    path.write_text(json.dumps(seal(manifest)))
    return first


@pytest.mark.parametrize("kind", MAKERS)
@pytest.mark.parametrize("name", [name for name in BAD_NAMES if name not in (".", "..", "/")])
def test_a_name_in_a_manifest_that_leads_out_is_refused(tmp_path, kind, name):
    folder, read = MAKERS[kind](tmp_path)
    first = rename_in_manifest(folder, name)
    if name.startswith("..") and not name.endswith(".json") and "\\" not in name:
        # What it leads to is exactly what the manifest promises.
        (folder.parent / "outside").mkdir()
        shutil.copy(folder / first, folder.parent / "outside" / "file")
    # A damaged checkpoint is passed over until none is left, which is another message.
    if kind == "run to be resumed":
        with pytest.raises(CdvaeError, match="got 1 checkpoints, all of them damaged"):
            read()
    else:
        refused(read, CdvaeError)


@pytest.mark.parametrize("kind", [kind for kind in MAKERS if kind != "run to be resumed"])
def test_a_file_of_a_manifest_that_is_a_link_out_is_refused(tmp_path, kind):
    folder, read = MAKERS[kind](tmp_path)
    if kind != "detector":
        read()
    (first, *_) = json.loads((folder / "manifest.json").read_text())["files"]
    (tmp_path / "outside").mkdir()
    shutil.move(folder / first, tmp_path / "outside" / "file")
    (folder / first).symlink_to(tmp_path / "outside" / "file")
    refused(read, CdvaeError)


@pytest.mark.parametrize("kind", ["adversarial set", "row set"])
def test_a_folder_of_shards_that_is_a_link_out_is_refused(tmp_path, kind):
    folder, read = MAKERS[kind](tmp_path)
    (first, *_) = json.loads((folder / "manifest.json").read_text())["files"]
    shards = first.partition("/")[0]
    shutil.move(folder / shards, tmp_path / "outside")
    (folder / shards).symlink_to(tmp_path / "outside")
    refused(read)


@pytest.mark.parametrize("part", ["facts", "files"])
@pytest.mark.parametrize("value", [None, [], ["../file"], "text"])
def test_a_manifest_of_another_shape_is_refused(tmp_path, part, value):
    folder, read = make_report(tmp_path)
    manifest = json.loads((folder / "manifest.json").read_text()) | {part: value}
    (folder / "manifest.json").write_text(json.dumps(seal(manifest)))
    with pytest.raises(StorageError, match=f"got no {part}, expected {part} by their names"):
        read()


def test_what_an_artifact_names_by_its_address_may_lie_anywhere(tmp_path):
    made, report = Store.at(tmp_path / "made"), Store.at(tmp_path / "other")
    write_artifact(made, "thing", kind="k", files={"a": b"1"}, facts={})
    facts = {"artifacts": {"thing": made.location("thing")}}
    write_artifact(report, "report", kind="r", files={}, facts=facts)
    named = read_manifest(report, "report", kind="r")["facts"]["artifacts"]["thing"]
    parent, name = Store.at(named).parent()
    assert read_artifact(parent, name, kind="k").files == {"a": b"1"}
