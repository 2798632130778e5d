"""Reproductions of several seeds side by side: jobs/compare_seeds.py. Starts no cluster."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from cdvae_ray.config.seeds_job import SeedsConfig
from cdvae_ray.config.serialize import digest_of
from cdvae_ray.errors import ConfigError, DataError
from cdvae_ray.evaluation.seed_picture import seed_picture
from cdvae_ray.evaluation.seed_tables import SeedRow, compare_seeds, seed_columns, seed_page
from cdvae_ray.runtime.reproduce import REPORT_KIND as REPRODUCTION_KIND
from cdvae_ray.runtime.reproduce import TABLES
from cdvae_ray.runtime.tracked import embedded_root, ending, require_lasting_places
from cdvae_ray.runtime.training_job import Say
from cdvae_ray.storage.artifact import read_artifact, write_artifact
from cdvae_ray.storage.store import Store, to_json_bytes
from cdvae_ray.tracking import open_writer

REPORT_KIND = "seeds-report"


@dataclass(frozen=True, kw_only=True)
class SeedsOutcome:
    """What a comparison came to."""

    run_id: str | None
    config_digest: str
    metrics: dict[str, float]
    rows: list[SeedRow]
    report: str
    """The folder of the tables, of the page and of the picture."""


@dataclass(frozen=True, kw_only=True)
class _Reproduction:
    """One seed's report."""

    location: str
    seed: int
    facts: dict[str, Any]
    tables: dict[str, Any]

    @property
    def settings(self) -> dict[str, Any]:
        """All that must be the same in reports that are compared."""
        identity = self.facts["identity"]
        return {
            "recipe": identity["recipe"],
            "results": identity["results"],
            "images": self.facts["images"],
        }


def compare(config: SeedsConfig, *, say: Say) -> SeedsOutcome:
    """Reads the reports, compares, stores and tracks.

    Args:
        config: the job.
        say: takes lines of progress.

    Raises:
        CdvaeError: anything that a person can put right, one line each.
    """
    require_lasting_places(config.storage, config.tracking)
    if not config.reports:
        raise ConfigError(
            "reports",
            got="none",
            expected="two or more reports of jobs/reproduce.py",
            remedy="set --reports to their folders",
        )
    found = sorted((_read(location) for location in config.reports), key=lambda each: each.seed)
    _require_alike(found)
    seeds = [each.seed for each in found]
    say(f"seeds: {' '.join(map(str, seeds))}")
    rows = compare_seeds([each.tables for each in found])
    identity = {
        "kind": REPORT_KIND,
        "reports": {str(each.seed): each.facts["digest"] for each in found},
    }
    digest = digest_of(identity)
    preset = found[0].facts["preset"]
    writer = open_writer(
        config.tracking,
        embedded_root=embedded_root(config.storage),
        run_name=f"seeds-{preset}-{digest[:12]}",
        tags={"job": "compare_seeds", "preset": preset, "config_digest": digest},
    )
    with ending(writer):
        writer.log_config({"preset": preset, "seeds": seeds, "reports": list(config.reports)})
        columns = seed_columns(rows)
        page = seed_page(rows, seeds=seeds, facts=_said(found, digest))
        picture = seed_picture(rows, caption=f"{preset}; {len(seeds)} seeds, a point each")
        root, name = Store.at(config.storage).child("seeds"), f"report-{digest[:12]}"
        write_artifact(
            root,
            name,
            kind=REPORT_KIND,
            files={
                "seeds.json": to_json_bytes(columns),
                "report.md": page.encode(),
                "seeds.png": picture,
            },
            facts={
                "digest": digest,
                "identity": identity,
                "settings": found[0].settings,
                "made_by": {str(each.seed): each.facts["made_by"] for each in found},
            },
        )
        metrics = {"seeds": float(len(seeds)), "numbers": float(len(rows))}
        writer.log_metrics(metrics, step=0)
        writer.log_table(columns, "tables/seeds.json")
        writer.log_text(page, "report.md")
        writer.log_image(picture, "figures/seeds.png")
        return SeedsOutcome(
            run_id=writer.run_id(timeout_seconds=15),
            config_digest=digest,
            metrics=metrics,
            rows=rows,
            report=root.location(name),
        )


def _read(location: str) -> _Reproduction:
    root, name = Store.at(location).parent()
    artifact = read_artifact(root, name, kind=REPRODUCTION_KIND, only=(TABLES,))
    seed = artifact.facts.get("seed")
    if seed is None:
        raise DataError(
            f"the seed of {location}",
            got="none: its presets' own, which may differ from step to step",
            expected="one seed of every training, attack and interval",
            remedy="reproduce it with --seed",
        )
    return _Reproduction(
        location=location,
        seed=seed,
        facts=artifact.facts,
        tables=json.loads(artifact.files[TABLES]),
    )


def _require_alike(found: Sequence[_Reproduction]) -> None:
    """Refuses what cannot be averaged."""
    first = found[0]
    for one, other in pairwise(found):
        if one.seed == other.seed:
            raise DataError(
                "reports",
                got=f"two of seed {one.seed}: {one.location} and {other.location}",
                expected="different seeds",
                remedy="leave one of them out",
            )
    for other in found[1:]:
        different = [key for key, value in first.settings.items() if other.settings[key] != value]
        if different:
            raise DataError(
                f"{' and '.join(different)} of {other.location}",
                got=f"others than those of {first.location}",
                expected="reports that differ in their seed alone",
                remedy="compare reproductions of one command",
            )


def _said(found: Sequence[_Reproduction], digest: str) -> dict[str, str]:
    first = found[0].facts
    commits = dict.fromkeys(each.facts["made_by"]["commit"] for each in found)
    images = first["images"]
    limits = [
        f"{limit:,} {which}"
        for which in ("train", "test")
        if (limit := images[f"{which}_limit"]) is not None
    ]
    return {
        "preset": first["preset"],
        "seeds": " ".join(str(each.seed) for each in found),
        "images": f"{images['source']}, {images['image_size']} x {images['image_size']}"
        + (f", at most {' and '.join(limits)}" if limits else ""),
        "results": ", ".join(first["identity"]["results"]),
        "made by commit": ", ".join(commits),
        "report": digest[:12],
    }
