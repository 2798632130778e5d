"""Defences back from their checkpoints."""

from __future__ import annotations

from collections.abc import Mapping

from cdvae_ray.config.classifier import ClassifierConfig
from cdvae_ray.config.model import ModelConfig
from cdvae_ray.config.serialize import from_dict
from cdvae_ray.core.cdvae import CDVAE
from cdvae_ray.core.classifier import ImageClassifier
from cdvae_ray.core.defenses import Defense, JointModel, PurifiedClassifier, RedundantDefense
from cdvae_ray.errors import CheckpointError
from cdvae_ray.training.baseline_task import PurifierTask, build_purifier
from cdvae_ray.training.checkpoint import (
    CLASSIFIER_KIND,
    MODEL_FILE,
    Checkpoint,
    classifier_of,
)
from cdvae_ray.training.finetune_task import FinetuneTask
from cdvae_ray.training.state import load_weights


def defense_of(checkpoint: Checkpoint, cdvaes: Mapping[str, CDVAE]) -> Defense:
    """The defence that a checkpoint holds: images in [0, 1] to logits, in eval mode on the CPU.

    Args:
        checkpoint: a classifier's (plain or robust), a purifier's or a fine-tuned defence's.
        cdvaes: by their digests, for a classifier of G(x), whose checkpoint holds no G.

    Raises:
        CheckpointError: it holds no defence, other tensors than its model's, or its CD-VAE is not
            among these.
    """
    if checkpoint.kind == FinetuneTask.checkpoint_kind:
        return _redundant(checkpoint)
    if checkpoint.kind == PurifierTask.checkpoint_kind:
        return _purified(checkpoint)
    if checkpoint.kind != CLASSIFIER_KIND:
        raise CheckpointError(
            checkpoint.uri,
            got=f"a {checkpoint.kind}",
            expected="a defence: a classifier of x or G(x), a purifier or a fine-tuned CD-VAE",
            remedy="a CD-VAE alone defends nothing: train D_G by jobs/train_classifier.py "
            "--input class_redundant, or fine-tune it by jobs/finetune_adversarial.py",
        )
    classifier = classifier_of(checkpoint)
    if classifier.input_kind == "images":
        return classifier
    return RedundantDefense(_own_cdvae(checkpoint, classifier, cdvaes), classifier).eval()


def trained_against(checkpoint: Checkpoint) -> tuple[str, ...]:
    """The families of attacks that the model of a checkpoint has seen in training."""
    return tuple(checkpoint.facts.get("trained_against", ()))


def _own_cdvae(
    checkpoint: Checkpoint, classifier: ImageClassifier, cdvaes: Mapping[str, CDVAE]
) -> CDVAE:
    if classifier.input_kind == "class_essential":
        raise CheckpointError(
            checkpoint.uri,
            got="a classifier trained on class_essential",
            expected="one trained on images or class_redundant",
            remedy="train it by jobs/train_classifier.py --input class_redundant",
        )
    digest = str(classifier.cdvae_digest)
    if digest not in cdvaes:
        found = ", ".join(each[:12] for each in cdvaes) or "none"
        raise CheckpointError(
            checkpoint.uri,
            got=f"CD-VAE {found}",
            expected=f"CD-VAE {digest[:12]}, behind which this classifier of G(x) was trained",
            remedy="give that CD-VAE as well (cdvae=..., --cdvae ...)",
        )
    return cdvaes[digest]


def _redundant(checkpoint: Checkpoint) -> RedundantDefense:
    facts = checkpoint.facts
    size, names = int(facts["image_size"]), tuple(facts["class_names"])
    defense = RedundantDefense(
        CDVAE(
            from_dict(ModelConfig, facts["cdvae_model"], what="cdvae_model"),
            image_size=size,
            class_names=names,
        ),
        ImageClassifier(
            from_dict(ClassifierConfig, facts["classifier_model"], what="classifier_model"),
            input_kind="class_redundant",
            image_size=size,
            class_names=names,
        ),
    )
    load_weights(JointModel(defense), checkpoint.tensors(MODEL_FILE))
    return defense.eval()


def _purified(checkpoint: Checkpoint) -> PurifiedClassifier:
    facts = checkpoint.facts
    classifier = ImageClassifier(
        from_dict(ClassifierConfig, facts["classifier_model"], what="classifier_model"),
        input_kind="images",
        image_size=int(facts["image_size"]),
        class_names=tuple(facts["class_names"]),
    )
    model = build_purifier(str(facts["purifier"]), classifier, width=int(facts["width"]), seed=0)
    load_weights(model, checkpoint.tensors(MODEL_FILE))
    return model.defense().eval()
