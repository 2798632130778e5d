"""The evaluation that ends a training job, on every rank: one function a kind of task."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from cdvae_ray.config.classifier_job import ClassifierEvaluationConfig
from cdvae_ray.config.training import DefenseEvaluationConfig, EvaluationConfig
from cdvae_ray.core.cdvae import CDVAE
from cdvae_ray.core.classifier import ImageClassifier
from cdvae_ray.core.defenses import JointModel
from cdvae_ray.core.vq_vae import VqVae, perplexity
from cdvae_ray.data.batches import evaluation_batches
from cdvae_ray.data.images import ImageSet
from cdvae_ray.evaluation.classification import (
    classification_sums,
    evaluate_classifier,
    kinds_of_input,
)
from cdvae_ray.evaluation.decomposition import (
    ATTACK_SUMS,
    clean_sums,
    count_codes,
    evaluate_clean,
    look_at_perturbations,
)
from cdvae_ray.evaluation.robustness import (
    CLEAN_ACCURACY_SUMS,
    ROBUSTNESS_SUMS,
    accuracy,
    robustness,
)
from cdvae_ray.training.classifier_task import ClassifierTask
from cdvae_ray.training.distributed import all_reduce_sum, rank, world_size
from cdvae_ray.training.purifier_model import PurifierModel
from cdvae_ray.training.state import TrainState


class FinalNumbers(NamedTuple):
    """The final numbers over all ranks."""

    metrics: dict[str, float]
    test_images: int
    attacked_images: int
    """0 where nothing was attacked."""


Evaluate = Callable[[TrainState, ImageSet], FinalNumbers]
"""Called by every rank with its trained replica and all test images, of which it takes a share."""


def evaluate_cdvae_task(
    state: TrainState, test: ImageSet, config: EvaluationConfig
) -> FinalNumbers:
    """Of a CD-VAE: classification and reconstruction of clean images, and a short PGD look."""
    model = state.model.eval()
    assert isinstance(model, CDVAE)
    shard = {"batch_size": config.batch_size, "rank": rank(), "world_size": world_size()}
    clean = evaluate_clean(model, evaluation_batches(test, **shard), state.device)
    clean.reduce(all_reduce_sum, clean_sums(model))
    latent: dict[str, float] = {}
    if isinstance(model.generator, VqVae):
        batches = evaluation_batches(test, **shard)
        counts = all_reduce_sum(count_codes(model, model.generator, batches, state.device))
        latent = {
            "codebook_perplexity": perplexity(counts),
            "codes_used": float((counts > 0).sum()),
        }
    attacked = look_at_perturbations(
        model,
        evaluation_batches(test, **shard, limit=config.attack_images),
        config,
        state.device,
    )
    attacked.reduce(all_reduce_sum, ATTACK_SUMS)
    return FinalNumbers(
        metrics={**clean.means(), **latent, **attacked.means()},
        test_images=clean.count,
        attacked_images=attacked.count,
    )


def evaluate_classifier_task(
    state: TrainState, test: ImageSet, config: ClassifierEvaluationConfig
) -> FinalNumbers:
    """Of a plain classifier: accuracy on its own input and on whatever else can be made."""
    model, task = state.model.eval(), state.task
    assert isinstance(model, ImageClassifier)
    assert isinstance(task, ClassifierTask)
    cdvae = task.frozen_cdvae(state.device)
    shard = evaluation_batches(
        test, batch_size=config.batch_size, rank=rank(), world_size=world_size()
    )
    tally = evaluate_classifier(model, shard, state.device, cdvae=cdvae)
    tally.reduce(all_reduce_sum, classification_sums(kinds_of_input(cdvae)))
    means = tally.means()
    own = {name: means[f"{name}_on_{task.input_kind}"] for name in ("accuracy", "top5_accuracy")}
    return FinalNumbers(metrics={**own, **means}, test_images=tally.count, attacked_images=0)


def evaluate_defense_task(
    state: TrainState, test: ImageSet, config: DefenseEvaluationConfig
) -> FinalNumbers:
    """Of a defence: accuracy on clean images, and under a short PGD through all of it."""
    model = state.model.eval()
    defense = model.defense() if isinstance(model, JointModel | PurifierModel) else model
    shard = {"batch_size": config.batch_size, "rank": rank(), "world_size": world_size()}
    clean = accuracy(defense, evaluation_batches(test, **shard), state.device)
    clean.reduce(all_reduce_sum, CLEAN_ACCURACY_SUMS)
    attacked = robustness(
        defense,
        evaluation_batches(test, **shard, limit=config.attack_images),
        config,
        state.device,
    )
    attacked.reduce(all_reduce_sum, ROBUSTNESS_SUMS)
    return FinalNumbers(
        metrics={**clean.means(), **attacked.means()},
        test_images=clean.count,
        attacked_images=attacked.count,
    )
