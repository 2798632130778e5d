"""Makes Parquet shards of images: python jobs/prepare_data.py [preset] --path ... --out ..."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import Any

from cdvae_ray.cli import parse, run_job, say, write_summary
from cdvae_ray.config.prepare_job import PREPARE_PRESETS, PrepareConfig, prepare_preset
from cdvae_ray.evaluation.layout import aligned_table


def main() -> None:
    """Parses the command line, makes the shards, prints what is in them."""
    _, config = parse(
        PrepareConfig,
        sys.argv[1:],
        job="jobs/prepare_data.py",
        presets={key: (each.summary, each.config) for key, each in PREPARE_PRESETS.items()},
        default_preset="restricted-imagenet",
        choose=prepare_preset,
    )
    # PyTorch takes seconds to import, which the help does not owe.
    from cdvae_ray.storage.prepared_images import prepare_images

    prepared = prepare_images(config, say=say)
    say(f"\n{_counts_table(prepared.facts['splits'])}")
    say(f"\n  shards: {prepared.folder}\n  to read them: --data.source parquet --data.path <there>")
    if config.summary is not None:
        write_summary(
            config.summary,
            job="prepare_data",
            run_id=None,
            checkpoint="",
            config_digest=prepared.config_digest,
            metrics=prepared.metrics,
        )


def _counts_table(splits: Mapping[str, Mapping[str, Any]]) -> str:
    header = ("split", "images", "classes", "images a class", "left out", "shards", "MB")
    lines = []
    for split, facts in splits.items():
        by_class = [count for count in facts["classes"].values() if count]
        skipped = facts["skipped"]
        lines.append(
            (
                split,
                f"{facts['images']:,}",
                f"{len(by_class)}",
                f"{min(by_class):,} to {max(by_class):,}",
                f"{skipped['undecodable'] + skipped['too_small']:,}",
                f"{facts['shards']}",
                f"{facts['bytes'] / 1e6:,.1f}",
            )
        )
    return aligned_table(header, lines)


if __name__ == "__main__":
    run_job(main)
