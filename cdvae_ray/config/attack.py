"""One attack with its settings, and the named suites of the paper's tables."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import Literal

from cdvae_ray.config.checks import above, at_least, require
from cdvae_ray.errors import ConfigError

AttackKind = Literal[
    "fgsm",
    "bim",
    "pgd",
    "margin_pgd",
    "carlini_wagner_l2",
    "stadv",
    "recolor",
    "jpeg",
    "auto_attack",
]
ThreatModelName = Literal["classifier", "class-essential", "class-redundant", "defense"]
SuiteName = Literal["smoke", "quick", "detection", "grey-box", "white-box", "white-box-pgd"]

_CLIMBS = ("num_steps", "step_size", "keep", "drop_fooled")
TAKES: dict[AttackKind, tuple[str, ...]] = {
    "fgsm": ("epsilon", "keep", "drop_fooled", "sign_of_zero"),
    "bim": ("epsilon", *_CLIMBS),
    "pgd": ("epsilon", *_CLIMBS, "norm", "num_restarts"),
    "margin_pgd": ("epsilon", *_CLIMBS, "norm", "num_restarts", "confidence"),
    "carlini_wagner_l2": ("epsilon", "num_steps", "step_size", "confidence", "num_searches"),
    "stadv": ("epsilon", *_CLIMBS),
    "recolor": ("epsilon", *_CLIMBS),
    "jpeg": ("epsilon", *_CLIMBS),
    "auto_attack": ("epsilon", "norm", "version"),
}
"""The settings that each attack takes; the others must be left at None."""
_OTHER_MEASURES: dict[AttackKind, str] = {
    "stadv": "flow, grid units",
    "recolor": "color shift, grid units",
    "jpeg": "DCT coefficients, quantisation steps",
}
"""Of the attacks that no norm ball in pixel space bounds."""


@dataclass(frozen=True, kw_only=True, slots=True)
class AttackConfig:
    """An attack with its settings. None leaves a setting to the attack's own default."""

    attack: AttackKind
    """Which attack: a function of cdvae_ray.attacks."""
    label: str
    """What tables call it."""
    epsilon: float | None = None
    """Radius in the attack's own measure: pixel units for norm balls, sampling-grid units for
    StAdv, color-grid units for ReColorAdv, quantisation steps for JPEG. Only C&W-L2 needs none."""
    num_steps: int | None = None
    """Gradient steps."""
    step_size: float | None = None
    """Length of a step; None: epsilon / sqrt(num_steps), or the attack's own rate."""
    norm: Literal["linf", "l2"] | None = None
    """Norm of the ball."""
    keep: Literal["best", "last"] | None = None
    """Which iterate to return."""
    drop_fooled: bool | None = None
    """Stop an image at its first iterate that fools."""
    confidence: float | None = None
    """kappa of the margin loss; None: no bound (C&W-L2: 0)."""
    sign_of_zero: Literal[0, 1] | None = None
    """FGSM: where to move a pixel of zero gradient."""
    num_restarts: int | None = None
    """Random starts."""
    num_searches: int | None = None
    """C&W-L2: steps of the search for its constant."""
    version: Literal["standard", "rand", "square"] | None = None
    """AutoAttack: standard, rand for stochastic models, or its black-box part square alone."""

    def __post_init__(self) -> None:
        require(
            self.attack in TAKES,
            "attack",
            got=repr(self.attack),
            expected=f"one of {', '.join(TAKES)}",
            remedy="name one of them",
        )
        require(
            bool(self.label), "label", got="nothing", expected="a name", remedy="name the attack"
        )
        for field in dataclasses.fields(self):
            name, value = field.name, getattr(self, field.name)
            if name not in ("attack", "label") and value is not None:
                require(
                    name in TAKES[self.attack],
                    f"{self.label}.{name}",
                    got=value,
                    expected=f"no such setting for {self.attack}",
                    remedy=f"it takes {', '.join(TAKES[self.attack])}",
                )
        if self.attack != "carlini_wagner_l2":
            require(
                self.epsilon is not None,
                f"{self.label}.epsilon",
                got="nothing",
                expected="a number > 0",
                remedy="set it",
            )
        for name in ("epsilon", "step_size"):
            if (value := getattr(self, name)) is not None:
                above(f"{self.label}.{name}", value, 0.0)
        for name in ("num_steps", "num_restarts", "num_searches"):
            if (value := getattr(self, name)) is not None:
                at_least(f"{self.label}.{name}", value, 1)
        needs_steps = "num_steps" in TAKES[self.attack]
        require(
            not needs_steps or self.num_steps is not None,
            f"{self.label}.num_steps",
            got="nothing",
            expected="a number >= 1",
            remedy="set it",
        )
        if self.confidence is not None:
            at_least(f"{self.label}.confidence", self.confidence, 0.0)

    @property
    def tells_of_gradients(self) -> bool:
        """Whether it counts gradients of zero and such as are not finite: AutoAttack's package
        does not."""
        return self.attack != "auto_attack"

    def without_dropping(self) -> AttackConfig:
        """The same attack, which goes on with images that one look finds fooled."""
        if "drop_fooled" not in TAKES[self.attack] or self.drop_fooled is not None:
            return self
        return dataclasses.replace(self, drop_fooled=False)

    @property
    def measure(self) -> str:
        """What epsilon and the perturbation's norm are measured in."""
        if self.ball is not None:
            return "L2, pixels" if self.ball == "l2" else "L-inf, pixels"
        return _OTHER_MEASURES[self.attack]

    @property
    def ball(self) -> Literal["linf", "l2"] | None:
        """The norm that bounds pixels; None for attacks that are not bounded in pixels."""
        if self.attack in ("fgsm", "bim"):
            return "linf"
        if self.attack == "carlini_wagner_l2":
            return "l2"
        if self.attack in _OTHER_MEASURES:
            return None
        return self.norm or "linf"

    @property
    def gives_back_resisting(self) -> bool:
        """Whether it returns an image unchanged that it does not fool, however hard it tried."""
        return self.attack in ("auto_attack", "carlini_wagner_l2")

    @property
    def family(self) -> str:
        """Attacks that a defence trained against one of them has seen: a ball, or a kind."""
        return self.ball or self.attack

    @property
    def is_iterative_climb(self) -> bool:
        """Whether more steps make it stronger: what the checks of strength need."""
        return "keep" in TAKES[self.attack] and self.attack != "fgsm"

    def describe(self) -> str:
        """One line for tables and footnotes, as in "PGD L-inf: eps 8/255, 10 steps, last"."""
        parts = []
        if self.epsilon is not None:
            parts.append(f"eps {_length(self.epsilon)} ({self.measure})")
        if self.num_steps is not None:
            parts.append(f"{self.num_steps} steps")
        if self.step_size is not None:
            parts.append(f"step {_length(self.step_size)}")
        if self.confidence is not None:
            parts.append(f"kappa {self.confidence:g}")
        if self.num_restarts is not None:
            parts.append(f"{self.num_restarts} starts")
        if self.num_searches is not None:
            parts.append(f"{self.num_searches} searches")
        if self.version is not None:
            parts.append(self.version)
        if "keep" in TAKES[self.attack]:
            kept = self.keep or ("last" if self.attack == "fgsm" else "best")
            parts.append(f"{kept} iterate")
        return f"{self.label}: {', '.join(parts)}"


