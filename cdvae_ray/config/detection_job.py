"""Everything that `jobs/detect.py` takes."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from cdvae_ray.config.attack import SUITES, SuiteName
from cdvae_ray.config.attack_job import AttackJobConfig, ChecksConfig, PoolConfig
from cdvae_ray.config.checks import at_least, require
from cdvae_ray.config.data import DataConfig
from cdvae_ray.config.detection import AdaptiveConfig, DetectorsConfig, Protocol, SplitSettings
from cdvae_ray.config.presets import RESTRICTED, RESTRICTED_TINY, RESTRICTED_TRAIN, Preset, chosen
from cdvae_ray.config.serialize import to_dict
from cdvae_ray.config.tracking import TrackingConfig

DETECTION_RECIPE_VERSION = 1
"""Raised when the same settings would give other numbers: part of every report's identity."""
PaperTable = Literal["none", "table-4", "table-5"]
DATASET_OF_TABLE: dict[PaperTable, str] = {"table-4": "cifar10", "table-5": "restricted-imagenet"}


@dataclass(frozen=True, kw_only=True, slots=True)
class DetectionJobConfig:
    """Detects adversarial images on x and on R(x), from checkpoints to the whole table."""

    checkpoint: str = ""
    """The CD-VAE: a checkpoint or run folder, also in object storage, or runs:/..., models:/..."""
    classifier: str = ""
    """A classifier on x, likewise. Without one there is neither its space nor attacks on it: half
    of the 2 x 2."""
    redundant_classifier: str = ""
    """A classifier on G(x), likewise: its disagreement with --classifier is a detector."""
    protocol: Protocol = "strict"
    """strict: parts of the images for training, choosing and testing, noise as long as each
    perturbation, fixed references. reference: as the published codes do it, artefacts included."""
    suite: SuiteName = "detection"
    """Which attacks, with the settings of the paper's tables."""
    attacks: tuple[str, ...] = ()
    """Only these attacks of the suite, by their labels. None named: all of them."""
    paper_table: PaperTable = "none"
    """Whose numbers stand beside ours: table-4 (CIFAR-10) or table-5 (restricted ImageNet)."""
    detectors: DetectorsConfig = field(default_factory=DetectorsConfig)
    """Settings of KD, LID and MD."""
    split: SplitSettings = field(default_factory=SplitSettings)
    """Parts of the test images in the strict protocol."""
    adaptive: AdaptiveConfig = field(default_factory=AdaptiveConfig)
    """Attacks that know the detector (strict protocol)."""
    num_resamples: int = 1000
    """Bootstrap resamples behind each interval."""
    data: DataConfig = field(default_factory=DataConfig)
    """Images: detectors are fitted to the training images, and tested on the test images."""
    seed: int = 0
    """Keys attacks, noise, references and resamples together with the image's id: >= 0."""
    pool: PoolConfig = field(default_factory=PoolConfig)
    """Workers."""
    tracking: TrackingConfig = field(default_factory=TrackingConfig)
    """MLflow."""
    storage: str = "./runs"
    """Root of everything that jobs store: a folder, or an object-storage URI such as s3://..."""
    overwrite: bool = False
    """Extract features and scores again though they are there. Adversarial sets are kept."""
    summary: Path | None = None
    """Write the final numbers to this JSON file."""

    def __post_init__(self) -> None:
        at_least("seed", self.seed, 0)
        at_least("num_resamples", self.num_resamples, 1)
        require(
            self.suite in SUITES,
            "suite",
            got=repr(self.suite),
            expected=f"one of {', '.join(SUITES)}",
            remedy="set --suite to one of them",
        )
        SUITES[self.suite].choose(self.attacks)
        require(
            not self.redundant_classifier or bool(self.classifier),
            "redundant_classifier",
            got="one, without a classifier on x to disagree with",
            expected="both or none",
            remedy="set --classifier as well",
        )
        require(
            bool(self.storage),
            "storage",
            got="nothing",
            expected="a folder or an object-storage URI",
            remedy="set --storage",
        )

    def attack_job(self, threat_model: Literal["classifier", "class-essential"]) -> AttackJobConfig:
        """The attacks on one function, as `jobs/attack.py` would make and find them."""
        on_classifier = threat_model == "classifier"
        return AttackJobConfig(
            suite=self.suite,
            attacks=self.attacks,
            threat_model=threat_model,
            checkpoint="" if on_classifier else self.checkpoint,
            classifier=self.classifier if on_classifier else "",
            data=self.data,
            seed=self.seed,
            pool=self.pool,
            checks=ChecksConfig(strength_images=0),
            tracking=replace(self.tracking, enabled=False),
            storage=self.storage,
        )


