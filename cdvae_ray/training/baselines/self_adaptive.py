"""Self-adaptive training (Huang et al., 2020), in its robust form: TRADES on soft labels."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F

from cdvae_ray.config.attack import AttackConfig
from cdvae_ray.training.baselines.adversarial import step_loss, train_logits
from cdvae_ray.training.baselines.trades import divergence, most_divergent
from cdvae_ray.training.distributed import all_gather_rows
from cdvae_ray.training.task import Replica, StatefulLoss, StepLoss, TrainBatch


class SelfAdaptiveLoss(StatefulLoss):
    """sum_i w_i (-t_i . log D(x_i)) / sum_i w_i + weight mean_i KL(D(x_i) || D(x'_i)).

    The soft label t_i starts at the label and, from an epoch on, follows the answers:
    t_i <- momentum t_i + (1 - momentum) D(x_i). w_i = max t_i takes images out that the classifier
    cannot agree on. The divergence is averaged without these weights, as in the authors' code.

    Args:
        labels: (N,) int64, of all training images by their ids.
        num_classes: of the classifier.
        attack: radius, steps and step size of the maximisation, L-infinity.
        weight: of the divergence.
        momentum: in [0, 1].
        start_epoch: from 0.
        seed: of the run.
    """

    def __init__(
        self,
        labels: Tensor,
        num_classes: int,
        *,
        attack: AttackConfig,
        weight: float,
        momentum: float,
        start_epoch: int,
        seed: int,
    ) -> None:
        super().__init__({"soft_labels": F.one_hot(labels, num_classes).float()})
        self.attack, self.weight, self.seed = attack, weight, seed
        self.momentum, self.start_epoch = momentum, start_epoch

    def __call__(self, replica: Replica, batch: TrainBatch) -> StepLoss:
        """The loss of a batch, after its soft labels have followed the answers."""
        adversarial = most_divergent(replica, batch, self.attack, seed=self.seed)
        clean = train_logits(replica, batch.images)
        attacked = train_logits(replica, adversarial)
        soft = self._soft_labels(batch, clean.detach().softmax(dim=1))
        weights = soft.amax(dim=1)
        every = all_gather_rows(weights)
        # So that the mean over the ranks' means is the weighted mean over the global batch.
        weights = weights * (len(every) / every.sum())
        cross_entropy = -(soft * clean.log_softmax(dim=1)).sum(dim=1)
        losses = weights * cross_entropy + self.weight * divergence(clean, attacked)
        return step_loss(losses, attacked, batch.labels)

    def _soft_labels(self, batch: TrainBatch, answers: Tensor) -> Tensor:
        table = self.tensors["soft_labels"]
        if batch.epoch >= self.start_epoch:
            # Every rank follows all ranks' images: the next epoch deals them out anew.
            ids, probabilities = all_gather_rows(batch.image_ids), all_gather_rows(answers)
            table[ids] = self.momentum * table[ids] + (1 - self.momentum) * probabilities
        return table[batch.image_ids]
