"""How many epochs each training gets: decided from the measured speed, before any training."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

from cdvae_ray.config.training import TrainingConfig
from cdvae_ray.errors import ConfigError

from .scale_preset import NEEDED, SHARES, TRAINED, ScalePreset
from .speed import OURS, OURS_EAGER

SLACK = 1.08
"""Seconds of an epoch beyond its steps' at the measured speed: sums, checkpoints, the unforeseen"""


def make_plan(
    preset: ScalePreset,
    *,
    seconds: float,
    num_images: int,
    speed: dict[str, Any],
) -> dict[str, Any]:
    """Epochs by stage, and whether to compile, as JSON values; 0 epochs leave a stage out.

    A stage gets its share of the seconds; of the two forms of our step, that counts which makes
    more epochs of all shares, its compilations counted. Nothing here knows of results.

    Args:
        preset: its fixed epochs, if it has any, are the plan.
        seconds: for everything, over all calls.
        num_images: training images.
        speed: what `measure_speed` found; not looked at where epochs are fixed.

    Raises:
        ConfigError: the share of a stage that the tables need is too small for one epoch.
    """
    if preset.fixed_epochs is not None:
        epochs = {name: preset.fixed_epochs[name] for name in TRAINED}
        return {"epochs": epochs, "compile": False, "from": "fixed epochs of the preset"}
    best: dict[str, Any] | None = None
    for name in (OURS, OURS_EAGER):
        if name not in speed["forms"]:
            continue
        form = speed["forms"][name]
        epoch_seconds = SLACK * num_images / form["images_per_second"]
        start_seconds = form["warm_up_seconds"] if name == OURS else 0.0
        epochs = {
            stage: max(0, math.floor((SHARES[stage] * seconds - start_seconds) / epoch_seconds))
            for stage in TRAINED
        }
        plan = {
            "epochs": epochs,
            "compile": name == OURS,
            "from": f"{name}: {form['images_per_second']:.0f} images/s, "
            f"{epoch_seconds:.1f} s an epoch, {start_seconds:.0f} s to begin a stage",
            "seconds": seconds,
            "shares": {stage: SHARES[stage] for stage in TRAINED},
            "epoch_seconds": epoch_seconds,
        }
        if best is None or _worth(plan) > _worth(best):
            best = plan
    assert best is not None, "the eager form always works"
    if _fewest(best) < 1:
        least = min(NEEDED, key=lambda stage: SHARES[stage])
        needed = best["epoch_seconds"] / SHARES[least]
        raise ConfigError(
            "--plan-seconds",
            got=f"{seconds:g}, which leaves {least} less than an epoch ({best['from']})",
            expected=f"about {needed:.0f} or more",
            remedy="plan for more seconds, over several calls, or take a smaller --preset",
        )
    return best


def _fewest(plan: dict[str, Any]) -> int:
    """Epochs of the stage that the tables need and that has the fewest."""
    return min(int(plan["epochs"][stage]) for stage in NEEDED)


def _worth(plan: dict[str, Any]) -> tuple[bool, int]:
    """Whether every stage that the tables need gets an epoch, and the epochs of these stages."""
    return _fewest(plan) >= 1, sum(int(plan["epochs"][stage]) for stage in NEEDED)


def scheduled(training: TrainingConfig, plan: dict[str, Any], stage: str) -> TrainingConfig:
    """The training of a stage: a cosine from the preset's rate to zero over exactly its epochs."""
    epochs = int(plan["epochs"][stage])
    return replace(
        training,
        epochs=epochs,
        schedule="cosine",
        cosine_period_epochs=epochs,
        minimum_learning_rate=0.0,
        compile=bool(plan["compile"]),
    )
