"""What a search varies and what it wants: the files of tune_spaces/."""

from __future__ import annotations

import dataclasses
import math
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args

from cdvae_ray.config.checks import at_least, require
from cdvae_ray.errors import ConfigError

SearchParameter = Literal["gamma", "beta", "margin"]
Mode = Literal["max", "min"]

OBJECTIVE_METRICS = (
    "class_essential_accuracy",
    "reconstruction_accuracy",
    "detection_auroc_kd",
    "detection_auroc_lid",
    "detection_auroc_md",
    "detection_auroc_kd_essential",
    "detection_auroc_lid_essential",
    "detection_auroc_md_essential",
    "redundant_accuracy",
    "defense_accuracy",
)
"""Of a trial of gamma or beta. detection_auroc_*: a detector on R(x), of attacks on D(x), or of
those on D(R(x)) (essential). redundant_accuracy: D_G(G(x)). defense_accuracy: D_G(G(x')) grey-box,
for x' made against D(x)."""
MARGIN_METRICS = ("accuracy", "attacked_accuracy")
"""Of a trial of the margin: of the whole defence, clean and under white-box PGD."""


@dataclass(frozen=True, kw_only=True, slots=True)
class SearchSpace:
    """One parameter, its values, and what is wanted of them."""

    parameter: SearchParameter
    """What is varied."""
    values: tuple[float, ...]
    """The grid, each once."""
    low: float
    """Of a sampled search."""
    high: float
    log: bool = False
    """Sample log-uniformly."""
    num_samples: int = 8
    """Trials of a sampled search, in all."""
    metrics: Mapping[str, Mode] = field(default_factory=dict)
    """What the Pareto front is over."""
    paper: str = ""
    """What the paper says to expect."""

    def __post_init__(self) -> None:
        require(
            self.parameter in get_args(SearchParameter),
            "parameter",
            got=repr(self.parameter),
            expected=f"one of {', '.join(get_args(SearchParameter))}",
            remedy="name one of them",
        )
        numbers = (*self.values, self.low, self.high)
        require(
            all(isinstance(each, int | float) and math.isfinite(each) for each in numbers),
            "values, low, high",
            got=numbers,
            expected="finite numbers",
            remedy="correct the space",
        )
        require(
            bool(self.values) and len(set(self.values)) == len(self.values),
            "values",
            got=self.values or "none",
            expected="at least one, each once",
            remedy="correct the space",
        )
        require(
            self.low < self.high and (not self.log or self.low > 0),
            "low, high",
            got=f"{self.low} and {self.high}{', log' if self.log else ''}",
            expected=f"low below high{', both above 0' if self.log else ''}",
            remedy="correct the space",
        )
        at_least("num_samples", self.num_samples, 1)
        known = MARGIN_METRICS if self.parameter == "margin" else OBJECTIVE_METRICS
        require(
            bool(self.metrics) and set(self.metrics) <= set(known),
            "metrics",
            got=", ".join(self.metrics) or "none",
            expected=f"some of {', '.join(known)}",
            remedy="correct the space",
        )
        require(
            set(self.metrics.values()) <= {"max", "min"},
            "metrics",
            got=", ".join(map(str, self.metrics.values())),
            expected="max or min each",
            remedy="correct the space",
        )


def read_space(path: Path) -> SearchSpace:
    """A space from a TOML file.

    Raises:
        ConfigError: no such file, no TOML, or keys or values that no space has.
    """
    try:
        content: dict[str, Any] = tomllib.loads(path.read_text())
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise _unreadable(path, str(error)) from error
    names = [each.name for each in dataclasses.fields(SearchSpace)]
    unknown = sorted(set(content) - set(names))
    needed = ("parameter", "values", "low", "high", "metrics")
    missing = [name for name in needed if name not in content]
    if unknown or missing:
        raise _unreadable(path, f"unknown keys {unknown or 'none'}, missing {missing or 'none'}")
    if not isinstance(content["values"], list) or not isinstance(content["metrics"], dict):
        raise _unreadable(path, "values that are no list, or metrics that are no table")
    return SearchSpace(**{**content, "values": tuple(content["values"])})


def _unreadable(path: Path, got: str) -> ConfigError:
    return ConfigError(
        f"space {path}",
        got=got,
        expected="a search space as in tune_spaces/README.md",
        remedy="correct --space",
    )
