"""The defences that the paper compares with: which there are, and what each of them takes."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, replace
from typing import Literal, get_args

from cdvae_ray.config.attack import AttackConfig
from cdvae_ray.config.checks import above, at_least, require

BaselineName = Literal[
    "at-pgd-linf",
    "at-pgd-l2",
    "at-stadv",
    "at-recolor",
    "trades",
    "sat",
    "oia",
    "pat",
    "hgd",
    "ape-gan",
]
BASELINE_NAMES: tuple[BaselineName, ...] = get_args(BaselineName)

_ATTACK = ("epsilon", "num_steps", "step_size")


@dataclass(frozen=True, kw_only=True, slots=True)
class RecipeConfig:
    """Settings of a baseline. None leaves one to the baseline's own default."""

    epsilon: float | None = None
    """Radius of the inner attack in its own measure, > 0; pat: of the perceptual distance."""
    num_steps: int | None = None
    """Gradient steps of the inner attack, >= 1."""
    step_size: float | None = None
    """Length of a step of the inner attack, > 0; pat has a schedule of its own."""
    weight: float | None = None
    """trades, sat: weight of the divergence between answers to x and to x' (6), >= 0."""
    target_momentum: float | None = None
    """sat: share of the old soft labels at each update (0.9), in [0, 1]."""
    target_start: float | None = None
    """sat: share of the epochs after which soft labels are updated, in [0, 1] (0.7, as the authors'
    70 of 100)."""
    validation_images: int | None = None
    """oia: training images held out to choose the epoch (1000), >= 1."""
    width: int | None = None
    """hgd, ape-gan: planes of the purifier's first layer (16, 64), an even number >= 2."""
    pixel_weight: float | None = None
    """ape-gan: weight of the squared error (0.7), >= 0."""
    adversarial_weight: float | None = None
    """ape-gan: weight of the discriminator's answer (0.3), >= 0."""

    def __post_init__(self) -> None:
        for name in ("epsilon", "step_size"):
            if (value := getattr(self, name)) is not None:
                above(f"recipe.{name}", value, 0.0)
        for name, least in (
            ("num_steps", 1),
            ("weight", 0.0),
            ("target_momentum", 0.0),
            ("target_start", 0.0),
            ("validation_images", 1),
            ("width", 2),
            ("pixel_weight", 0.0),
            ("adversarial_weight", 0.0),
        ):
            if (value := getattr(self, name)) is not None:
                at_least(f"recipe.{name}", value, least)
        for name, holds, expected in (
            ("target_momentum", (self.target_momentum or 0.0) <= 1, "a number in [0, 1]"),
            ("target_start", (self.target_start or 0.0) <= 1, "a number in [0, 1]"),
            ("width", (self.width or 2) % 2 == 0, "an even number"),
        ):
            require(
                holds,
                f"recipe.{name}",
                got=getattr(self, name),
                expected=expected,
                remedy=f"set --recipe.{name.replace('_', '-')} to such a number",
            )


@dataclass(frozen=True, kw_only=True, slots=True)
class Baseline:
    """A defence to compare with."""

    label: str
    """What tables call it, as the paper does."""
    source: str
    """Where it comes from."""
    defaults: RecipeConfig
    """What it takes, with its defaults; None: it does not take that."""
    attack: AttackConfig | None
    """Of the inner maximisation, before settings change it; None: it has one of its own."""
    trained_against: str
    """The family of attacks that it has seen, as tables name families."""
    is_purifier: bool = False
    """It goes before a classifier that is trained already."""

    def recipe(self, chosen: RecipeConfig) -> RecipeConfig:
        """The settings with what was chosen.

        Raises:
            ConfigError: a setting that this baseline does not take.
        """
        takes = [
            field.name
            for field in dataclasses.fields(RecipeConfig)
            if getattr(self.defaults, field.name) is not None
        ]
        changes = {
            field.name: value
            for field in dataclasses.fields(RecipeConfig)
            if (value := getattr(chosen, field.name)) is not None
        }
        for name, value in changes.items():
            require(
                name in takes,
                f"recipe.{name}",
                got=value,
                expected=f"no such setting for {self.label}",
                remedy=f"it takes {', '.join(takes)}",
            )
        return replace(self.defaults, **changes)

    def inner_attack(self, recipe: RecipeConfig) -> AttackConfig:
        """The attack with the recipe's settings."""
        assert self.attack is not None
        return replace(self.attack, **{name: getattr(recipe, name) for name in _ATTACK})


