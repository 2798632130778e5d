"""Everything that `jobs/analyze.py` takes."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from cdvae_ray.config.attack import SUITES, AttackConfig, SuiteName
from cdvae_ray.config.attack_job import AttackJobConfig, ChecksConfig, PoolConfig
from cdvae_ray.config.checks import above, at_least, require
from cdvae_ray.config.data import DataConfig
from cdvae_ray.config.presets import RESTRICTED, RESTRICTED_TINY, Preset, chosen
from cdvae_ray.config.serialize import to_dict
from cdvae_ray.config.tracking import TrackingConfig

STUDY_VERSION = 1
"""Raised when the same settings would give other numbers: part of every report's identity."""
StudyThreatModel = Literal["classifier", "class-essential"]


@dataclass(frozen=True, kw_only=True, slots=True)
class StudyJobConfig:
    """Compares the parts of clean and adversarial images: Tables 1-3, Figures 2 and 3."""

    checkpoint: str = ""
    """The CD-VAE: a checkpoint or run folder, also in object storage, or runs:/..., models:/..."""
    classifier: str = ""
    """A classifier on x, likewise: what is attacked, whose features measure Frechet distances, and
    a column of Table 3."""
    redundant_classifier: str = ""
    """A classifier on G(x), likewise: another column of Table 3."""
    essential_classifier: str = ""
    """A classifier on R(x), likewise: another column of Table 3."""
    threat_model: StudyThreatModel = "classifier"
    """What x' is made against. classifier: D(x), as in the paper. class-essential: D(R(x)) through
    the whole CD-VAE."""
    suite: SuiteName = "detection"
    """Which attacks, with the settings of the paper's tables."""
    attacks: tuple[str, ...] = ("PGD-Linf",)
    """Only these attacks of the suite, by their labels. None named: all of them."""
    epsilons: tuple[float, ...] = ()
    """Further radii, in the attack's own measure, for the one attack named by --attacks: > 0."""
    noise_control: bool = True
    """Also compare x with noise as long as each image's perturbation: what moves R(x) more than
    G(x) though it attacks nothing."""
    units: Literal["normalized", "pixel"] = "normalized"
    """Units of norms and cosines: as the CD-VAE's networks see images, as in the paper, or pixels
    in [0, 1]."""
    inception: str = ""
    """A file of torchvision's Inception v3 weights (.pth, .safetensors) for the Frechet distance.
    Without one its features are those of --classifier, or of the CD-VAE's D, and the table says
    so."""
    paper: Literal["none", "cifar10", "restricted-imagenet"] = "none"
    """Whose numbers of the paper's tables stand beside ours."""
    num_pictures: int = 8
    """Images in Figure 2, the first ones: >= 1."""
    data: DataConfig = field(default_factory=DataConfig)
    """Images: the test images are compared."""
    seed: int = 0
    """Keys random starts and latent noise together with the image's id: >= 0."""
    pool: PoolConfig = field(default_factory=PoolConfig)
    """Workers."""
    tracking: TrackingConfig = field(default_factory=TrackingConfig)
    """MLflow."""
    storage: str = "./runs"
    """Root of everything that jobs store: a folder, or an object-storage URI such as s3://..."""
    overwrite: bool = False
    """Compute again though the numbers are there. Adversarial sets are kept."""
    summary: Path | None = None
    """Write the final numbers to this JSON file."""

    def __post_init__(self) -> None:
        at_least("seed", self.seed, 0)
        at_least("num_pictures", self.num_pictures, 1)
        require(
            self.suite in SUITES,
            "suite",
            got=repr(self.suite),
            expected=f"one of {', '.join(SUITES)}",
            remedy="set --suite to one of them",
        )
        SUITES[self.suite].choose(self.attacks)
        for epsilon in self.epsilons:
            above("epsilons", epsilon, 0.0)
        require(
            not self.epsilons or len(self.attacks) == 1,
            "epsilons",
            got=f"radii for {len(self.attacks) or 'all'} attacks",
            expected="exactly one attack, as radii differ in meaning",
            remedy="name it by --attacks",
        )
        labels = [each.label for each in self.further_attacks()]
        require(
            len(labels) == len(set(labels)),
            "epsilons",
            got=self.epsilons,
            expected="radii that differ in their first four digits",
            remedy="give each once",
        )
        require(
            bool(self.storage),
            "storage",
            got="nothing",
            expected="a folder or an object-storage URI",
            remedy="set --storage",
        )

    def require_parts(self) -> None:
        """Raises ConfigError unless there is something to study.

        Not at construction: a preset names nothing.
        """
        require(
            bool(self.checkpoint),
            "checkpoint",
            got="none",
            expected="a CD-VAE",
            remedy="set --checkpoint; train one by jobs/train.py",
        )
        require(
            self.threat_model == "class-essential" or bool(self.classifier),
            "classifier",
            got="none",
            expected="a classifier on x, which is attacked",
            remedy="set --classifier to a run of jobs/train_classifier.py --input images, or "
            "--threat-model class-essential",
        )

    def attack_job(self) -> AttackJobConfig:
        """The attacks, as `jobs/attack.py` would make and find them."""
        on_classifier = self.threat_model == "classifier"
        return AttackJobConfig(
            suite=self.suite,
            attacks=self.attacks,
            threat_model=self.threat_model,
            checkpoint="" if on_classifier else self.checkpoint,
            classifier=self.classifier if on_classifier else "",
            data=self.data,
            seed=self.seed,
            pool=self.pool,
            checks=ChecksConfig(strength_images=0),
            tracking=replace(self.tracking, enabled=False),
            storage=self.storage,
        )

    def further_attacks(self) -> tuple[AttackConfig, ...]:
        """The attack again at each further radius."""
        if not self.epsilons:
            return ()
        (attack,) = SUITES[self.suite].choose(self.attacks)
        return tuple(
            replace(
                attack, label=f"{attack.label}, eps {_radius(attack, epsilon)}", epsilon=epsilon
            )
            for epsilon in self.epsilons
            if epsilon != attack.epsilon
        )


