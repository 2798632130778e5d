"""jobs/tune_margin.py, but each epoch reports the margin as its accuracy: who is stopped is known.

Of a few epochs on a few hundred images, accuracies are too close for a scheduler to be certain.
"""

from unittest.mock import patch

from cdvae_ray.cli import run_job
from cdvae_ray.runtime import tune
from cdvae_ray.runtime.search_trials import MarginSearch
from jobs.tune_margin import main


class RankedMarginSearch(MarginSearch):
    def trial(self, value, tracking, on_epoch):
        def ranked(report):
            on_epoch(report._replace(metrics={**report.metrics, "train_accuracy": value}))

        return super().trial(value, tracking, ranked)


if __name__ == "__main__":
    with patch.object(tune, "MarginSearch", RankedMarginSearch):
        run_job(main)