def _attack(
    kind: Literal["pgd", "stadv", "recolor"], norm: Literal["linf", "l2"] | None = None
) -> AttackConfig:
    # A radius and steps only to be valid: the recipe's take their place.
    return AttackConfig(
        attack=kind, label="inner attack", epsilon=1.0, num_steps=1, norm=norm, keep="last"
    )


_LINF = RecipeConfig(epsilon=8 / 255, num_steps=10, step_size=2 / 255)
_MADRY = "Madry et al. (2018)"

BASELINES: dict[BaselineName, Baseline] = {
    "at-pgd-linf": Baseline(
        label="AT PGD-Linf",
        source=_MADRY,
        defaults=_LINF,
        attack=_attack("pgd", "linf"),
        trained_against="linf",
    ),
    "at-pgd-l2": Baseline(
        label="AT PGD-L2",
        source=_MADRY,
        defaults=RecipeConfig(epsilon=1.0, num_steps=10, step_size=0.25),
        attack=_attack("pgd", "l2"),
        trained_against="l2",
    ),
    "at-stadv": Baseline(
        label="AT StAdv",
        source="Xiao et al. (2018), as trained against by Laidlaw et al. (2021)",
        defaults=RecipeConfig(epsilon=0.05, num_steps=10, step_size=0.01),
        attack=_attack("stadv"),
        trained_against="stadv",
    ),
    "at-recolor": Baseline(
        label="AT ReColorAdv",
        source="Laidlaw and Feizi (2019)",
        defaults=RecipeConfig(epsilon=0.06, num_steps=10, step_size=0.012),
        attack=_attack("recolor"),
        trained_against="recolor",
    ),
    "trades": Baseline(
        label="TRADES",
        source="Zhang et al. (2019)",
        defaults=replace(_LINF, weight=6.0),
        attack=_attack("pgd", "linf"),
        trained_against="linf",
    ),
    "sat": Baseline(
        label="SAT",
        source="self-adaptive training, Huang et al. (2020)",
        defaults=replace(_LINF, weight=6.0, target_momentum=0.9, target_start=0.7),
        attack=_attack("pgd", "linf"),
        trained_against="linf",
    ),
    "oia": Baseline(
        label="OIA",
        source="early-stopped adversarial training, Rice et al. (2020)",
        defaults=replace(_LINF, validation_images=1000),
        attack=_attack("pgd", "linf"),
        trained_against="linf",
    ),
    "pat": Baseline(
        label="PAT",
        source="perceptual adversarial training, Laidlaw et al. (2021)",
        defaults=RecipeConfig(epsilon=0.5, num_steps=10),
        attack=None,
        trained_against="perceptual",
    ),
    "hgd": Baseline(
        label="HGD",
        source="Liao et al. (2018)",
        defaults=replace(_LINF, width=16),
        attack=_attack("pgd", "linf"),
        trained_against="linf",
        is_purifier=True,
    ),
    "ape-gan": Baseline(
        label="APE-GAN",
        source="Shen et al. (2017)",
        defaults=replace(_LINF, width=64, pixel_weight=0.7, adversarial_weight=0.3),
        attack=_attack("pgd", "linf"),
        trained_against="linf",
        is_purifier=True,
    ),
}


def baseline(name: str) -> Baseline:
    """The baseline of a name.

    Raises:
        ConfigError: there is none.
    """
    require(
        name in BASELINES,
        "baseline",
        got=repr(name),
        expected=f"one of {', '.join(BASELINES)}",
        remedy="set --baseline to one of them; Normal is trained by "
        "jobs/train_classifier.py --input images, ours by jobs/finetune_adversarial.py",
    )
    return BASELINES[name]  # type: ignore[index]
