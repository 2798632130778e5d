"""Everything that `jobs/attack.py` takes."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from cdvae_ray.config.attack import SUITES, AttackConfig, SuiteName, ThreatModelName
from cdvae_ray.config.checks import above, at_least, require
from cdvae_ray.config.data import DataConfig
from cdvae_ray.config.serialize import to_dict
from cdvae_ray.config.tracking import TrackingConfig
from cdvae_ray.errors import ConfigError

ATTACK_RECIPE_VERSION = 1
STOCHASTIC_VERSION = 2
"""Of what is done about stochastic models alone. 2: no image is dropped for a lucky draw, answers
come from seeded draws of their own, AutoAttack's rand judges mean answers."""
"""Raised when the same settings would give other images: part of every set's identity."""


@dataclass(frozen=True, kw_only=True, slots=True)
class PoolConfig:
    """The Ray Data actors that attack. No part of a set's identity."""

    num_workers: int = 1
    """Actors, each with a replica of the attacked model: >= 1."""
    device: Literal["auto", "cpu", "gpu"] = "auto"
    """gpu: each actor takes `gpus_per_worker`. auto: gpu where the cluster has enough of them."""
    gpus_per_worker: float = 1.0
    """Share of a GPU that an actor takes, in (0, 1]; small models fit several actors on one."""
    cpus_per_worker: int | Literal["auto"] = "auto"
    """CPU threads of an actor; auto shares a node's CPUs evenly among its actors."""
    shard_size: int = 256
    """Images of a shard: what a lost actor costs, and a file of the set."""
    batch_size: int = 128
    """Images attacked at once. Sets do not depend on it, but for AutoAttack and stochastic
    models, whose random draws belong to a batch."""
    channels_last: bool = True
    """Lay images and models out channels-last, which is faster on CPUs and GPUs."""
    wait_seconds: float = 30.0
    """How long to wait for resources that the cluster lacks (raise it with autoscaling)."""

    def __post_init__(self) -> None:
        at_least("pool.num_workers", self.num_workers, 1)
        above("pool.gpus_per_worker", self.gpus_per_worker, 0.0)
        require(
            self.gpus_per_worker <= 1,
            "pool.gpus_per_worker",
            got=self.gpus_per_worker,
            expected="a share in (0, 1]",
            remedy="set --pool.gpus-per-worker to such a number",
        )
        if self.cpus_per_worker != "auto":
            at_least("pool.cpus_per_worker", self.cpus_per_worker, 1)
        at_least("pool.shard_size", self.shard_size, 1)
        at_least("pool.batch_size", self.batch_size, 1)
        at_least("pool.wait_seconds", self.wait_seconds, 0.0)


@dataclass(frozen=True, kw_only=True, slots=True)
class ChecksConfig:
    """The sanity report after an attack run."""

    strength_images: int = 256
    """Images (the first ones) on which the checks of strength attack again; 0 turns them off."""
    allow_failed: bool = False
    """Exit with code 0 though a check failed. The report says so either way."""

    def __post_init__(self) -> None:
        at_least("checks.strength_images", self.strength_images, 0)


