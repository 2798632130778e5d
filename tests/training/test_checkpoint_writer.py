"""A checkpoint written while the next epoch trains is the one that would have been waited for."""

import math
import threading
import time

import pytest
import torch

from cdvae_ray.errors import NonFiniteLossError, StorageError
from cdvae_ray.storage.store import Store
from cdvae_ray.training.checkpoint import MODEL_FILE, checkpoint_names, read_checkpoint

from .conftest import KilledError, kill_after

SECONDS = 60


class SlowStore(Store):
    """Storage that writes nothing until it may."""

    may_write: threading.Event
    started: list[str]

    def on_start(self, name):
        """Called in the thread that writes, before it waits."""

    def write_folder(self, name, files, *, last):
        self.started.append(name)
        self.on_start(name)
        assert self.may_write.wait(SECONDS)
        super().write_folder(name, files, last=last)


def slow(run, folder):
    run.store = SlowStore.at(folder)
    run.store.may_write, run.store.started = threading.Event(), []
    return run


def contents(store):
    return {name: read_checkpoint(store, name).files for name in checkpoint_names(store)}


def test_the_next_epoch_trains_while_a_checkpoint_is_written(tmp_path, make_run):
    run, told = slow(make_run(tmp_path, epochs=3), tmp_path / "slow"), []

    def on_epoch(report):
        if report.epoch == 1:
            # The first checkpoint is in hand, and nobody has been told that it is written.
            assert run.store.started == ["epoch-0001"]
            assert told == []
            run.store.may_write.set()

    run.fit(
        overlap_checkpoints=True,
        on_epoch=on_epoch,
        on_checkpoint=lambda name, report: told.append((name, report.epoch)),
    )
    assert told == [("epoch-0001", 0), ("epoch-0002", 1), ("epoch-0003", 2)]
    waited_for = make_run(tmp_path / "plain", epochs=3).fit()
    assert contents(run.store) == contents(waited_for.store)


def test_one_that_is_written_is_told_of_before_the_next_is_due(tmp_path, make_run):
    run, told, known = make_run(tmp_path, epochs=6), [], {}

    def on_epoch(report):
        known[report.epoch] = list(told)
        # Long enough for what was begun after the third epoch.
        time.sleep(1.0 if report.epoch == 3 else 0.0)

    run.fit(
        checkpoint_every=3,
        overlap_checkpoints=True,
        on_epoch=on_epoch,
        on_checkpoint=lambda name, report: told.append(name),
    )
    assert known[2] == []
    assert known[4] == known[5] == ["epoch-0003"]
    assert told == ["epoch-0003", "epoch-0006"]


def test_without_overlap_no_epoch_begins_before_the_checkpoint_is_written(tmp_path, make_run):
    run, stored = make_run(tmp_path, epochs=3), []
    run.fit(on_epoch=lambda report: stored.append(checkpoint_names(run.store)))
    assert stored == [[], ["epoch-0001"], ["epoch-0001", "epoch-0002"]]


def test_storage_that_fails_stops_training_at_the_latest_where_the_next_is_due(tmp_path, make_run):
    (tmp_path / "file").write_text("in the way")
    run, told = make_run(tmp_path / "file", epochs=6), []
    with pytest.raises(StorageError, match=r"epoch-0002: got .*; check the path"):
        run.fit(
            checkpoint_every=2,
            overlap_checkpoints=True,
            on_checkpoint=lambda name, report: told.append(name),
        )
    assert told == []
    assert 2 <= len(run.epochs) <= 4


def test_what_is_in_hand_is_written_whole_when_training_fails(tmp_path, make_run):
    run = slow(make_run(tmp_path, epochs=3), tmp_path)

    def poison(name):
        with torch.no_grad():
            run.state.model.classifier.linear.weight.fill_(math.nan)
        # So that training has failed before anything is written.
        threading.Timer(2.0, run.store.may_write.set).start()

    run.store.on_start = poison
    with pytest.raises(NonFiniteLossError):
        run.fit(overlap_checkpoints=True)
    assert checkpoint_names(run.store) == ["epoch-0001"]
    weights = read_checkpoint(run.store, "epoch-0001").tensors(MODEL_FILE)
    assert weights["classifier.linear.weight"].isfinite().all()


def test_resumed_equals_undisturbed(tmp_path, make_run):
    whole = make_run(tmp_path / "whole").fit()
    with pytest.raises(KilledError):
        make_run(tmp_path / "cut").fit(
            overlap_checkpoints=True, on_checkpoint=kill_after("epoch-0001")
        )
    again = make_run(tmp_path / "cut")
    done = again.resume()
    assert done >= 1
    again.fit(epochs_done=done, overlap_checkpoints=True)
    assert contents(again.store) == contents(whole.store)
