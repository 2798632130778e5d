"""What the training jobs of defences share: how a defence is evaluated, shown and tracked."""

from __future__ import annotations

import functools
from typing import Any

from cdvae_ray.config.baseline_job import BaselineJobConfig
from cdvae_ray.config.finetune_job import FinetuneJobConfig, defense_evaluation_identity
from cdvae_ray.data.images import ImageSet
from cdvae_ray.evaluation.after_training import Evaluate, FinalNumbers, evaluate_defense_task
from cdvae_ray.evaluation.results import TableRow, defense_table
from cdvae_ray.runtime.training_job import TrainingJob


class DefenseJob(TrainingJob):
    """A training job whose model is a defence: clean accuracy, and a look at its robustness.

    Args:
        name: the job's name, as in jobs/<name>.py.
        config: its settings.
    """

    def __init__(self, name: str, config: BaselineJobConfig | FinetuneJobConfig) -> None:
        super().__init__(name, config)
        self._evaluation = config.evaluation

    def evaluation_identity(self, *, training_digest: str, test_digest: str) -> dict[str, Any]:
        """All that determines the numbers after training."""
        return defense_evaluation_identity(
            self._evaluation, training_digest=training_digest, test_digest=test_digest
        )

    def evaluate(self) -> Evaluate:
        """Clean accuracy, and accuracy under a short white-box PGD."""
        return functools.partial(evaluate_defense_task, config=self._evaluation)

    def table(self, numbers: FinalNumbers, test: ImageSet) -> list[TableRow]:
        """Both accuracies."""
        return defense_table(
            numbers.metrics,
            self._evaluation,
            test_images=numbers.test_images,
            attacked=numbers.attacked_images,
        )
