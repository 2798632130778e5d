"""What actors compute of pairs x, x' for the empirical study: one row an image."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from cdvae_ray.config.classifier import INPUT_KINDS, InputKind
from cdvae_ray.config.classifier_job import TOP_K
from cdvae_ray.core.cdvae import CDVAE, Latent
from cdvae_ray.core.classifier import ImageClassifier, classifier_input
from cdvae_ray.core.threat_models import AttackedModel
from cdvae_ray.core.vae import Posterior
from cdvae_ray.evaluation.answers import predictions
from cdvae_ray.evaluation.image_computations import Columns
from cdvae_ray.training.frozen_cdvae import latent_noise

Units = Literal["normalized", "pixel"]
Norm = Literal["l1", "l2", "linf"]

PARTS = ("x", "G(x)", "R(x)", "x'", "G(x')", "R(x')", "delta", "delta_G", "delta_R")
"""Rows of Table 2, in the order of the columns of each norm; Eq. (6)."""
COMPARED = ("G(x)", "G(x')", "R(x)", "R(x')")
"""Whose features are compared, as images."""
NORMS: tuple[Norm, ...] = ("l1", "l2", "linf")


class DecompositionColumns(nn.Module):
    """Norms of all parts, cosines, latents, and features of the parts as images.

    Columns of a batch of N images:
        label, prediction, prediction_adversarial: (N,), of the attacked function.
        essential_prediction, essential_prediction_adversarial: (N,), of D(R(x)) and D(R(x')).
        l1, l2, linf: (N, 9), of `PARTS`.
        cosine: (N, 2), of G(x) with G(x') and of R(x) with R(x').
        latent, latent_adversarial: (N, Z), see `latent_vector`.
        features/<part>: (N, d), for `COMPARED`.

    Args:
        cdvae: splits images.
        attacked: images in [0, 1] to logits: what x' was made against.
        image_features: images in [0, 1], (N, 3, S, S), to features (N, d).
        units: of norms and cosines: normalised as the CD-VAE's networks see images, or pixels.
        seed: keys the latent noise of a CD-VAE that samples; x and x' share it.
    """

    def __init__(
        self,
        cdvae: CDVAE,
        attacked: nn.Module,
        image_features: nn.Module,
        *,
        units: Units,
        seed: int,
    ) -> None:
        super().__init__()
        self.cdvae, self.attacked, self.image_features = cdvae, attacked, image_features
        self.units: Units = units
        self.seed = seed

    def forward(self, clean: Tensor, images: Tensor, labels: Tensor, image_ids: Tensor) -> Columns:
        """Columns of a batch: `clean` is x, `images` x', each (N, 3, S, S) in [0, 1]."""
        with torch.inference_mode():
            ids = image_ids.to(clean.device)
            noise = latent_noise(self.cdvae, ids, purpose="analyze.latent", seed=self.seed, epoch=0)
            mean, std = self.cdvae.pixel_mean, self.cdvae.pixel_std
            sides = []
            for shown in (clean, images):
                output = self.cdvae(shown, noise)
                sides.append((shown, output, output.reconstruction * std + mean))
            (x, first, redundant), (attacked, second, redundant_attacked) = sides
            parts = {
                "x": x,
                "G(x)": redundant,
                "R(x)": x - redundant,
                "x'": attacked,
                "G(x')": redundant_attacked,
                "R(x')": attacked - redundant_attacked,
            }
            columns: Columns = {
                "label": labels,
                "prediction": self._answers(x, first.logits),
                "prediction_adversarial": self._answers(attacked, second.logits),
                "essential_prediction": predictions(first.logits),
                "essential_prediction_adversarial": predictions(second.logits),
                "latent": latent_vector(first.latent),
                "latent_adversarial": latent_vector(second.latent),
            }
            for part in COMPARED:
                columns[f"features/{part}"] = self.image_features(as_image(parts[part], part))
            measured = {name: self._in_units(value, name) for name, value in parts.items()}
            for part, (a, b) in _DIFFERENCES.items():
                measured[part] = measured[a] - measured[b]
            columns |= norms([measured[part] for part in PARTS])
            columns["cosine"] = torch.stack(
                [_cosine(measured[a], measured[b]) for a, b in (_REDUNDANT, _ESSENTIAL)], dim=1
            )
            return columns

    def _answers(self, images: Tensor, essential_logits: Tensor) -> Tensor:
        attacked = self.attacked
        if isinstance(attacked, AttackedModel) and attacked.threat_model.name == "class-essential":
            # Not asked again: a CD-VAE that samples would draw anew.
            return predictions(essential_logits)
        answers: Tensor = predictions(attacked(images))
        return answers

    def _in_units(self, part: Tensor, name: str) -> Tensor:
        if self.units == "pixel":
            return part
        # R is a difference, in which the mean cancels.
        mean = 0.0 if name.startswith("R") else self.cdvae.pixel_mean
        return (part - mean) / self.cdvae.pixel_std


_PLACES = 8
_REDUNDANT, _ESSENTIAL = ("G(x)", "G(x')"), ("R(x)", "R(x')")
_DIFFERENCES = {"delta": ("x", "x'"), "delta_G": _REDUNDANT, "delta_R": _ESSENTIAL}


def latent_vector(latent: Latent) -> Tensor:
    """What of a latent is compared between x and x': the posterior mean, (N, Z).

    Of a VQ-VAE the codes, averaged over a grid of at most 8 x 8 places: at 299 x 299 pixels there
    are 720,000 numbers an image, which nobody stores.
    """
    if isinstance(latent, Posterior):
        return latent.mean
    places = min(_PLACES, *latent.quantized.shape[2:])
    return F.adaptive_avg_pool2d(latent.quantized, places).flatten(1)


def as_image(part: Tensor, name: str) -> Tensor:
    """A part in pixel units as an image in [0, 1]: R(x) around mid-grey, clamped, as pictures show.

    Args:
        part: (N, 3, S, S), in pixel units.
        name: of `PARTS`.
    """
    grey = 0.5 if name.startswith("R") else 0.0
    return (part + grey).clamp(0, 1)


def norms(parts: list[Tensor]) -> Columns:
    """L1, L2 and L-infinity of each part, (N, parts) by norm."""
    flat = [part.flatten(1) for part in parts]
    orders: dict[Norm, float] = {"l1": 1, "l2": 2, "linf": float("inf")}
    return {
        name: torch.stack(
            [torch.linalg.vector_norm(each, ord=order, dim=1) for each in flat], dim=1
        )
        for name, order in orders.items()
    }


class CrossColumns(nn.Module):
    """Table 3: what each classifier answers to x, G(x) and R(x).

    Columns of a batch, for each classifier c and each kind of input k: c/k/top1 and c/k/top5, (N,)
    bool, whether the label is the first of its answers or among the first five.

    Args:
        cdvae: splits images.
        classifiers: by what each was trained on.
        seed: keys the latent noise of a CD-VAE that samples.
    """

    def __init__(
        self, cdvae: CDVAE, classifiers: dict[InputKind, ImageClassifier], *, seed: int
    ) -> None:
        super().__init__()
        self.cdvae, self.seed = cdvae, seed
        self.classifiers = nn.ModuleDict()
        for kind, classifier in classifiers.items():
            self.classifiers[kind] = classifier

    def forward(self, images: Tensor, labels: Tensor, image_ids: Tensor) -> Columns:
        """Columns of a batch."""
        with torch.inference_mode():
            noise = latent_noise(
                self.cdvae,
                image_ids.to(images.device),
                purpose="analyze.latent",
                seed=self.seed,
                epoch=0,
            )
            columns: Columns = {}
            for kind in INPUT_KINDS:
                inputs = classifier_input(images, kind, self.cdvae, noise=noise)
                for trained_on, classifier in self.classifiers.items():
                    assert isinstance(classifier, ImageClassifier)
                    logits = classifier.classify(inputs, kind)
                    best = logits.topk(min(TOP_K, logits.shape[1]), dim=1).indices
                    right = best == labels.unsqueeze(1)
                    columns[f"{trained_on}/{kind}/top1"] = right[:, 0]
                    columns[f"{trained_on}/{kind}/top5"] = right.any(dim=1)
            return columns


def _cosine(first: Tensor, second: Tensor) -> Tensor:
    # In float64: cosines near 1 leave few digits.
    return F.cosine_similarity(first.flatten(1).double(), second.flatten(1).double(), dim=1)
