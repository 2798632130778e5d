"""The searches of jobs/tune_*.py: their settings made to hold everywhere, then searched."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Literal

from cdvae_ray.config.search_job import MarginSearchConfig, ObjectiveSearchConfig, SearchConfig
from cdvae_ray.config.search_space import SearchSpace, read_space
from cdvae_ray.errors import ConfigError
from cdvae_ray.runtime.search import SearchOutcome, everywhere, lasting, search
from cdvae_ray.runtime.search_trials import MarginSearch, ObjectiveSearch
from cdvae_ray.runtime.tracked import require_lasting_places
from cdvae_ray.runtime.training_job import Say


def tune_objective(
    config: ObjectiveSearchConfig,
    *,
    parameter: Literal["gamma", "beta"],
    space: Path,
    preset: str,
    say: Say,
) -> SearchOutcome:
    """Runs on the driver. Searches gamma or beta.

    Args:
        config: the job.
        parameter: which of them.
        space: the job's own space, where the config names none.
        preset: the name it was started from, for people.
        say: takes lines of progress.

    Raises:
        CdvaeError: anything that a person can put right, one line each; no trial finished.
    """
    config.require_parts()
    require_lasting_places(config.storage, config.tracking)
    found = _space(config, space, parameter)
    # Unknown presets and settings that no objective has are found before a cluster is asked.
    for value in found.values:
        config.redundant_job(f"of {config.cdvae_job(parameter, value).objective}")
    settled = replace(config, **lasting(config))
    return search(ObjectiveSearch(f"tune_{parameter}", settled, found), preset=preset, say=say)


def tune_margin(config: MarginSearchConfig, *, space: Path, preset: str, say: Say) -> SearchOutcome:
    """Runs on the driver. Searches the margin c.

    Args, Raises: as `tune_objective`.
    """
    config.require_parts()
    require_lasting_places(config.storage, config.tracking)
    found = _space(config, space, "margin")
    for value in found.values:
        config.finetune_job(value)
    settled = replace(config, cdvae=everywhere(config.cdvae), **lasting(config))
    return search(MarginSearch("tune_margin", settled, found), preset=preset, say=say)


def _space(config: SearchConfig, own: Path, parameter: str) -> SearchSpace:
    path = config.space or own
    space = read_space(path)
    if space.parameter != parameter:
        raise ConfigError(
            f"space {path}",
            got=f"one of {space.parameter}",
            expected=f"one of {parameter}",
            remedy=f"choose another file, or run jobs/tune_{space.parameter}.py",
        )
    return space