def _length(value: float) -> str:
    """A pixel length as n/255 where it is one."""
    of_255 = value * 255
    is_fraction = value < 0.5 and math.isclose(of_255, round(of_255), abs_tol=1e-6)
    return f"{round(of_255)}/255" if is_fraction and round(of_255) >= 1 else f"{value:.4g}"


@dataclass(frozen=True, kw_only=True, slots=True)
class Suite:
    """Attacks that belong together, and whether their numbers claim robustness."""

    summary: str
    attacks: tuple[AttackConfig, ...]
    claims_robustness: bool
    """True: the checks of strength (more steps, more starts) apply. False: the set is what it is
    defined to be, for a detector or a transfer to be tested on, and nothing more is claimed."""

    def labels(self) -> tuple[str, ...]:
        """What tables call the attacks."""
        return tuple(each.label for each in self.attacks)

    def choose(self, labels: tuple[str, ...]) -> tuple[AttackConfig, ...]:
        """The attacks of these labels, in the suite's order; all of them if there are none.

        Raises:
            ConfigError: a label that the suite has not.
        """
        unknown = [label for label in labels if label not in self.labels()]
        if unknown:
            raise ConfigError(
                "attacks",
                got=", ".join(unknown),
                expected=f"some of {', '.join(self.labels())}",
                remedy="choose among the suite's attacks, or another preset",
            )
        return tuple(each for each in self.attacks if not labels or each.label in labels)


