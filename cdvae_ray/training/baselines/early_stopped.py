"""Early-stopped adversarial training (Rice et al., 2020): the epoch that held-out images choose."""

from __future__ import annotations

import torch
from torch import nn

from cdvae_ray.core.attacks.run import run_attack
from cdvae_ray.core.random import derive_seed
from cdvae_ray.data.batches import evaluation_batches
from cdvae_ray.data.images import ImageSet
from cdvae_ray.training.baselines.adversarial import AdversarialLoss
from cdvae_ray.training.distributed import all_reduce_sum, rank, world_size
from cdvae_ray.training.inner_attack import Autocast
from cdvae_ray.training.task import Replica, StatefulLoss, StepLoss, TrainBatch

_BATCH = 256
_BEST = "best/"


class EarlyStoppedLoss(StatefulLoss):
    """Adversarial training that ends with the weights of its most robust epoch.

    Robustness is the accuracy under the training's own attack on images that are not trained on.
    The last epoch's checkpoint holds the chosen weights, the earlier ones their own.

    Args:
        loss: of adversarial training.
        model: whose weights are kept, on the device.
        validation: the held-out images.
    """

    def __init__(self, loss: AdversarialLoss, model: nn.Module, validation: ImageSet) -> None:
        self.loss, self.validation = loss, validation
        device = next(model.parameters()).device
        kept = {f"{_BEST}{name}": each.clone() for name, each in model.state_dict().items()}
        super().__init__(
            {
                "best_robust": torch.full((), -1, dtype=torch.int64, device=device),
                "best_epoch": torch.full((), -1, dtype=torch.int64, device=device),
                **kept,
            }
        )

    def __call__(self, replica: Replica, batch: TrainBatch) -> StepLoss:
        """Adversarial training's loss of a batch."""
        return self.loss(replica, batch)

    def end_epoch(self, replica: Replica, *, epoch: int, is_last: bool) -> dict[str, float]:
        """Keeps the weights if they are the most robust so far; the last epoch takes them back."""
        robust = self._robust(replica)
        weights = replica.model.state_dict()
        if robust > int(self.tensors["best_robust"]):
            self.tensors["best_robust"].fill_(robust)
            self.tensors["best_epoch"].fill_(epoch + 1)
            for name, each in weights.items():
                self.tensors[f"{_BEST}{name}"].copy_(each)
        if is_last:
            replica.model.load_state_dict(
                {name: self.tensors[f"{_BEST}{name}"] for name in weights}
            )
        return {
            "validation_robust_accuracy": robust / len(self.validation),
            "best_epoch": float(self.tensors["best_epoch"]),
        }

    def _robust(self, replica: Replica) -> int:
        """Held-out images that are right under attack, over all ranks."""
        device = next(replica.model.parameters()).device
        classify = Autocast(replica.model, replica.autocast)
        count = torch.zeros((), dtype=torch.float64, device=device)
        # One seed for all epochs: they are compared on the same random starts.
        seed = derive_seed(self.loss.seed, "validation attack")
        for batch in evaluation_batches(
            self.validation, batch_size=_BATCH, rank=rank(), world_size=world_size()
        ):
            images, labels = batch.on(device)
            result = run_attack(
                self.loss.attack, classify, images, labels, seed=seed, image_ids=batch.image_ids
            )
            count += (~result.success).sum()
        return round(all_reduce_sum(count).item())
