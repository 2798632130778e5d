"""Checkpoints: weights, optimiser, epoch and all settings, as safetensors and JSON."""

from __future__ import annotations

import hashlib
import logging
import re
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from safetensors import SafetensorError
from safetensors.torch import load as tensors_from_bytes
from safetensors.torch import save as tensors_to_bytes
from torch import Tensor

from cdvae_ray.config.classifier import ClassifierConfig
from cdvae_ray.config.model import ModelConfig
from cdvae_ray.config.serialize import digest_of, from_dict
from cdvae_ray.core.cdvae import CDVAE
from cdvae_ray.core.classifier import ImageClassifier
from cdvae_ray.errors import CheckpointError, StorageError
from cdvae_ray.storage.artifact import (
    MANIFEST,
    has_artifact,
    read_artifact,
    seal,
    write_artifact,
)
from cdvae_ray.storage.store import Store, to_json_bytes
from cdvae_ray.training.baseline_task import PurifierTask
from cdvae_ray.training.cdvae_task import CdvaeTask
from cdvae_ray.training.classifier_task import ClassifierTask
from cdvae_ray.training.finetune_task import FinetuneTask
from cdvae_ray.training.state import TrainState, load_weights

MODEL_FILE, OPTIMIZER_FILE = "model.safetensors", "optimizer.safetensors"
CDVAE_KIND, CLASSIFIER_KIND = CdvaeTask.checkpoint_kind, ClassifierTask.checkpoint_kind
_LOADERS = {
    CDVAE_KIND: "cdvae_ray.load",
    CLASSIFIER_KIND: "cdvae_ray.load_classifier",
    FinetuneTask.checkpoint_kind: "cdvae_ray.load_defense",
    PurifierTask.checkpoint_kind: "cdvae_ray.load_defense",
}
# The facts that, with the weights, make a model what it is.
_MODEL_FACTS = (
    *("model", "image_size", "class_names", "input_kind", "cdvae_digest"),
    *("cdvae_model", "classifier_model", "purifier", "width"),
)
_NAME = re.compile(r"epoch-(\d{4,})$")
_log = logging.getLogger(__name__)


class Checkpoint(NamedTuple):
    """A checkpoint whose files were verified, with those that were read."""

    uri: str
    """Its folder, for a person."""
    name: str
    kind: str
    """What was trained, as its task calls its checkpoints."""
    facts: dict[str, Any]
    """What it says of itself."""
    files: dict[str, bytes]

    @property
    def epochs_done(self) -> int:
        """After how many epochs it was written."""
        return int(self.facts["epochs_done"])

    @property
    def config_digest(self) -> str:
        """The run's identity."""
        return str(self.facts["config_digest"])

    @property
    def metrics(self) -> dict[str, float]:
        """The numbers of its epoch."""
        return {key: float(value) for key, value in self.facts["metrics"].items()}

    def tensors(self, file: str) -> dict[str, Tensor]:
        """A file's tensors by name.

        Raises:
            CheckpointError: it is no safetensors file.
        """
        try:
            return tensors_from_bytes(self.files[file])
        except SafetensorError as error:
            raise CheckpointError(
                f"{self.uri}/{file}",
                got=str(error),
                expected="a safetensors file",
                remedy="use an earlier checkpoint",
            ) from error


def checkpoint_name(epochs_done: int) -> str:
    """The folder of the checkpoint after that many epochs."""
    return f"epoch-{epochs_done:04d}"


class Snapshot(NamedTuple):
    """All that a checkpoint will hold, which training no longer changes."""

    name: str
    kind: str
    files: dict[str, bytes]
    facts: dict[str, Any]


def take_snapshot(
    state: TrainState,
    *,
    epochs_done: int,
    config_digest: str,
    identity: Mapping[str, Any],
    metrics: Mapping[str, float],
) -> Snapshot:
    """A replica as it is now, for a checkpoint.

    There is no generator state in it because none outlives an epoch: every random number is
    keyed by seed, epoch and image id, or drawn from a generator seeded anew at each epoch.
    """
    task = state.task
    return Snapshot(
        name=checkpoint_name(epochs_done),
        kind=task.checkpoint_kind,
        files={
            MODEL_FILE: tensors_to_bytes(state.model_tensors()),
            OPTIMIZER_FILE: tensors_to_bytes(state.optimizer_tensors()),
        },
        facts={
            "epochs_done": epochs_done,
            "config_digest": config_digest,
            "identity": dict(identity),
            **task.model_facts(),
            "metrics": dict(metrics),
            "random_state": {"seed": task.training.seed, "next_epoch": epochs_done},
        },
    )


def write_checkpoint(run: Store, snapshot: Snapshot) -> None:
    """Writes a checkpoint whole or not at all.

    Raises:
        StorageError: the run's folder is read-only, full or out of reach.
    """
    name, kind, files, facts = snapshot
    write_artifact(run, name, kind=kind, files=files, facts=facts)


def restore_checkpoint(checkpoint: Checkpoint, state: TrainState, *, config_digest: str) -> None:
    """Loads a checkpoint with all its files into a training state.

    Raises:
        CheckpointError: it is of another configuration, or its tensors are not the state's.
    """
    if checkpoint.config_digest != config_digest:
        raise CheckpointError(
            checkpoint.uri,
            got=f"config digest {checkpoint.config_digest[:12]}",
            expected=config_digest[:12],
            remedy="resume with the settings it was trained with, or pass --overwrite",
        )
    state.load_tensors(checkpoint.tensors(MODEL_FILE), checkpoint.tensors(OPTIMIZER_FILE))