_LINF, _L2, _FLOW = 8 / 255, 1.0, 0.05

SUITES: dict[SuiteName, Suite] = {
    "smoke": Suite(
        summary="two attacks of few steps: seconds, for tests",
        attacks=(
            AttackConfig(attack="fgsm", label="FGSM", epsilon=_LINF),
            AttackConfig(attack="pgd", label="PGD-Linf", epsilon=_LINF, num_steps=3),
        ),
        claims_robustness=False,
    ),
    "quick": Suite(
        summary="a first look: one attack of each family, 20 steps",
        attacks=(
            AttackConfig(attack="fgsm", label="FGSM", epsilon=_LINF),
            AttackConfig(attack="pgd", label="PGD-Linf", epsilon=_LINF, num_steps=20),
            AttackConfig(attack="pgd", label="PGD-L2", epsilon=_L2, num_steps=20, norm="l2"),
            AttackConfig(attack="margin_pgd", label="C&W-Linf", epsilon=_LINF, num_steps=20),
            AttackConfig(attack="stadv", label="StAdv", epsilon=_FLOW, num_steps=20),
        ),
        claims_robustness=True,
    ),
    "detection": Suite(
        summary="Tables 4 and 5: 5 steps of eps / sqrt(5), last iterate",
        attacks=(
            AttackConfig(attack="fgsm", label="FGSM", epsilon=_LINF, sign_of_zero=1),
            AttackConfig(attack="bim", label="BIM", epsilon=_LINF, num_steps=5, keep="last"),
            AttackConfig(
                attack="margin_pgd",
                label="C&W",
                epsilon=_LINF,
                num_steps=5,
                confidence=1000.0,
                keep="last",
            ),
            AttackConfig(attack="pgd", label="PGD-Linf", epsilon=_LINF, num_steps=5, keep="last"),
            AttackConfig(
                attack="pgd", label="PGD-L2", epsilon=_L2, num_steps=5, norm="l2", keep="last"
            ),
        ),
        claims_robustness=False,
    ),
    "grey-box": Suite(
        summary="Table 6: 100 iterations against the plain classifier, for a transfer",
        attacks=(
            AttackConfig(attack="pgd", label="PGD-Linf", epsilon=_LINF, num_steps=100, keep="last"),
            AttackConfig(
                attack="pgd", label="PGD-L2", epsilon=_L2, num_steps=100, norm="l2", keep="last"
            ),
            AttackConfig(
                attack="margin_pgd", label="C&W-Linf", epsilon=_LINF, num_steps=100, keep="last"
            ),
            AttackConfig(
                attack="margin_pgd",
                label="C&W-L2",
                epsilon=_L2,
                num_steps=100,
                norm="l2",
                keep="last",
            ),
            AttackConfig(attack="stadv", label="StAdv", epsilon=_FLOW, num_steps=100, keep="last"),
        ),
        claims_robustness=False,
    ),
    "white-box-pgd": Suite(
        summary="the balls of Table 6 against a whole defence: what is left when nothing transfers",
        attacks=(
            AttackConfig(attack="pgd", label="PGD-Linf", epsilon=_LINF, num_steps=100),
            AttackConfig(attack="pgd", label="PGD-L2", epsilon=_L2, num_steps=100, norm="l2"),
            AttackConfig(attack="margin_pgd", label="C&W-Linf", epsilon=_LINF, num_steps=100),
        ),
        claims_robustness=True,
    ),
    "white-box": Suite(
        summary="Table 7: AutoAttack in both norms, JPEG, StAdv, ReColorAdv, 100 iterations",
        attacks=(
            AttackConfig(attack="auto_attack", label="AutoAttack-Linf", epsilon=_LINF, norm="linf"),
            AttackConfig(attack="auto_attack", label="AutoAttack-L2", epsilon=_L2, norm="l2"),
            AttackConfig(attack="jpeg", label="JPEG", epsilon=0.125, num_steps=100),
            AttackConfig(attack="stadv", label="StAdv", epsilon=_FLOW, num_steps=100),
            AttackConfig(attack="recolor", label="ReColorAdv", epsilon=0.06, num_steps=100),
        ),
        claims_robustness=True,
    ),
}
