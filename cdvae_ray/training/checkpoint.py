"""Checkpoints: weights, optimiser, epoch and all settings, as safetensors and JSON."""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping
from typing import Any, NamedTuple

from safetensors import SafetensorError
from safetensors.torch import load as tensors_from_bytes
from safetensors.torch import save as tensors_to_bytes
from torch import Tensor

from cdvae_ray.config.model import ModelConfig
from cdvae_ray.config.serialize import from_dict, to_dict
from cdvae_ray.core.cdvae import CDVAE
from cdvae_ray.errors import CheckpointError, StorageError
from cdvae_ray.storage.artifact import MANIFEST, read_artifact, seal, write_artifact
from cdvae_ray.storage.store import Store, to_json_bytes
from cdvae_ray.training.state import TrainState, load_weights

KIND = "cdvae-checkpoint"
MODEL_FILE, OPTIMIZER_FILE = "model.safetensors", "optimizer.safetensors"
_NAME = re.compile(r"epoch-(\d{4,})$")
_log = logging.getLogger(__name__)


class CheckpointFacts(NamedTuple):
    """What a checkpoint says of itself."""

    name: str
    epochs_done: int
    config_digest: str
    metrics: dict[str, float]


def checkpoint_name(epochs_done: int) -> str:
    """The folder of the checkpoint after that many epochs."""
    return f"epoch-{epochs_done:04d}"


def save_checkpoint(
    run: Store,
    state: TrainState,
    *,
    epochs_done: int,
    config_digest: str,
    identity: Mapping[str, Any],
    metrics: Mapping[str, float],
) -> str:
    """Writes a checkpoint whole or not at all; called by rank 0. Returns its name.

    There is no generator state in it because none outlives an epoch: every random number is
    keyed by seed, epoch and image id, or drawn from a generator seeded anew at each epoch.
    """
    name = checkpoint_name(epochs_done)
    task = state.task
    write_artifact(
        run,
        name,
        kind=KIND,
        files={
            MODEL_FILE: tensors_to_bytes(state.model_tensors()),
            OPTIMIZER_FILE: tensors_to_bytes(state.optimizer_tensors()),
        },
        facts={
            "epochs_done": epochs_done,
            "config_digest": config_digest,
            "identity": dict(identity),
            "model": to_dict(task.model),
            "image_size": task.image_size,
            "class_names": list(task.class_names),
            "metrics": dict(metrics),
            "random_state": {"seed": task.training.seed, "next_epoch": epochs_done},
        },
    )
    return name


def restore_checkpoint(run: Store, name: str, state: TrainState, *, config_digest: str) -> int:
    """Loads a checkpoint into a training state and returns the number of epochs done.

    Raises:
        CheckpointError: it is absent, damaged or of another configuration.
    """
    facts, files = _read(run, name, only=(MODEL_FILE, OPTIMIZER_FILE))
    if facts["config_digest"] != config_digest:
        raise CheckpointError(
            f"{run.uri}/{name}",
            got=f"config digest {facts['config_digest'][:12]}",
            expected=config_digest[:12],
            remedy="resume with the settings it was trained with, or pass --overwrite",
        )
    state.load_tensors(
        _tensors(run, name, MODEL_FILE, files), _tensors(run, name, OPTIMIZER_FILE, files)
    )
    return int(facts["epochs_done"])


def load_model(run: Store, name: str) -> CDVAE:
    """The model of a checkpoint, in eval mode on the CPU.

    Raises:
        CheckpointError: it is absent, damaged or incomplete.
    """
    facts, files = _read(run, name, only=(MODEL_FILE,))
    model = CDVAE(
        from_dict(ModelConfig, facts["model"], what="model"),
        image_size=int(facts["image_size"]),
        class_names=tuple(facts["class_names"]),
    )
    load_weights(model, _tensors(run, name, MODEL_FILE, files))
    return model.eval()


def model_files(run: Store, name: str) -> dict[str, bytes]:
    """The files that make a checkpoint loadable without its optimiser state.

    Raises:
        CheckpointError: it is absent or damaged.
    """
    _, files = _read(run, name, only=(MODEL_FILE,))
    manifest = run.child(name).read_json(MANIFEST)
    manifest["files"] = {MODEL_FILE: manifest["files"][MODEL_FILE]}
    return {MODEL_FILE: files[MODEL_FILE], MANIFEST: to_json_bytes(seal(manifest))}


def read_facts(run: Store, name: str) -> CheckpointFacts:
    """What a checkpoint says of itself, after its files were verified.

    Raises:
        CheckpointError: it is absent or damaged.
    """
    facts, _ = _read(run, name, only=None)
    return CheckpointFacts(
        name=name,
        epochs_done=int(facts["epochs_done"]),
        config_digest=str(facts["config_digest"]),
        metrics={key: float(value) for key, value in facts["metrics"].items()},
    )


def checkpoint_names(run: Store) -> list[str]:
    """Names of the run's checkpoint folders, oldest first, sound or not."""
    return sorted(
        (name for name in run.names() if _NAME.match(name)),
        key=lambda name: int(name.removeprefix("epoch-")),
    )


def newest_sound_checkpoint(run: Store) -> CheckpointFacts | None:
    """The newest checkpoint whose files match their digests; damaged ones are passed over with
    a warning. None if the run has no checkpoint at all.

    Raises:
        CheckpointError: there are checkpoints, and not one of them is sound.
    """
    names = checkpoint_names(run)
    for name in reversed(names):
        try:
            return read_facts(run, name)
        except CheckpointError as error:
            _log.warning("passing over a damaged checkpoint: %s", error)
    if names:
        raise CheckpointError(
            run.uri,
            got=f"{len(names)} checkpoints, all of them damaged",
            expected="at least one sound checkpoint",
            remedy="restore one from a copy, or start anew with --overwrite",
        )
    return None


def _read(
    run: Store, name: str, *, only: tuple[str, ...] | None
) -> tuple[dict[str, Any], dict[str, bytes]]:
    try:
        artifact = read_artifact(run, name, kind=KIND, only=only)
    except StorageError as error:
        raise CheckpointError(
            error.what, got=error.got, expected=error.expected, remedy=error.remedy
        ) from error
    return artifact.facts, artifact.files


def _tensors(run: Store, name: str, file: str, files: Mapping[str, bytes]) -> dict[str, Tensor]:
    try:
        return tensors_from_bytes(files[file])
    except SafetensorError as error:
        raise CheckpointError(
            f"{run.uri}/{name}/{file}",
            got=str(error),
            expected="a safetensors file",
            remedy="use an earlier checkpoint",
        ) from error
