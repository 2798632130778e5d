"""Which adversarial examples fine-tuning learns from, and what it asks of them: Eqs. (8)-(10)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from cdvae_ray.config.checks import at_least, require


@dataclass(frozen=True, kw_only=True, slots=True)
class AdversarialObjectiveConfig:
    """Eq. (8): E over the examples within the margin of L_G + gamma L_D.

    The defaults are the paper's text; each other value is the released code's.
    """

    margin: float = 0.0
    """c of Eq. (8): an example counts if its true class leads every other by at most this. In
    [-1, 1] on probabilities; on logits any finite number (released: 8, in its README 20)."""
    margin_on: Literal["probabilities", "logits"] = "probabilities"
    """What the margin is a difference of."""
    gamma: float = 0.1
    """Weight of L_D, Eq. (8): >= 0. The released code weighs both of its losses by 0.1."""
    beta: float = 0.01
    """Weight of the KL divergence, Eq. (9): >= 0."""
    reconstruction_target: Literal["adversarial", "clean"] = "adversarial"
    """What G(x') is to reconstruct, Eq. (9): x' itself, or x (released)."""
    essential_class: Literal["most_probable_wrong", "most_probable"] = "most_probable_wrong"
    """The class that D(R(x')) is to answer, Eq. (10): the most probable wrong class of D_G(G(x')),
    or its most probable one, which may be the true one (released)."""
    essential_examples: Literal["within_margin", "all"] = "within_margin"
    """Which examples L_G and D's part of L_D take: those of Eq. (8), or all (released)."""

    def __post_init__(self) -> None:
        low, high = (-1.0, 1.0) if self.margin_on == "probabilities" else (-1e9, 1e9)
        require(
            low <= self.margin <= high,
            "adversarial.margin",
            got=self.margin,
            expected=f"a number in [{low:g}, {high:g}] on {self.margin_on}",
            remedy="set --adversarial.margin, or --adversarial.margin-on logits",
        )
        at_least("adversarial.gamma", self.gamma, 0.0)
        at_least("adversarial.beta", self.beta, 0.0)
