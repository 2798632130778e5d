"""AutoAttack (Croce and Hein, 2020), by the authors' own attacks from the package pyautoattack."""

from __future__ import annotations

import logging
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from cdvae_ray.core.attacks.balls import Norm, check_norm, pixel_norm, project
from cdvae_ray.core.attacks.eot import Eot, eot, log_mean_probability
from cdvae_ray.core.attacks.inputs import Classify, attacking, check_positive, prepare
from cdvae_ray.core.attacks.losses import margin
from cdvae_ray.core.attacks.outcome import AttackResult, Goal
from cdvae_ray.core.attacks.pixels import PixelSearch
from cdvae_ray.core.attacks.search import look
from cdvae_ray.core.random import derive_seed
from cdvae_ray.errors import ConfigError, DataError

Version = Literal["standard", "rand", "square"]

NUM_STEPS = 100
MOST_TARGETS = 9
NUM_QUERIES = 5000
RAND_DRAWS = 20
SMALLEST_L2_SIDE = 5
"""Square divides an image into 5 x 5 windows for its L2 start."""


def auto_attack(
    classify: Classify,
    images: Tensor,
    labels: Tensor,
    *,
    epsilon: float,
    norm: Norm = "linf",
    version: Version = "standard",
    seed: int = 0,
    image_ids: Tensor | None = None,
    batch_size: int | None = None,
) -> AttackResult:
    """The worst of several attacks without settings, each on the images that still resist.

    standard: APGD on the cross-entropy, targeted APGD on DLR, targeted FAB, Square (5000 queries),
    with 9 targets or as many as there are. rand, for stochastic classifiers: APGD on the
    cross-entropy and on DLR of the mean answer over 20 draws, or over those of an `eot`. (The
    authors' package averages gradients over draws alike, but judges by one draw each, of which some
    are lucky: an image that one draw fools is attacked no more.)
    square: Square alone, which sees answers and no gradient: a black-box attack.

    DLR needs 3 classes, its targeted form 4. With 3 classes, standard runs APGD on the untargeted
    DLR in the place of the targeted; with 2 both versions do without DLR.

    The package draws its random numbers for a batch as a whole: the result depends on seed and ids
    and on how the images are batched, unlike that of the other attacks. It works in float32.

    Args:
        classify: images in [0, 1] to logits (N, classes). Modules run in eval mode.
        images: (N, 3, H, W), floating point, in [0, 1].
        labels: (N,) int64, the true classes.
        epsilon: radius of the ball, in pixel units, > 0.
        norm: linf or l2; l2 needs sides of 5 pixels or more.
        version: standard, rand or square.
        seed, image_ids: make the seed of the package's generators.
        batch_size: images at a time, >= 1; None: all.

    Returns:
        Images that resist come back unchanged. `loss` is the margin. `zero_gradient` and
        `nonfinite_gradient` are False throughout: the package does not tell. A gradient that is
        not finite counts as zero.

    Raises:
        ConfigError: a setting outside its range, or pyautoattack is not installed.
        DataError: images, labels or the classifier's answer are not as said.
    """
    check_norm(norm)
    check_positive("epsilon", epsilon)
    _check_settings(version, batch_size)
    if version == "rand" and not isinstance(classify, Eot):
        classify = eot(classify, num_samples=RAND_DRAWS)
    given = prepare(images, labels, image_ids=image_ids)
    if norm == "l2" and min(images.shape[2:]) < SMALLEST_L2_SIDE:
        raise DataError(
            "images",
            got=f"shape {tuple(images.shape)}",
            expected=f"sides of {SMALLEST_L2_SIDE} pixels or more",
            remedy="use norm='linf' or larger images",
        )
    as_they_are = PixelSearch(given.images, norm, epsilon, step_size=epsilon)

    def view(points: Tensor) -> tuple[Tensor, Tensor]:
        seen = look(classify, as_they_are, points, given.goal, loss=margin, need_gradient=False)
        return seen.reached, seen.loss

    with attacking(classify, seed, given.images.device), ExitStack() as stack:
        if torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
            # The package seeds the current GPU wherever the images are.
            stack.enter_context(torch.random.fork_rng(devices=[torch.cuda.current_device()]))
        fooled, loss = view(given.images)
        points = given.images
        if not bool(fooled.all()):
            found = _worst(
                classify,
                given.images,
                given.goal,
                ~fooled,
                _Settings(
                    epsilon,
                    norm,
                    version,
                    derive_seed(seed, "auto_attack", *given.image_ids.tolist()),
                    batch_size or len(images),
                ),
            )
            # Float32 may leave the ball by its rounding.
            points = project(found, given.images, norm=norm, epsilon=epsilon)
            fooled, loss = view(points)
    return AttackResult(
        images=points,
        success=fooled,
        loss=loss,
        norm=pixel_norm(points - given.images, norm),
        zero_gradient=torch.zeros_like(fooled),
        nonfinite_gradient=torch.zeros_like(fooled),
    )


class _Settings(NamedTuple):
    epsilon: float
    norm: Norm
    version: Version
    seed: int
    batch_size: int


