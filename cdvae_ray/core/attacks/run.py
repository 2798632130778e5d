"""An attack by its config."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

from torch import Tensor

from cdvae_ray.config.attack import AttackConfig, AttackKind
from cdvae_ray.core.attacks.auto_attack import auto_attack
from cdvae_ray.core.attacks.bim import bim
from cdvae_ray.core.attacks.carlini_wagner import carlini_wagner_l2
from cdvae_ray.core.attacks.fgsm import fgsm
from cdvae_ray.core.attacks.inputs import Classify
from cdvae_ray.core.attacks.jpeg import jpeg
from cdvae_ray.core.attacks.margin_pgd import margin_pgd
from cdvae_ray.core.attacks.outcome import AttackResult
from cdvae_ray.core.attacks.pgd import pgd
from cdvae_ray.core.attacks.recolor import recolor
from cdvae_ray.core.attacks.stadv import stadv

ATTACKS: dict[AttackKind, Callable[..., AttackResult]] = {
    "fgsm": fgsm,
    "bim": bim,
    "pgd": pgd,
    "margin_pgd": margin_pgd,
    "carlini_wagner_l2": carlini_wagner_l2,
    "stadv": stadv,
    "recolor": recolor,
    "jpeg": jpeg,
    "auto_attack": auto_attack,
}


def run_attack(
    config: AttackConfig,
    classify: Classify,
    images: Tensor,
    labels: Tensor,
    *,
    seed: int,
    image_ids: Tensor,
) -> AttackResult:
    """Runs the attack that a config names, with the settings that it holds.

    Args:
        config: attack and settings; what is None is left to the attack's default.
        classify: images in [0, 1] to logits; `eot(...)` of it for a stochastic one.
        images: (N, 3, H, W) in [0, 1].
        labels: (N,) int64.
        seed, image_ids: key all randomness, (N,) int64 ids.
    """
    settings: dict[str, Any] = {
        field.name: value
        for field in dataclasses.fields(config)
        if field.name not in ("attack", "label")
        and (value := getattr(config, field.name)) is not None
    }
    return ATTACKS[config.attack](
        classify, images, labels, seed=seed, image_ids=image_ids, **settings
    )