@dataclass(frozen=True, kw_only=True, slots=True)
class AttackJobConfig:
    """Attacks a model on a dataset and stores one adversarial set for each attack."""

    suite: SuiteName = "quick"
    """Which attacks, with the settings of the paper's tables."""
    attacks: tuple[str, ...] = ()
    """Run only these attacks of the suite, by their labels. None named: all of them."""
    epsilon: float | None = None
    """Another radius, for one attack named by --attacks."""
    num_steps: int | None = None
    """Another number of steps, for one attack named by --attacks."""
    threat_model: ThreatModelName = "class-essential"
    """classifier: D(x). class-essential: D(R(x)) through the whole CD-VAE. class-redundant:
    D_G(G(x)) through G. defense: a fine-tuned CD-VAE, a purifier or a robust classifier."""
    checkpoint: str = ""
    """The CD-VAE: a checkpoint or run folder, also in object storage, or runs:/..., models:/..."""
    classifier: str = ""
    """The classifier on x or G(x), likewise, for the threat models that attack one."""
    defense: str = ""
    """The defence, likewise, for the threat model defense."""
    data: DataConfig = field(default_factory=DataConfig)
    """Images."""
    split: Literal["test", "train"] = "test"
    """Which half of the dataset to attack."""
    seed: int = 0
    """Keys every random start together with the image's id: >= 0."""
    eot_samples: int = 1
    """Draws a gradient for a stochastic model (20 at least); 1: no expectation."""
    pool: PoolConfig = field(default_factory=PoolConfig)
    """Workers."""
    checks: ChecksConfig = field(default_factory=ChecksConfig)
    """Sanity report."""
    tracking: TrackingConfig = field(default_factory=TrackingConfig)
    """MLflow."""
    storage: str = "./runs"
    """Root of everything that jobs store: a folder, or an object-storage URI such as s3://..."""
    overwrite: bool = False
    """Make the sets again though they are there."""
    summary: Path | None = None
    """Write the final numbers to this JSON file."""

    def __post_init__(self) -> None:
        require(
            self.suite in SUITES,
            "suite",
            got=repr(self.suite),
            expected=f"one of {', '.join(SUITES)}",
            remedy="set --suite to one of them",
        )
        at_least("seed", self.seed, 0)
        at_least("eot_samples", self.eot_samples, 1)
        require(
            bool(self.storage),
            "storage",
            got="nothing",
            expected="a folder or an object-storage URI",
            remedy="set --storage",
        )
        require(
            len(self.attacks) == 1 or (self.epsilon is None and self.num_steps is None),
            "epsilon, num_steps",
            got=f"a value for {len(self.attacks) or 'all'} attacks",
            expected="exactly one attack, as radii and steps differ in meaning",
            remedy="name it by --attacks",
        )
        self.chosen_attacks()

    def chosen_attacks(self) -> tuple[AttackConfig, ...]:
        """The attacks to run, with what --epsilon and --num-steps change.

        Raises:
            ConfigError: an attack that the suite has not, or a setting that it does not take.
        """
        chosen = SUITES[self.suite].choose(self.attacks)
        changes: dict[str, Any] = {
            name: getattr(self, name)
            for name in ("epsilon", "num_steps")
            if getattr(self, name) is not None
        }
        return tuple(replace(each, **changes) for each in chosen)


def attack_preset(name: str) -> AttackJobConfig:
    """The config of a preset: a suite by its name.

    Raises:
        ConfigError: no suite has that name.
    """
    if name not in ATTACK_PRESETS:
        raise ConfigError(
            "preset",
            got=repr(name),
            expected=f"one of {', '.join(ATTACK_PRESETS)}",
            remedy="run jobs/attack.py --help for what each is",
        )
    return ATTACK_PRESETS[name]


_CIFAR10 = DataConfig(source="cifar10", path="./data", image_size=32)

ATTACK_PRESETS: dict[str, AttackJobConfig] = {
    "smoke": AttackJobConfig(
        suite="smoke",
        data=DataConfig(source="digits", image_size=16, train_limit=256, test_limit=100),
    ),
    "quick": AttackJobConfig(suite="quick"),
    "detection": AttackJobConfig(suite="detection", threat_model="class-essential", data=_CIFAR10),
    "grey-box": AttackJobConfig(suite="grey-box", threat_model="classifier", data=_CIFAR10),
    "white-box": AttackJobConfig(suite="white-box", threat_model="class-redundant", data=_CIFAR10),
    "white-box-pgd": AttackJobConfig(suite="white-box-pgd", threat_model="defense", data=_CIFAR10),
}


def adversarial_set_identity(
    attack: AttackConfig,
    config: AttackJobConfig,
    *,
    cdvae_digest: str | None,
    classifier_digest: str | None,
    defense_digest: str | None = None,
    images_digest: str,
    is_stochastic: bool,
) -> dict[str, Any]:
    """All that determines an adversarial set: JSON values, without paths or resources.

    Args:
        attack: with its settings.
        config: of the job.
        cdvae_digest, classifier_digest, defense_digest: of the attacked checkpoints; None for a
            part unused.
        images_digest: of the clean images, which stands for their path.
        is_stochastic: whether the attacked function answers at random.
    """
    settings = {
        name: value
        for name, value in to_dict(attack).items()
        # A table's name for an attack changes no pixel.
        if value is not None and name != "label"
    }
    draws_by_batch = is_stochastic or attack.attack == "auto_attack"
    return {
        "kind": "adversarial-set",
        "recipe_version": ATTACK_RECIPE_VERSION,
        "attack": settings,
        "threat_model": config.threat_model,
        "cdvae": cdvae_digest,
        "classifier": classifier_digest,
        **({} if defense_digest is None else {"defense": defense_digest}),
        "images": images_digest,
        "split": config.split,
        "seed": config.seed,
        "eot_samples": config.eot_samples,
        "batches": [config.pool.shard_size, config.pool.batch_size] if draws_by_batch else None,
        **({"stochastic_version": STOCHASTIC_VERSION} if is_stochastic else {}),
    }


def set_name(attack: AttackConfig, digest: str) -> str:
    """The folder of an adversarial set, below adversarial/ in the storage root."""
    return f"{attack.attack.replace('_', '-')}-{digest[:12]}"
