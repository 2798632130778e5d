"""How a model is fitted, and on which resources."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from cdvae_ray.config.checks import above, at_least, require
from cdvae_ray.config.serialize import later


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainingConfig:
    """Optimiser, schedule and numerics. All of it is part of a run's identity."""

    seed: int = 0
    """Seeds initialisation, order, augmentation and latent noise: >= 0."""
    epochs: int = 300
    """Passes over the training images: >= 1."""
    global_batch_size: int = 256
    """Images a step over all workers; must divide by the number of workers."""
    optimizer: Literal["adamw", "sgd"] = "adamw"
    """adamw with betas 0.9, 0.999, or sgd with momentum 0.9."""
    learning_rate: float = 1e-3
    """Learning rate at its highest: > 0."""
    weight_decay: float = 1e-6
    """Decoupled with adamw, an L2 penalty with sgd: >= 0."""
    schedule: Literal["constant", "cosine", "steps"] = "constant"
    """constant, cosine between learning_rate and minimum_learning_rate, or a tenth of it after each
    of step_epochs. It changes between epochs."""
    warmup_epochs: int = 0
    """First epochs, over which the learning rate rises linearly to the schedule's: >= 0."""
    step_epochs: tuple[int, ...] = ()
    """For the schedule steps: rising epochs (from 0), >= 1, from each on the rate is a tenth."""
    cosine_period_epochs: int = 50
    """Epochs from the top of the cosine to its bottom (T_max); past it the rate rises again."""
    minimum_learning_rate: float = 2e-4
    """Bottom of the cosine: >= 0."""
    max_gradient_norm: float = 0.0
    """Clip the gradient's global L2 norm to this; 0 turns clipping off."""
    max_gradient_value: float = 0.0
    """Clip each entry of the gradient to [-this, this]; 0 turns clipping off."""
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    """auto: bfloat16 autocast on GPUs that have it, float32 elsewhere. bfloat16 needs a GPU."""
    channels_last: bool = True
    """Keep activations and weights in channels-last memory format."""
    compile: bool = False
    """torch.compile the model (needs a C++ compiler on a CPU)."""
    sync_batch_norm: bool = True
    """Batch normalisation over the global batch, so that results do not depend on the number of
    workers. False: each worker normalises its own part, as DataParallel does in the released
    code."""
    recalibration_steps: int = later(0)
    """Batches after the last step from which batch normalisation takes its running statistics anew,
    with dropout off: >= 0; 0 leaves them as trained. It corrects what dropout in front of a
    normalisation adds to the variance, and changes no weight."""

    def __post_init__(self) -> None:
        at_least("training.seed", self.seed, 0)
        at_least("training.epochs", self.epochs, 1)
        at_least("training.global_batch_size", self.global_batch_size, 2)
        above("training.learning_rate", self.learning_rate, 0.0)
        at_least("training.weight_decay", self.weight_decay, 0.0)
        at_least("training.cosine_period_epochs", self.cosine_period_epochs, 1)
        at_least("training.minimum_learning_rate", self.minimum_learning_rate, 0.0)
        at_least("training.max_gradient_norm", self.max_gradient_norm, 0.0)
        at_least("training.max_gradient_value", self.max_gradient_value, 0.0)
        at_least("training.warmup_epochs", self.warmup_epochs, 0)
        at_least("training.recalibration_steps", self.recalibration_steps, 0)
        require(
            self.schedule != "cosine" or self.minimum_learning_rate <= self.learning_rate,
            "training.minimum_learning_rate",
            got=self.minimum_learning_rate,
            expected=f"at most the learning rate {self.learning_rate}",
            remedy="lower --training.minimum-learning-rate",
        )
        epochs = self.step_epochs
        require(
            bool(epochs) == (self.schedule == "steps")
            and all(early < late for early, late in zip((0, *epochs), epochs, strict=False)),
            "training.step_epochs",
            got=epochs or "none",
            expected="rising epochs >= 1"
            if self.schedule == "steps"
            else f"none for the schedule {self.schedule}",
            remedy="set --training.step-epochs with --training.schedule steps, else leave it out",
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class DefenseEvaluationConfig:
    """What is measured on the test images after training a defence: a first look, white-box."""

    batch_size: int = 256
    """Images a forward pass on each worker."""
    attack_images: int = 256
    """How many test images the short PGD look takes (fewer if there are fewer)."""
    attack_epsilon: float = 8 / 255
    """L-infinity radius of the PGD look, in pixel units [0, 1]."""
    attack_num_steps: int = 10
    """Iterations of the PGD look; the step size is epsilon / sqrt(num_steps)."""

    def __post_init__(self) -> None:
        at_least("evaluation.batch_size", self.batch_size, 1)
        at_least("evaluation.attack_images", self.attack_images, 1)
        require(
            0.0 < self.attack_epsilon <= 1.0,
            "evaluation.attack_epsilon",
            got=self.attack_epsilon,
            expected="a number in (0, 1]",
            remedy="set --evaluation.attack-epsilon to such a number",
        )
        at_least("evaluation.attack_num_steps", self.attack_num_steps, 1)


@dataclass(frozen=True, kw_only=True, slots=True)
class EvaluationConfig(DefenseEvaluationConfig):
    """What is measured on the test images after training a CD-VAE."""

    picture_images: int = 8
    """Columns of the picture x, G(x), R(x)."""

    def __post_init__(self) -> None:
        # Not super(): a dataclass with slots is another class than the one that super() means.
        DefenseEvaluationConfig.__post_init__(self)
        at_least("evaluation.picture_images", self.picture_images, 1)


@dataclass(frozen=True, kw_only=True, slots=True)
class ResourcesConfig:
    """What the cluster lends to training. No part of a run's identity."""

    num_workers: int = 1
    """Ray Train workers, each with a replica of the model: >= 1."""
    min_workers: int | None = None
    """Train with as few as this many workers while the cluster has no more, and with more as they
    come, up to num_workers. None: with num_workers always. Every number in between divides the
    global batch."""
    device: Literal["auto", "cpu", "gpu"] = "auto"
    """gpu: one GPU a worker, NCCL. cpu: gloo. auto: gpu where the cluster has enough of them."""
    cpus_per_worker: int | Literal["auto"] = "auto"
    """CPU threads of a worker; auto shares a node's CPUs evenly among its workers."""
    max_failures: int = 3
    """How often training may lose a worker and go on from the last checkpoint."""
    checkpoint_every: int = 1
    """Epochs from one checkpoint to the next; the last epoch always has one."""
    overlap_checkpoints: bool = False
    """Write a checkpoint while the next epoch trains: worth it where storage is slow. A worker
    lost before the checkpoint is written costs that epoch as well."""
    wait_seconds: float = 30.0
    """How long to wait for resources that the cluster lacks (raise it with autoscaling)."""
    loader_cpus: int = 1
    """CPUs for each worker, beside its own, that read and decode streamed images."""

    def __post_init__(self) -> None:
        at_least("resources.num_workers", self.num_workers, 1)
        if self.min_workers is not None:
            require(
                1 <= self.min_workers <= self.num_workers,
                "resources.min_workers",
                got=self.min_workers,
                expected=f"a number in [1, {self.num_workers}], resources.num_workers",
                remedy="lower --resources.min-workers or raise --resources.num-workers",
            )
        if self.cpus_per_worker != "auto":
            at_least("resources.cpus_per_worker", self.cpus_per_worker, 1)
        at_least("resources.max_failures", self.max_failures, 0)
        at_least("resources.checkpoint_every", self.checkpoint_every, 1)
        at_least("resources.wait_seconds", self.wait_seconds, 0.0)
        at_least("resources.loader_cpus", self.loader_cpus, 1)

    @property
    def worker_counts(self) -> range:
        """How many workers there may be at a time."""
        return range(self.min_workers or self.num_workers, self.num_workers + 1)