def _worst(
    classify: Classify, images: Tensor, goal: Goal, resisting: Tensor, settings: _Settings
) -> Tensor:
    """Images after all attacks, in the dtype of the clean ones; unchanged where none fooled."""
    found, resisting = images.clone(), resisting.clone()
    ask = _one_graph_at_a_time(classify) if isinstance(classify, Eot) else classify
    with torch.no_grad():
        num_classes = classify(images[:1]).shape[1]

        def predict(points: Tensor) -> Tensor:
            logits: Tensor = _InputOnly.apply(points, ask, images.dtype)  # type: ignore[no-untyped-call]
            return logits

        for attack in _attacks(predict, num_classes, settings, images.device):
            for rows in torch.split(resisting.nonzero().squeeze(1), settings.batch_size):
                if len(rows) == 0:
                    continue
                # The package flattens images as views, which only this layout allows.
                clean, labels = images[rows].float().contiguous(), goal.labels[rows]
                points = attack(clean, labels)
                sound = torch.isfinite(points).flatten(1).all(dim=1)
                points = torch.where(sound.view(-1, 1, 1, 1), points, clean)
                fooled = goal.select(rows).reached(predict(points))
                found[rows[fooled]] = points[fooled].to(images.dtype)
                resisting[rows[fooled]] = False
    return found


def _attacks(
    predict: Callable[[Tensor], Tensor],
    num_classes: int,
    settings: _Settings,
    device: torch.device,
) -> list[Callable[[Tensor, Tensor], Tensor]]:
    """The version's attacks in their order, from (images, labels) to images."""
    try:
        from pyautoattack.autopgd_base import (  # type: ignore[import-untyped]
            APGDAttack,
            APGDAttack_targeted,
        )
        from pyautoattack.fab_pt import FABAttack_PT  # type: ignore[import-untyped]
        from pyautoattack.square import SquareAttack  # type: ignore[import-untyped]
    except ImportError as error:
        raise ConfigError(
            "auto_attack",
            got=f"no package pyautoattack ({error})",
            expected="pyautoattack 0.2.0",
            remedy="pip install pyautoattack==0.2.0",
        ) from error

    common: dict[str, Any] = {
        "norm": {"linf": "Linf", "l2": "L2"}[settings.norm],
        "eps": settings.epsilon,
        "seed": settings.seed,
        "device": device,
        "verbose": False,
        "n_restarts": 1,
    }
    targets = min(MOST_TARGETS, num_classes - 1)
    square: Callable[[Tensor, Tensor], Tensor] = SquareAttack(
        predict, p_init=0.8, n_queries=NUM_QUERIES, resc_schedule=False, **common
    ).perturb
    if settings.version == "square":
        return [square]

    def apgd(loss: str) -> Callable[[Tensor, Tensor], Tensor]:
        attack = APGDAttack(
            predict, n_iter=NUM_STEPS, loss=loss, eot_iter=1, logger=_silent(), **common
        )
        perturb: Callable[[Tensor, Tensor], Tensor] = attack.perturb
        return perturb

    if settings.version == "rand":
        return [apgd("ce"), *([apgd("dlr")] if num_classes >= 3 else [])]
    ratio = []
    if num_classes == 3:
        ratio = [apgd("dlr")]
    elif num_classes >= 4:
        ratio = [
            APGDAttack_targeted(
                predict, n_iter=NUM_STEPS, n_target_classes=targets, logger=_silent(), **common
            ).perturb
        ]
    return [
        apgd("ce"),
        *ratio,
        FABAttack_PT(
            predict, n_iter=NUM_STEPS, targeted=True, n_target_classes=targets, **common
        ).perturb,
        square,
    ]


def _one_graph_at_a_time(averaged: Eot) -> Classify:
    """An eot's answer, whose backward pass computes each draw again instead of keeping them all."""

    def ask(points: Tensor) -> Tensor:
        draws = [
            # The same draw: the generators' states are those of the first time.
            checkpoint(averaged.draw, points, use_reentrant=False)
            for _ in range(averaged.num_samples)
        ]
        return log_mean_probability(draws)

    return ask


class _InputOnly(torch.autograd.Function):
    """A classifier whose gradients reach its images alone, in float32 on both sides.

    FAB calls backward, which would fill the weights' gradients, and Square writes into logits.
    """

    @staticmethod
    def forward(ctx: Any, points: Tensor, ask: Classify, dtype: torch.dtype) -> Tensor:
        """The logits, detached."""
        with torch.set_grad_enabled(ctx.needs_input_grad[0]):
            ctx.variable = points.detach().to(dtype).requires_grad_(ctx.needs_input_grad[0])
            ctx.logits = ask(ctx.variable)
        logits: Tensor = ctx.logits.detach().to(torch.float32, copy=True)
        return logits

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        """Their pull-back; zero where it is not finite, and where images do not matter."""
        pulled = None
        if ctx.logits.requires_grad:
            (pulled,) = torch.autograd.grad(
                ctx.logits, ctx.variable, gradients[0].to(ctx.logits.dtype), allow_unused=True
            )
        if pulled is None:
            pulled = torch.zeros_like(ctx.variable)
        sound = torch.nan_to_num(pulled.float(), nan=0.0, posinf=0.0, neginf=0.0)
        # Of a channels-last network it comes channels-last, whatever the images were.
        return sound.contiguous(), None, None


def _silent() -> logging.Logger:
    """A logger that no handler hears: without one the package would warn instead."""
    logger = logging.Logger("auto_attack")  # no parent: nothing propagates
    logger.addHandler(logging.NullHandler())
    return logger


def _check_settings(version: str, batch_size: int | None) -> None:
    if version not in ("standard", "rand", "square"):
        raise ConfigError(
            "version",
            got=repr(version),
            expected="standard, rand or square",
            remedy="pass one of them",
        )
    if batch_size is not None and batch_size < 1:
        raise ConfigError(
            "batch_size", got=batch_size, expected=">= 1", remedy="pass such a number or None"
        )