def detection_identity(
    config: DetectionJobConfig,
    *,
    digests: dict[str, str | None],
    train_digest: str,
    test_digest: str,
) -> dict[str, Any]:
    """All that determines a detection report: JSON values, without paths or resources.

    Args:
        config: of the job.
        digests: of the checkpoints, by their flags; None for one that is not given.
        train_digest, test_digest: of the images, which stand for their paths.
    """
    return {
        "kind": "detection-report",
        "recipe_version": DETECTION_RECIPE_VERSION,
        "models": digests,
        "train_images": train_digest,
        "test_images": test_digest,
        "protocol": config.protocol,
        "attacks": [to_dict(each) for each in SUITES[config.suite].choose(config.attacks)],
        "paper_table": config.paper_table,
        "detectors": to_dict(config.detectors),
        "split": to_dict(config.split),
        "adaptive": to_dict(config.adaptive),
        "num_resamples": config.num_resamples,
        "seed": config.seed,
    }


_CIFAR10 = DataConfig(source="cifar10", path="./data", image_size=32)

DETECTION_PRESETS: dict[str, Preset[DetectionJobConfig]] = {
    "quickstart": Preset(
        "digits, the paper's five attacks: minutes on a laptop (the default)",
        DetectionJobConfig(
            detectors=DetectorsConfig(magnitudes=(0.0, 0.001), lid_references=1000),
            adaptive=AdaptiveConfig(num_images=64, num_steps=40),
        ),
    ),
    "smoke": Preset(
        "digits, two attacks of few steps: seconds, for tests",
        DetectionJobConfig(
            suite="smoke",
            detectors=DetectorsConfig(
                magnitudes=(0.0, 0.001), num_neighbours=(10, 5), lid_references=200
            ),
            adaptive=AdaptiveConfig(num_images=8, num_steps=3, step_scales=(4.0,)),
            num_resamples=50,
            data=DataConfig(source="digits", image_size=16, train_limit=400),
        ),
    ),
    "cifar10-small": Preset(
        "Table 4 with small networks, for a CPU: one step of MD's input, 2,000 test images",
        DetectionJobConfig(
            paper_table="table-4",
            detectors=DetectorsConfig(magnitudes=(0.0, 0.001)),
            adaptive=AdaptiveConfig(num_images=128, num_steps=40),
            data=replace(_CIFAR10, test_limit=2000),
        ),
    ),
    "cifar10-tiny": Preset(
        "Table 4 for several seeds on a CPU: no step of MD's input, 2,000 test images",
        DetectionJobConfig(
            paper_table="table-4",
            detectors=DetectorsConfig(magnitudes=(0.0,)),
            adaptive=AdaptiveConfig(num_images=64, num_steps=40),
            data=replace(_CIFAR10, train_limit=10_000, test_limit=2000),
        ),
    ),
    "cifar10": Preset(
        "Table 4: all settings of the references, all images",
        DetectionJobConfig(paper_table="table-4", data=_CIFAR10),
    ),
    "restricted-tiny": Preset(
        "Table 5 on 23 of its classes at 64 x 64, for a CPU: one step of MD's input",
        DetectionJobConfig(
            paper_table="table-5",
            detectors=DetectorsConfig(magnitudes=(0.0, 0.001)),
            adaptive=AdaptiveConfig(num_images=32, num_steps=20, step_scales=(4.0,)),
            data=RESTRICTED_TINY,
        ),
    ),
    "restricted-imagenet": Preset(
        "Table 5: fitted to 100 training images a class, tested on all",
        DetectionJobConfig(
            paper_table="table-5", data=replace(RESTRICTED, train_limit=RESTRICTED_TRAIN)
        ),
    ),
}


def detection_preset(name: str) -> DetectionJobConfig:
    """The config of a preset.

    Raises:
        ConfigError: no preset has that name.
    """
    return chosen(DETECTION_PRESETS, name, job="jobs/detect.py")
