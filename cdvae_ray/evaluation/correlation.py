"""Figure 3: how far each latent dimension of x' follows that of x, with p-values."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from scipy.special import betainc
from torch import Tensor

from cdvae_ray.errors import DataError
from cdvae_ray.evaluation.detection_metrics import FloatArray
from cdvae_ray.evaluation.moments import PairedMoments

NUM_BINS = 40
"""Of the histogram of r."""
SIGNIFICANCE = 0.05
"""Of all dimensions together: each is tested at this over their number (Bonferroni)."""


@dataclass(frozen=True, kw_only=True, eq=False)
class LatentCorrelation:
    """Pearson's r of z and z' by latent dimension, and what it comes to."""

    images: int
    """n of each r."""
    correlations: FloatArray
    """(Z,); NaN for a dimension that does not vary."""
    p_values: FloatArray
    """(Z,): of no correlation, two-sided."""

    @property
    def defined(self) -> FloatArray:
        """Those of dimensions that vary, at least one."""
        found: FloatArray = self.correlations[~np.isnan(self.correlations)]
        return found

    @property
    def constant_dimensions(self) -> int:
        """Dimensions that do not vary, which have no r."""
        return len(self.correlations) - len(self.defined)

    @property
    def significant_share(self) -> float:
        """Of the dimensions that vary, the share whose r differs from 0 (`SIGNIFICANCE`)."""
        p = self.p_values[~np.isnan(self.p_values)]
        return float((p < SIGNIFICANCE / len(p)).mean())

    def histogram(self, low: float = -1.0) -> list[int]:
        """Dimensions in each of `NUM_BINS` equal bins of [low, 1], low at most the smallest r."""
        counts, _ = np.histogram(self.defined, bins=NUM_BINS, range=(low, 1.0))
        return [int(count) for count in counts]

    def quantiles(self) -> dict[str, float]:
        """Smallest, 5 %, median and largest r."""
        names = {"min": 0.0, "q05": 0.05, "median": 0.5, "max": 1.0}
        return {name: float(np.quantile(self.defined, at)) for name, at in names.items()}


def latent_correlation(moments: PairedMoments) -> LatentCorrelation:
    """The correlation of each latent dimension.

    Args:
        moments: of z and z', at least 3 images.

    Raises:
        DataError: fewer images, or no dimension that varies.
    """
    if moments.count < 3:
        raise DataError(
            "images of a correlation",
            got=moments.count,
            expected="at least 3",
            remedy="raise --data.test-limit",
        )
    r = moments.correlation()
    if bool(torch.isnan(r).all()):
        raise DataError(
            "latent dimensions",
            got=f"{len(r)}, none of which varies",
            expected="at least one that depends on the image",
            remedy="train the CD-VAE longer, or with a smaller beta: its posterior has collapsed",
        )
    return LatentCorrelation(
        images=moments.count, correlations=r.numpy(), p_values=p_values(r, moments.count)
    )


def p_values(correlations: Tensor, count: int) -> FloatArray:
    """P(|r| this large or larger) of n independent normal pairs, by Student's exact distribution.

    (1 + r) / 2 then follows a beta distribution with both parameters n / 2 - 1.

    Args:
        correlations: r in [-1, 1], or NaN, which stays.
        count: n >= 3.
    """
    r = correlations.double().abs().numpy()
    shape = count / 2 - 1
    values: FloatArray = np.minimum(1.0, 2 * betainc(shape, shape, 0.5 * (1 - r)))
    return values
