"""What a CD-VAE does to test images: classification, reconstruction, and a short PGD look."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from cdvae_ray.config.training import EvaluationConfig
from cdvae_ray.core.attacks.pgd import pgd
from cdvae_ray.core.cdvae import CDVAE
from cdvae_ray.core.metrics import Tally
from cdvae_ray.core.objective import kl_per_image, reconstruction_accuracy_per_image
from cdvae_ray.core.vae import Posterior
from cdvae_ray.core.vq_vae import VqVae, code_counts
from cdvae_ray.data.batches import Batch
from cdvae_ray.evaluation.answers import predictions

ATTACK_SUMS = (
    "attacked_clean_accuracy",
    "attacked_accuracy",
    "delta_l2",
    "delta_redundant_l2",
    "delta_essential_l2",
)


def clean_sums(model: CDVAE) -> tuple[str, ...]:
    """The names of `evaluate_clean`'s sums: a VQ-VAE has no KL divergence that varies."""
    own = () if isinstance(model.generator, VqVae) else ("kl_nats",)
    return ("class_essential_accuracy", "reconstruction_accuracy", *own)


def evaluate_clean(model: CDVAE, batches: Iterable[Batch], device: torch.device) -> Tally:
    """Accuracy of D(R(x)), reconstruction accuracy 1 - |x - G(x)| / |x| and KL in nats.

    Args:
        model: in eval mode, on `device`.
        batches: uint8 images with labels; this rank's share of them.
        device: where to compute.

    Returns:
        The sums `clean_sums` over this rank's images.
    """
    tally = Tally(device)
    with torch.inference_mode():
        for batch in batches:
            images, labels = batch.on(device)
            output = model(images)
            reconstructed = reconstruction_accuracy_per_image(
                output.reconstruction, output.normalized_images
            )
            sums = {
                "class_essential_accuracy": (predictions(output.logits) == labels).sum(),
                "reconstruction_accuracy": reconstructed.sum(),
            }
            if isinstance(output.latent, Posterior):
                posterior = output.latent
                sums["kl_nats"] = kl_per_image(posterior.mean, posterior.log_var).sum()
            tally.add(sums, len(labels))
    return tally


def count_codes(
    model: CDVAE, generator: VqVae, batches: Iterable[Batch], device: torch.device
) -> Tensor:
    """How often this rank's images use each code.

    Args:
        model: in eval mode, on `device`.
        generator: its G.
        batches: uint8 images with labels; this rank's share of them.
        device: where to compute.

    Returns:
        (K,) float64, on the device.
    """
    size = model.config.codebook_size
    counts = torch.zeros(size, dtype=torch.float64, device=device)
    with torch.inference_mode():
        for batch in batches:
            images, _ = batch.on(device)
            codes = generator.encode((images - model.pixel_mean) / model.pixel_std).codes
            counts += code_counts(codes, size)
    return counts


def look_at_perturbations(
    model: CDVAE, batches: Iterable[Batch], config: EvaluationConfig, device: torch.device
) -> Tally:
    """Where an L-infinity PGD perturbation goes: |delta|, |delta_G| and |delta_R|, Eq. (6).

    Threat model: the attack is on D(R(x)) through the whole CD-VAE. Norms are L2 per image, in
    pixel units (images in [0, 1]).

    Returns:
        The sums ATTACK_SUMS over this rank's images.
    """
    tally = Tally(device)
    for batch in batches:
        images, labels = batch.on(device)
        adversarial = pgd(
            model.classify_essential,
            images,
            labels,
            epsilon=config.attack_epsilon,
            num_steps=config.attack_num_steps,
            keep="last",
            seed=0,
            image_ids=batch.image_ids,
        ).images
        with torch.inference_mode():
            clean, attacked = model.decompose(images), model.decompose(adversarial)
            sums = {
                "attacked_clean_accuracy": (predictions(clean.logits) == labels).sum(),
                "attacked_accuracy": (predictions(attacked.logits) == labels).sum(),
                "delta_l2": _l2(images - adversarial),
                "delta_redundant_l2": _l2(clean.class_redundant - attacked.class_redundant),
                "delta_essential_l2": _l2(clean.class_essential - attacked.class_essential),
            }
        tally.add(sums, len(labels))
    return tally


def _l2(differences: Tensor) -> Tensor:
    norms: Tensor = torch.linalg.vector_norm(differences.flatten(1), dim=1)
    return norms.sum()