def read_checkpoint(run: Store, name: str, *, only: tuple[str, ...] | None = None) -> Checkpoint:
    """A checkpoint of any kind, after the files that are read were verified.

    Args:
        run: the folder that holds it.
        name: its own folder.
        only: read just these files; () for the facts alone.

    Raises:
        CheckpointError: it is absent, damaged or no checkpoint.
    """
    try:
        uri, kind = run.child(name).uri, _kind(run, name)
        artifact = read_artifact(run, name, kind=kind, only=only)
    except StorageError as error:
        raise CheckpointError(
            error.what, got=error.got, expected=error.expected, remedy=error.remedy
        ) from error
    return Checkpoint(uri, name, kind, artifact.facts, artifact.files)


def load_model(run: Store, name: str) -> CDVAE:
    """The CD-VAE of a checkpoint, in eval mode on the CPU.

    Raises:
        CheckpointError: it is absent, damaged, incomplete or of another kind.
    """
    return cdvae_of(read_checkpoint(run, name, only=(MODEL_FILE,)))


def cdvae_of(checkpoint: Checkpoint) -> CDVAE:
    """The CD-VAE of a checkpoint that was read, in eval mode on the CPU.

    Raises:
        CheckpointError: it holds another kind of model, or other tensors than its model's.
    """
    _require_kind(checkpoint, CDVAE_KIND, "a CD-VAE")
    facts = checkpoint.facts
    model = CDVAE(
        from_dict(ModelConfig, facts["model"], what="model"),
        image_size=int(facts["image_size"]),
        class_names=tuple(facts["class_names"]),
    )
    load_weights(model, checkpoint.tensors(MODEL_FILE))
    return model.eval()


def classifier_of(checkpoint: Checkpoint) -> ImageClassifier:
    """The plain classifier of a checkpoint that was read, in eval mode on the CPU.

    Raises:
        CheckpointError: it holds another kind of model, or other tensors than its model's.
    """
    _require_kind(checkpoint, CLASSIFIER_KIND, "a plain classifier")
    facts = checkpoint.facts
    model = ImageClassifier(
        from_dict(ClassifierConfig, facts["model"], what="model"),
        input_kind=facts["input_kind"],
        image_size=int(facts["image_size"]),
        class_names=tuple(facts["class_names"]),
        cdvae_digest=facts["cdvae_digest"],
    )
    load_weights(model, checkpoint.tensors(MODEL_FILE))
    return model.eval()


def network_facts(checkpoint: Checkpoint) -> dict[str, Any]:
    """What, with the weights, makes the model what it is: JSON values."""
    return {name: checkpoint.facts[name] for name in _MODEL_FACTS if name in checkpoint.facts}


def model_digest(checkpoint: Checkpoint) -> str:
    """The SHA-256 (hex) of a checkpoint's network, settings and weights.

    Unlike the digest of its manifest it is the same for a copy without the optimiser's state, as
    MLflow holds it, and for the same training done again at another time.

    Args:
        checkpoint: read with its model file.
    """
    facts = network_facts(checkpoint)
    weights = hashlib.sha256(checkpoint.files[MODEL_FILE]).hexdigest()
    return digest_of({"kind": checkpoint.kind, "weights": weights, **facts})


def model_files(run: Store, checkpoint: Checkpoint) -> dict[str, bytes]:
    """The files that make a checkpoint loadable without its optimiser state.

    Args:
        run: the folder that holds it.
        checkpoint: read with its model file.

    Raises:
        StorageError: its manifest has gone since.
    """
    manifest = run.child(checkpoint.name).read_json(MANIFEST)
    manifest["files"] = {MODEL_FILE: manifest["files"][MODEL_FILE]}
    return {
        MODEL_FILE: checkpoint.files[MODEL_FILE],
        MANIFEST: to_json_bytes(seal(manifest)),
    }


def checkpoint_names(run: Store) -> list[str]:
    """Names of the run's checkpoints that were written to their end, oldest first, sound or not."""
    return sorted(
        (name for name in run.names() if _NAME.match(name) and has_artifact(run, name)),
        key=lambda name: int(name.removeprefix("epoch-")),
    )


def newest_sound_checkpoint(
    run: Store, *, on_damaged: Callable[[CheckpointError], None] | None = None
) -> Checkpoint | None:
    """The newest checkpoint whose files match their digests; damaged ones are passed over with
    a warning. None if the run has no checkpoint at all.

    Args:
        run: its folder.
        on_damaged: also told of each that is passed over.

    Raises:
        CheckpointError: there are checkpoints, and not one of them is sound.
    """
    names = checkpoint_names(run)
    for name in reversed(names):
        try:
            return read_checkpoint(run, name)
        except CheckpointError as error:
            _log.warning("passing over a damaged checkpoint: %s", error)
            if on_damaged is not None:
                on_damaged(error)
    if names:
        raise CheckpointError(
            run.uri,
            got=f"{len(names)} checkpoints, all of them damaged",
            expected="at least one sound checkpoint",
            remedy="restore one from a copy, or start anew with --overwrite",
        )
    return None


def _kind(run: Store, name: str) -> str:
    """The kind that a manifest names, if it is a checkpoint's; reading then verifies it."""
    folder = run.child(name)
    if folder.exists(MANIFEST):
        manifest = folder.read_json(MANIFEST)
        if isinstance(manifest, dict) and manifest.get("kind") in _LOADERS:
            return str(manifest["kind"])
    return CDVAE_KIND


def _require_kind(checkpoint: Checkpoint, kind: str, what: str) -> None:
    if checkpoint.kind != kind:
        raise CheckpointError(
            checkpoint.uri,
            got=f"a {checkpoint.kind}",
            expected=f"{what} ({kind})",
            remedy=f"load it by {_LOADERS[checkpoint.kind]}",
        )
