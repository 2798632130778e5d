"""Mahalanobis scores after a small step of the images towards the nearest class."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from cdvae_ray.core.detectors.mahalanobis import Mahalanobis
from cdvae_ray.errors import ConfigError, DataError

FeatureFunction = Callable[[Tensor], Mapping[str, Tensor]]


def mahalanobis_input_scores(
    feature_fn: FeatureFunction,
    images: Tensor,
    detectors: Mapping[str, Mahalanobis],
    magnitudes: Sequence[float],
    *,
    std: Sequence[float] = (1.0, 1.0, 1.0),
    clip: bool = False,
) -> dict[str, Tensor]:
    """Scores each layer at x - m sign(grad_x score_l(x)) / std, for every magnitude m.

    Lee et al. (2018), section 2.2. One forward of x serves all layers; each layer's gradient serves
    all magnitudes; m = 0 costs nothing more. Where a gradient is exactly 0 the pixel stays, while
    the released code moves it as if the gradient were positive.

    Args:
        feature_fn: images to features by layer, each (N, d_l), each row a function of its image
            alone (a network in eval mode).
        images: float, (N, 3, H, W), in the units that `feature_fn` takes.
        detectors: by layer; other layers of `feature_fn` are ignored.
        magnitudes: m, each >= 0, in units of `images` times `std`.
        std: one divisor a channel, > 0. The released code steps in normalised pixels and divides
            by a standard deviation: for images in [0, 1] that is this divisor over the model's own
            deviation, and 1 where they are the same.
        clip: keeps the stepped images in [0, 1], for images that are pixels.

    Returns:
        By layer (M, N), a row a magnitude; higher is more adversarial; detached.

    Raises:
        ConfigError: no detector or magnitude, one that is negative, a divisor that is not
            positive, or features without a gradient.
        DataError: a layer that `feature_fn` does not have, ill-shaped features or channels.
    """
    divisor = _divisor(images, std)
    _check_magnitudes(detectors, magnitudes)
    with torch.enable_grad():
        start = images.detach().clone().requires_grad_()
        features = feature_fn(start)
        scores = {name: _score(name, features, detectors) for name in detectors}
        signs: dict[str, Tensor] = {}
        for index, (name, score) in enumerate(scores.items()):
            if not score.requires_grad:
                raise ConfigError(
                    f"features of {name}",
                    got="no gradient with respect to the images",
                    expected="differentiable features",
                    remedy="remove no_grad or detach from the feature function",
                )
            (gradient,) = torch.autograd.grad(
                score.sum(), start, retain_graph=index + 1 < len(scores)
            )
            signs[name] = gradient.sign()
    rows: dict[str, list[Tensor]] = {name: [] for name in detectors}
    with torch.no_grad():
        for magnitude in magnitudes:
            for name in detectors:
                if magnitude == 0:
                    rows[name].append(scores[name].detach())
                    continue
                stepped = images - magnitude * signs[name] / divisor
                stepped = stepped.clamp(0, 1) if clip else stepped
                rows[name].append(_score(name, feature_fn(stepped), detectors))
    return {name: torch.stack(values) for name, values in rows.items()}


def _score(
    name: str, features: Mapping[str, Tensor], detectors: Mapping[str, Mahalanobis]
) -> Tensor:
    if name not in features:
        raise DataError(
            "layers of the features",
            got=", ".join(features) or "none",
            expected=f"{name} among them",
            remedy="fit and score with the same feature function",
        )
    return detectors[name].score(features[name])


def _divisor(images: Tensor, std: Sequence[float]) -> Tensor:
    if images.dim() != 4 or not images.is_floating_point() or images.shape[1] != len(std):
        raise DataError(
            "images",
            got=f"{images.dtype} of shape {tuple(images.shape)}",
            expected=f"floating point of shape (N, {len(std)}, H, W)",
            remedy="pass float images and one divisor a channel",
        )
    if not all(0 < value < float("inf") for value in std):
        raise ConfigError(
            "std", got=tuple(std), expected="finite numbers > 0", remedy="pass deviations"
        )
    return torch.tensor(tuple(std), dtype=images.dtype, device=images.device).view(1, -1, 1, 1)


def _check_magnitudes(detectors: Mapping[str, Mahalanobis], magnitudes: Sequence[float]) -> None:
    if not detectors:
        raise ConfigError(
            "detectors", got="none", expected="one a layer", remedy="fit at least one layer"
        )
    if not magnitudes or not all(0 <= value < float("inf") for value in magnitudes):
        raise ConfigError(
            "magnitudes",
            got=tuple(magnitudes),
            expected="at least one finite number >= 0",
            remedy="pass such as (0, 0.0005, 0.001, 0.002)",
        )
