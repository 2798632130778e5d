"""How detectors are fitted, tested and attacked."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from cdvae_ray.config.checks import above, at_least, require

Protocol = Literal["strict", "reference"]
"""Who is trained, chosen and tested on which images: ours, and that of the published codes."""
AdaptiveStrategy = Literal["orthogonal", "selective", "joint"]
STRATEGIES: tuple[AdaptiveStrategy, ...] = ("orthogonal", "selective", "joint")

REFERENCE_BANDWIDTH = 0.26
"""h of Feinman et al. (2017) for CIFAR-10."""
REFERENCE_NEIGHBOURS = tuple(range(10, 91, 10))
"""k of Lee et al. (2018)."""
REFERENCE_BATCH = 100
"""Images a minibatch of the references' LID."""
REFERENCE_STD = (0.2023, 0.1994, 0.2010)
"""What the released code divides the step of Mahalanobis' input by, in normalised units, though
its images are normalised by other deviations."""


@dataclass(frozen=True, kw_only=True, slots=True)
class DetectorsConfig:
    """The settings of kernel density, local dimensionality and Mahalanobis distance."""

    magnitudes: tuple[float, ...] = (0.0, 0.0005, 0.001, 0.0014, 0.002, 0.005, 0.01)
    """MD: steps m of the images, in normalised units, of which the selection part chooses; 0 first.
    Each m above 0 costs a forward pass a layer; 0 alone costs nothing."""
    num_neighbours: tuple[int, ...] = (20, 10, 30, 40, 50, 60, 70, 80, 90)
    """LID: numbers k of neighbours, of which the selection part chooses; attack-free takes the
    first."""
    lid_references: int = 10_000
    """LID: training images that all images are compared with (fewer if there are fewer)."""
    density_layer: Literal["penultimate", "layer3"] = "penultimate"
    """KD: which features; penultimate is what the linear layer sees."""
    bandwidths: tuple[float, ...] = (
        *(0.02, 0.03, 0.05, 0.07, 0.1, 0.14, 0.2, 0.28, 0.4, 0.57, 0.8, 1.13, 1.6, 2.26),
    )
    """KD: bandwidths h, in units of the features, of which clean training images held out choose.
    The reference protocol takes 0.26."""

    def __post_init__(self) -> None:
        require(
            self.magnitudes[:1] == (0.0,) and len(set(self.magnitudes)) == len(self.magnitudes),
            "detectors.magnitudes",
            got=self.magnitudes,
            expected="different numbers, 0 first",
            remedy="set --detectors.magnitudes to such as 0 0.0005 0.001",
        )
        for magnitude in self.magnitudes:
            at_least("detectors.magnitudes", magnitude, 0.0)
        require(
            len(self.num_neighbours) > 0
            and len(set(self.num_neighbours)) == len(self.num_neighbours),
            "detectors.num_neighbours",
            got=self.num_neighbours,
            expected="at least one number, each once",
            remedy="set --detectors.num-neighbours to such as 20 10 50",
        )
        for k in self.num_neighbours:
            at_least("detectors.num_neighbours", k, 2)
        at_least("detectors.lid_references", self.lid_references, max(self.num_neighbours))
        require(
            len(self.bandwidths) > 0,
            "detectors.bandwidths",
            got="none",
            expected="at least one number > 0",
            remedy="set --detectors.bandwidths to such as 0.1 0.2 0.4",
        )
        for bandwidth in self.bandwidths:
            above("detectors.bandwidths", bandwidth, 0.0)


@dataclass(frozen=True, kw_only=True, slots=True)
class AdaptiveConfig:
    """Attacks that know the detector: D and the detector fooled at once."""

    num_images: int = 500
    """Images of the test part, the first ones; 0 turns the adaptive attacks off."""
    num_steps: int = 100
    """Gradient steps."""
    epsilon: float = 8 / 255
    """L-infinity radius, in pixel units [0, 1]."""
    strategies: tuple[AdaptiveStrategy, ...] = STRATEGIES
    """orthogonal and selective (Bryniarski et al., 2022), and the joint loss."""
    step_scales: tuple[float, ...] = (1.0, 4.0)
    """Steps to try, each > 0, times 2.5 epsilon / num_steps; an image's best outcome counts. The
    orthogonal and the joint steps need larger ones than PGD's."""

    def __post_init__(self) -> None:
        at_least("adaptive.num_images", self.num_images, 0)
        at_least("adaptive.num_steps", self.num_steps, 1)
        above("adaptive.epsilon", self.epsilon, 0.0)
        require(
            len(self.step_scales) > 0,
            "adaptive.step_scales",
            got="none",
            expected="at least one number > 0",
            remedy="set --adaptive.step-scales to such as 1 4",
        )
        for scale in self.step_scales:
            above("adaptive.step_scales", scale, 0.0)
        unknown = set(self.strategies) - set(STRATEGIES)
        require(
            bool(self.strategies) and not unknown,
            "adaptive.strategies",
            got=", ".join(self.strategies) or "none",
            expected=f"some of {', '.join(STRATEGIES)}",
            remedy="set --adaptive.strategies, or --adaptive.num-images 0 for no adaptive attack",
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class SplitSettings:
    """The parts of the strict protocol; what train and selection leave is the test part."""

    seed: int = 0
    """Decides each image's part, together with its id: >= 0."""
    train_fraction: float = 0.2
    """Share of the images that the combination of layers is fitted on, in (0, 1)."""
    selection_fraction: float = 0.2
    """Share that chooses a detector's setting and its threshold, in (0, 1)."""

    def __post_init__(self) -> None:
        at_least("split.seed", self.seed, 0)
        fractions = (self.train_fraction, self.selection_fraction)
        require(
            min(fractions) > 0 and sum(fractions) < 1,
            "fractions of the images to train and select on",
            got=" and ".join(f"{each:g}" for each in fractions),
            expected="both above 0, together below 1",
            remedy="pass 0.2 and 0.2",
        )
