"""Attacks on any function from images in [0, 1] to logits.

Each is called as attack(classify, images, labels, *, epsilon, num_steps, keep, seed, image_ids)
and returns an `AttackResult`: adversarial images with one outcome an image. `detector_pgd` takes
a detector after the classifier, and answers how many images evade it at any threshold.
"""

from __future__ import annotations

from cdvae_ray.core.attacks.auto_attack import auto_attack
from cdvae_ray.core.attacks.bim import bim
from cdvae_ray.core.attacks.carlini_wagner import carlini_wagner_l2
from cdvae_ray.core.attacks.detector_pgd import DetectorAttackResult, detector_pgd
from cdvae_ray.core.attacks.eot import eot
from cdvae_ray.core.attacks.fgsm import fgsm
from cdvae_ray.core.attacks.jpeg import jpeg, jpeg_identity
from cdvae_ray.core.attacks.margin_pgd import margin_pgd
from cdvae_ray.core.attacks.outcome import AttackResult
from cdvae_ray.core.attacks.pgd import pgd
from cdvae_ray.core.attacks.probe import is_stochastic
from cdvae_ray.core.attacks.recolor import recolor, recolor_identity
from cdvae_ray.core.attacks.run import run_attack
from cdvae_ray.core.attacks.stadv import stadv

__all__ = [
    "AttackResult",
    "DetectorAttackResult",
    "auto_attack",
    "bim",
    "carlini_wagner_l2",
    "detector_pgd",
    "eot",
    "fgsm",
    "is_stochastic",
    "jpeg",
    "jpeg_identity",
    "margin_pgd",
    "pgd",
    "recolor",
    "recolor_identity",
    "run_attack",
    "stadv",
]
