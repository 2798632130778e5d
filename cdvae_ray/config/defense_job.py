"""Everything that `jobs/evaluate_defense.py` takes."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from cdvae_ray.config.attack import SUITES, AttackConfig, SuiteName, ThreatModelName
from cdvae_ray.config.attack_job import AttackJobConfig, ChecksConfig, PoolConfig
from cdvae_ray.config.checks import above, at_least, require
from cdvae_ray.config.data import DataConfig
from cdvae_ray.config.presets import RESTRICTED, RESTRICTED_TINY, Preset, chosen
from cdvae_ray.config.serialize import to_dict
from cdvae_ray.config.tracking import TrackingConfig

DEFENSE_REPORT_VERSION = 1
"""Raised when the same settings would give other numbers: part of every report's identity."""
SQUARE_EPSILON = 8 / 255
"""That of the tables' L-infinity attacks, with which Square is compared."""
DefenseTable = Literal["grey-box", "white-box"]
WHITE_BOX_SUITE: dict[DefenseTable, SuiteName] = {
    "grey-box": "white-box-pgd",
    "white-box": "white-box",
}
"""What is run against each defence itself: beside a transfer, so that nobody takes it for more."""


@dataclass(frozen=True, kw_only=True, slots=True)
class EvidenceConfig:
    """What the checklist looks at besides the table, on the first images."""

    images: int = 256
    """How many images; 0: none of it is run, and the checklist says so."""
    epsilons: tuple[float, ...] = (2 / 255, 4 / 255, 8 / 255, 16 / 255, 64 / 255)
    """Rising radii of white-box PGD L-infinity; accuracy must fall with them, and to nothing."""
    num_steps: int = 40
    """Steps of that attack: >= 1."""
    black_box: bool = True
    """Run Square (5,000 queries, L-infinity 8/255) on the defence: an attack without gradients
    that beats one with them says that the gradients are masked."""

    def __post_init__(self) -> None:
        at_least("evidence.images", self.images, 0)
        at_least("evidence.num_steps", self.num_steps, 1)
        for epsilon in self.epsilons:
            above("evidence.epsilons", epsilon, 0.0)
        require(
            all(a < b for a, b in zip(self.epsilons, self.epsilons[1:], strict=False)),
            "evidence.epsilons",
            got=self.epsilons,
            expected="rising numbers",
            remedy="give them in rising order",
        )

    def sweep(self) -> tuple[AttackConfig, ...]:
        """White-box PGD L-infinity by rising radius; nothing where no image is looked at."""
        return tuple(
            AttackConfig(
                attack="pgd",
                label=f"PGD-Linf, eps {epsilon * 255:.4g}/255",
                epsilon=epsilon,
                num_steps=self.num_steps,
            )
            for epsilon in self.epsilons
            if self.images
        )

    def square(self) -> tuple[AttackConfig, ...]:
        """Square, or nothing."""
        if not (self.black_box and self.images):
            return ()
        return (
            AttackConfig(
                attack="auto_attack",
                label="Square",
                epsilon=SQUARE_EPSILON,
                norm="linf",
                version="square",
            ),
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class DefenseJobConfig:
    """Attacks defences and reports what is left: Tables 6 and 7, with a sceptic's checklist."""

    table: DefenseTable = "white-box"
    """grey-box (Table 6): adversarial images of the classifier --source are shown to each defence,
    and PGD against the defence itself stands beside. white-box (Table 7): every attack is against
    the defence itself."""
    defenses: tuple[str, ...] = ()
    """Each as NAME=LOCATION: a checkpoint or run folder, also in object storage, or runs:/...,
    models:/...; names as in the paper's tables (Normal, "AT PGD-Linf", TRADES, HGD, APE-GAN, Ours,
    Ours-Linf, ...) stand beside its values."""
    cdvae: tuple[str, ...] = ()
    """CD-VAEs of those defences that are a classifier of G(x), likewise; each finds its own."""
    source: str = ""
    """grey-box: the plain classifier that the adversarial images are made against."""
    attacks: tuple[str, ...] = ()
    """Only these attacks of the table, by their labels. None named: all of them."""
    paper: Literal["none", "cifar10", "imagenet"] = "none"
    """Whose column of the paper's tables stands beside ours."""
    evidence: EvidenceConfig = field(default_factory=EvidenceConfig)
    """Further attacks for the checklist."""
    eot_samples: int = 20
    """Draws a gradient for a defence that answers at random; others take one."""
    data: DataConfig = field(default_factory=DataConfig)
    """Images: the test images are attacked."""
    seed: int = 0
    """Keys random starts and resamples together with the image's id: >= 0."""
    pool: PoolConfig = field(default_factory=PoolConfig)
    """Workers."""
    tracking: TrackingConfig = field(default_factory=TrackingConfig)
    """MLflow."""
    storage: str = "./runs"
    """Root of everything that jobs store: a folder, or an object-storage URI such as s3://..."""
    overwrite: bool = False
    """Compute answers again though they are there. Adversarial sets are kept."""
    summary: Path | None = None
    """Write the final numbers to this JSON file."""

    def __post_init__(self) -> None:
        at_least("seed", self.seed, 0)
        at_least("eot_samples", self.eot_samples, 2)
        require(
            bool(self.storage),
            "storage",
            got="nothing",
            expected="a folder or an object-storage URI",
            remedy="set --storage",
        )
        names = [name for name, _ in self.named_defenses()]
        require(
            len(names) == len(set(names)),
            "defenses",
            got=", ".join(names),
            expected="each name once",
            remedy="give every defence a name of its own",
        )
        require(
            self.table == "grey-box" or not self.source,
            "source",
            got=self.source,
            expected="none for the white-box table, which attacks each defence itself",
            remedy="leave out --source, or set --table grey-box",
        )
        SUITES[self.table].choose(self.attacks)

    def named_defenses(self) -> list[tuple[str, str]]:
        """Name and location of each defence.

        Raises:
            ConfigError: an entry is not NAME=LOCATION.
        """
        pairs = []
        for entry in self.defenses:
            name, equals, location = entry.partition("=")
            require(
                bool(name.strip() and equals and location.strip()),
                "defenses",
                got=repr(entry),
                expected="NAME=LOCATION",
                remedy="as in --defenses Normal=runs/train/classifier-... Ours=runs/train/...",
            )
            pairs.append((name.strip(), location.strip()))
        return pairs

    def require_parts(self) -> None:
        """Raises ConfigError unless there is something to evaluate.

        Not at construction: a preset names nothing.
        """
        require(
            bool(self.defenses),
            "defenses",
            got="none",
            expected="at least one NAME=LOCATION",
            remedy="set --defenses, as in --defenses Normal=runs/train/classifier-...",
        )
        require(
            self.table == "white-box" or bool(self.source),
            "source",
            got="none",
            expected="the plain classifier that adversarial images are made against",
            remedy="set --source to a run of jobs/train_classifier.py --input images",
        )

    def transfer_job(self) -> AttackJobConfig:
        """The attacks on the plain classifier, as `jobs/attack.py` would make and find them."""
        return self._attack_job("grey-box", "classifier", classifier=self.source, strength_images=0)

    def white_box_job(self, location: str, cdvae: str, *, eot_samples: int) -> AttackJobConfig:
        """The attacks on one defence itself.

        Args:
            location: of the defence.
            cdvae: location of its CD-VAE; "" where its checkpoint holds all of it.
            eot_samples: draws a gradient.
        """
        return self._attack_job(
            WHITE_BOX_SUITE[self.table],
            "defense",
            defense=location,
            checkpoint=cdvae,
            eot_samples=eot_samples,
            strength_images=self.evidence.images,
        )

    def _attack_job(
        self,
        suite: SuiteName,
        threat_model: ThreatModelName,
        *,
        strength_images: int,
        classifier: str = "",
        defense: str = "",
        checkpoint: str = "",
        eot_samples: int = 1,
    ) -> AttackJobConfig:
        return AttackJobConfig(
            suite=suite,
            # What stands beside a transfer is run whole: it is what the transfer is held against.
            attacks=self.attacks if suite == self.table else (),
            threat_model=threat_model,
            classifier=classifier,
            defense=defense,
            checkpoint=checkpoint,
            data=self.data,
            seed=self.seed,
            eot_samples=eot_samples,
            pool=self.pool,
            checks=ChecksConfig(strength_images=strength_images),
            tracking=replace(self.tracking, enabled=False),
            storage=self.storage,
        )

    def chosen_attacks(self) -> tuple[AttackConfig, ...]:
        """The attacks of the table."""
        return SUITES[self.table].choose(self.attacks)


def defense_report_identity(
    config: DefenseJobConfig,
    *,
    defenses: dict[str, str],
    source_digest: str | None,
    test_digest: str,
) -> dict[str, Any]:
    """All that determines a report: JSON values, without paths or resources.

    Args:
        config: of the job.
        defenses: digest of each by its name, with its CD-VAE's.
        source_digest: of the plain classifier; None for the white-box table.
        test_digest: of the images, which stands for their path.
    """
    return {
        "kind": "defense-report",
        "recipe_version": DEFENSE_REPORT_VERSION,
        "table": config.table,
        "defenses": defenses,
        "source": source_digest,
        "test_images": test_digest,
        "attacks": [to_dict(each) for each in config.chosen_attacks()],
        "beside": [to_dict(each) for each in SUITES[WHITE_BOX_SUITE[config.table]].attacks],
        "paper": config.paper,
        "evidence": to_dict(config.evidence),
        "eot_samples": config.eot_samples,
        "seed": config.seed,
    }


def prediction_set_identity(
    source: dict[str, Any],
    *,
    defense_digest: str,
    cdvae_digest: str | None,
    images_digest: str,
    transform: str,
    samples: int = 1,
) -> dict[str, Any]:
    """All that determines a defence's answers to images: JSON values.

    Args:
        source: which images, as `ImageSource.identity` says it.
        defense_digest, cdvae_digest: of its checkpoints; None where one holds all of it.
        images_digest: of the clean images.
        transform: what is done to an image first, by its name; "" for nothing.
        samples: draws of a stochastic defence, whose mean answer counts.
    """
    return {
        "kind": "prediction-set",
        "recipe_version": DEFENSE_REPORT_VERSION,
        "source": source,
        "defense": defense_digest,
        "cdvae": cdvae_digest,
        "images": images_digest,
        "transform": transform,
        **({} if samples == 1 else {"samples": samples}),
    }


_CIFAR10 = DataConfig(source="cifar10", path="./data", image_size=32)
_SMALL = DataConfig(source="cifar10", path="./data", image_size=32, test_limit=500)

DEFENSE_PRESETS: dict[str, Preset[DefenseJobConfig]] = {
    "quickstart": Preset(
        "digits, white-box: minutes on a laptop (the default)",
        DefenseJobConfig(
            data=DataConfig(source="digits", image_size=16, test_limit=100),
            evidence=EvidenceConfig(images=50),
        ),
    ),
    "smoke": Preset(
        "40 digits, two attacks: seconds, for tests",
        DefenseJobConfig(
            attacks=("JPEG", "StAdv"),
            data=DataConfig(source="digits", image_size=16, train_limit=256, test_limit=40),
            evidence=EvidenceConfig(
                images=8, epsilons=(8 / 255, 64 / 255), num_steps=2, black_box=False
            ),
        ),
    ),
    "grey-box-quickstart": Preset(
        "digits, transferred attacks with white-box ones beside: minutes on a laptop",
        DefenseJobConfig(
            table="grey-box",
            data=DataConfig(source="digits", image_size=16, test_limit=100),
            evidence=EvidenceConfig(images=50),
        ),
    ),
    "grey-box-smoke": Preset(
        "40 digits, one transferred attack: for tests",
        DefenseJobConfig(
            table="grey-box",
            attacks=("PGD-Linf",),
            data=DataConfig(source="digits", image_size=16, train_limit=256, test_limit=40),
            evidence=EvidenceConfig(
                images=8, epsilons=(8 / 255, 64 / 255), num_steps=2, black_box=False
            ),
        ),
    ),
    "grey-box-small": Preset(
        "Table 6 on 500 images of CIFAR-10, for a CPU",
        DefenseJobConfig(
            table="grey-box", paper="cifar10", data=_SMALL, evidence=EvidenceConfig(images=100)
        ),
    ),
    "white-box-small": Preset(
        "Table 7 on 200 images of CIFAR-10, for a CPU",
        DefenseJobConfig(
            paper="cifar10",
            data=replace(_SMALL, test_limit=200),
            evidence=EvidenceConfig(images=50),
        ),
    ),
    "grey-box-tiny": Preset(
        "Table 6 for several seeds on a CPU: 200 images of CIFAR-10",
        DefenseJobConfig(
            table="grey-box",
            paper="cifar10",
            data=replace(_SMALL, test_limit=200),
            evidence=EvidenceConfig(images=20),
        ),
    ),
    "white-box-tiny": Preset(
        "Table 7 for several seeds on a CPU: 64 images of CIFAR-10",
        DefenseJobConfig(
            paper="cifar10",
            data=replace(_SMALL, test_limit=64),
            evidence=EvidenceConfig(images=20),
        ),
    ),
    "grey-box": Preset(
        "Table 6 on CIFAR-10",
        DefenseJobConfig(table="grey-box", paper="cifar10", data=_CIFAR10),
    ),
    "white-box": Preset("Table 7 on CIFAR-10", DefenseJobConfig(paper="cifar10", data=_CIFAR10)),
    "grey-box-restricted-tiny": Preset(
        "Table 6 on 500 images of restricted ImageNet's classes at 64 x 64, for a CPU",
        DefenseJobConfig(
            table="grey-box",
            paper="imagenet",
            data=replace(RESTRICTED_TINY, test_limit=500),
            evidence=EvidenceConfig(images=100),
        ),
    ),
    "white-box-restricted-tiny": Preset(
        "the attacks of Table 7 on 200 of those images, for a CPU (the paper has CIFAR-10 alone)",
        DefenseJobConfig(
            data=replace(RESTRICTED_TINY, test_limit=200), evidence=EvidenceConfig(images=50)
        ),
    ),
    "grey-box-restricted": Preset(
        "Table 6 on restricted ImageNet",
        DefenseJobConfig(table="grey-box", paper="imagenet", data=RESTRICTED),
    ),
    "white-box-restricted": Preset(
        "the attacks of Table 7 on restricted ImageNet (the paper has CIFAR-10 alone)",
        DefenseJobConfig(data=RESTRICTED),
    ),
}


def defense_preset(name: str) -> DefenseJobConfig:
    """The config of a preset.

    Raises:
        ConfigError: no preset has that name.
    """
    return chosen(DEFENSE_PRESETS, name, job="jobs/evaluate_defense.py")