def _radius(attack: AttackConfig, epsilon: float) -> str:
    return f"{epsilon * 255:.4g}/255" if attack.ball == "linf" else f"{epsilon:.4g}"


def decomposition_set_identity(
    config: StudyJobConfig,
    source: dict[str, Any],
    *,
    cdvae_digest: str,
    attacked_digest: str,
    features_digest: str,
    images_digest: str,
) -> dict[str, Any]:
    """All that determines a set of the study's numbers by image: JSON values, without paths.

    Args:
        config: of the job.
        source: which adversarial images, as `ImageSource.identity` says.
        cdvae_digest: of the CD-VAE that splits images.
        attacked_digest: of the model whose answers are noted.
        features_digest: of the features of parts as images.
        images_digest: of the clean images, which stands for their path.
    """
    return {
        "kind": "decomposition-set",
        "recipe_version": STUDY_VERSION,
        "cdvae": cdvae_digest,
        "attacked": [config.threat_model, attacked_digest],
        "features": features_digest,
        "units": config.units,
        "seed": config.seed,
        "images": images_digest,
        "source": source,
    }


def cross_set_identity(
    classifiers: dict[str, str], *, cdvae_digest: str, images_digest: str, seed: int
) -> dict[str, Any]:
    """All that determines the answers behind Table 3: JSON values, without paths.

    Args:
        classifiers: digests, by what each was trained on.
        cdvae_digest: of the CD-VAE that splits images.
        images_digest: of the images.
        seed: of the latent noise.
    """
    return {
        "kind": "cross-set",
        "recipe_version": STUDY_VERSION,
        "classifiers": classifiers,
        "cdvae": cdvae_digest,
        "images": images_digest,
        "seed": seed,
    }


def study_identity(
    config: StudyJobConfig, *, sets: dict[str, str], cross: str | None
) -> dict[str, Any]:
    """All that determines a report of the study: JSON values, without paths or resources.

    Args:
        config: of the job.
        sets: digests of the numbers by image, by attack.
        cross: digest of Table 3's answers; None without any.
    """
    return {
        "kind": "study-report",
        "recipe_version": STUDY_VERSION,
        "sets": sets,
        "cross": cross,
        "paper": config.paper,
        "num_pictures": config.num_pictures,
        "attacks": [to_dict(each) for each in SUITES[config.suite].choose(config.attacks)],
    }


_CIFAR10 = DataConfig(source="cifar10", path="./data", image_size=32)

STUDY_PRESETS: dict[str, Preset[StudyJobConfig]] = {
    "quickstart": Preset("digits: a minute on a laptop (the default)", StudyJobConfig()),
    "smoke": Preset(
        "some digits, an attack of few steps: seconds, for tests",
        StudyJobConfig(
            suite="smoke",
            num_pictures=4,
            data=DataConfig(source="digits", image_size=16, train_limit=400),
        ),
    ),
    "cifar10-small": Preset(
        "Tables 1-3 and Figures 2, 3 with small networks, for a CPU: 2,000 test images",
        StudyJobConfig(
            paper="cifar10",
            epsilons=(2 / 255, 4 / 255, 16 / 255),
            data=replace(_CIFAR10, test_limit=2000),
        ),
    ),
    "cifar10-tiny": Preset(
        "Tables 1-3 and Figures 2, 3 for several seeds on a CPU: 2,000 test images, two more radii",
        StudyJobConfig(
            paper="cifar10",
            epsilons=(2 / 255, 16 / 255),
            data=replace(_CIFAR10, test_limit=2000),
        ),
    ),
    "cifar10": Preset(
        "Tables 1-3 and Figures 2, 3: all test images, five radii",
        StudyJobConfig(
            paper="cifar10", epsilons=(2 / 255, 4 / 255, 16 / 255, 32 / 255), data=_CIFAR10
        ),
    ),
    "restricted-tiny": Preset(
        "Tables 1-3 and Figures 2, 3 on 23 classes of restricted ImageNet at 64 x 64, for a CPU",
        StudyJobConfig(
            paper="restricted-imagenet", epsilons=(2 / 255, 16 / 255), data=RESTRICTED_TINY
        ),
    ),
    "restricted-imagenet": Preset(
        "Tables 1-3 and Figures 2, 3 on restricted ImageNet: all test images, five radii",
        StudyJobConfig(
            paper="restricted-imagenet",
            epsilons=(2 / 255, 4 / 255, 16 / 255, 32 / 255),
            data=RESTRICTED,
        ),
    ),
}


def study_preset(name: str) -> StudyJobConfig:
    """The config of a preset.

    Raises:
        ConfigError: no preset has that name.
    """
    return chosen(STUDY_PRESETS, name, job="jobs/analyze.py")
