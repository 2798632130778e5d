"""Everything that `jobs/compare_seeds.py` takes."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from cdvae_ray.config.checks import require
from cdvae_ray.config.presets import Preset, chosen
from cdvae_ray.config.tracking import TrackingConfig


@dataclass(frozen=True, kw_only=True, slots=True)
class SeedsConfig:
    """Lays reproductions of several seeds side by side: every number, its mean, its interval."""

    reports: tuple[str, ...] = ()
    """Reports of `jobs/reproduce.py` (folders runs/reproductions/report-...), also in object
    storage: at least two, of the same settings and different seeds."""
    tracking: TrackingConfig = field(default_factory=TrackingConfig)
    """MLflow."""
    storage: str = "./runs"
    """Root of everything that jobs store: a folder, or an object-storage URI such as s3://..."""
    summary: Path | None = None
    """Write the final numbers to this JSON file."""

    def __post_init__(self) -> None:
        require(
            len(set(self.reports)) == len(self.reports) != 1,
            "reports",
            got=" ".join(self.reports),
            expected="two different ones or more",
            remedy="set --reports to the folders of several reproductions",
        )
        require(
            bool(self.storage),
            "storage",
            got="nothing",
            expected="a folder or an object-storage URI",
            remedy="set --storage",
        )


SEEDS_PRESETS: dict[str, Preset[SeedsConfig]] = {
    "default": Preset("whatever --reports names (the only one)", SeedsConfig()),
}


def seeds_preset(name: str) -> SeedsConfig:
    """The config of a preset.

    Raises:
        ConfigError: no preset has that name.
    """
    return chosen(SEEDS_PRESETS, name, job="jobs/compare_seeds.py")
