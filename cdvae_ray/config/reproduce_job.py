"""Everything that `jobs/reproduce.py` takes: which results, and the settings of every step to them.

A step's settings are those of a preset of the job that it is; what a recipe changes of them stands
in `RecipeConfig`, so that no step can differ from what its own job would do.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, NamedTuple, TypeVar, get_args

from cdvae_ray.config.attack_job import PoolConfig
from cdvae_ray.config.baseline import BASELINE_NAMES, BaselineName, baseline
from cdvae_ray.config.baseline_job import BaselineJobConfig
from cdvae_ray.config.baseline_presets import baseline_preset
from cdvae_ray.config.checks import above, at_least, require
from cdvae_ray.config.classifier import InputKind
from cdvae_ray.config.classifier_job import ClassifierJobConfig
from cdvae_ray.config.classifier_presets import classifier_preset
from cdvae_ray.config.data import DataConfig
from cdvae_ray.config.defense_job import DefenseJobConfig, defense_preset
from cdvae_ray.config.detection import Protocol
from cdvae_ray.config.detection_job import DetectionJobConfig, detection_preset
from cdvae_ray.config.finetune_job import FinetuneJobConfig
from cdvae_ray.config.finetune_presets import finetune_preset
from cdvae_ray.config.presets import RESTRICTED_TINY, Preset, chosen, preset
from cdvae_ray.config.search_job import ObjectiveSearchConfig, gamma_preset
from cdvae_ray.config.serialize import to_dict
from cdvae_ray.config.study_job import StudyJobConfig, study_preset
from cdvae_ray.config.tracking import TrackingConfig
from cdvae_ray.config.train_job import TrainConfig
from cdvae_ray.config.training import ResourcesConfig
from cdvae_ray.config.training_job import TrainingJobConfig, on_images

Norm = Literal["linf", "l2"]
Part = Literal["study", "detection", "detection-reference", "grey-box", "white-box", "search"]
"""A report of one job, which holds one result of the paper or several."""

ModelKind = Literal[
    "classifier",
    "cdvae",
    "redundant-classifier",
    "essential-classifier",
    "defense-cdvae",
    "defense-classifier",
    "baseline",
    "finetuned",
]

PARTS: tuple[Part, ...] = get_args(Part)
"""In the paper's order."""

PART_OF_TABLE: dict[int, Part] = {
    1: "study",
    2: "study",
    3: "study",
    4: "detection",
    5: "detection",
    6: "grey-box",
    7: "white-box",
}
PART_OF_FIGURE: dict[int, Part] = {2: "study", 3: "study", 4: "search", 5: "search"}
_TABLE_3, _TABLE_5 = 3, 5
"""5: Table 4 on restricted ImageNet. 3 alone needs classifiers of G(x) and R(x)."""
_EPSILON: dict[Norm, float] = {"linf": 8 / 255, "l2": 1.0}
"""The paper's radii."""


class Step(NamedTuple):
    """A model to train or a report to make."""

    kind: ModelKind | Part
    option: str = ""
    """Which baseline, which norm."""

    def __str__(self) -> str:
        return _STEP_NAMES[self.kind].format(self.option)


_STEP_NAMES: dict[ModelKind | Part, str] = {
    "classifier": "classifier of x",
    "cdvae": "CD-VAE",
    "redundant-classifier": "classifier of G(x)",
    "essential-classifier": "classifier of R(x)",
    "defense-cdvae": "CD-VAE of the defence",
    "defense-classifier": "classifier of G(x) of the defence",
    "baseline": "baseline {}",
    "finetuned": "adversarial fine-tuning, {}",
    "study": "empirical study",
    "detection": "detection",
    "detection-reference": "detection by the reference protocol",
    "grey-box": "grey-box defence",
    "white-box": "white-box defence",
    "search": "search for gamma",
}

Training = TypeVar("Training", bound=TrainingJobConfig)


@dataclass(frozen=True, kw_only=True, slots=True)
class RecipeConfig:
    """Presets of the other jobs, and what a reproduction changes of them."""

    cdvae: str = "quickstart"
    """Preset of jobs/train.py: the CD-VAE of Tables 1-4, and but for its gamma that of 6 and 7."""
    classifier: str = "quickstart"
    """Preset of jobs/train_classifier.py: classifiers of x, of G(x) and of R(x)."""
    study: str = "quickstart"
    """Preset of jobs/analyze.py."""
    detection: str = "quickstart"
    """Preset of jobs/detect.py."""
    finetune: str = "quickstart"
    """Preset of jobs/finetune_adversarial.py."""
    baseline: str = "quickstart"
    """Preset of jobs/train_baseline.py."""
    grey_box: str = "grey-box-quickstart"
    """Preset of jobs/evaluate_defense.py for Table 6."""
    white_box: str = "quickstart"
    """Preset of jobs/evaluate_defense.py for Table 7."""
    search: str = "quickstart"
    """Preset of jobs/tune_gamma.py."""
    reference_protocol: bool = False
    """Detection also as the published codes do it, their artefacts included."""
    defense_gamma: float = 2e-3
    """gamma of the CD-VAE of Tables 6 and 7, > 0; the paper's for CIFAR-10."""
    defense_train_limit: int | None = None
    """Training images of that CD-VAE and of its classifier. None: as the presets say."""
    grey_box_baselines: tuple[BaselineName, ...] = ("at-pgd-linf", "hgd", "ape-gan")
    """Rows of Table 6 besides Normal and Ours."""
    white_box_baselines: tuple[BaselineName, ...] = ("at-pgd-linf", "trades")
    """Rows of Table 7 besides Normal and Ours."""
    white_box_norms: tuple[Norm, ...] = ("linf",)
    """Fine-tuned rows of Table 7: Ours-Linf, Ours-L2."""
    baselines_start_trained: bool = True
    """Start adversarial training from the plain classifier's weights, as few epochs must.
    Purifiers are always trained before it."""

    def __post_init__(self) -> None:
        above("recipe.defense_gamma", self.defense_gamma, 0.0)
        if self.defense_train_limit is not None:
            at_least("recipe.defense_train_limit", self.defense_train_limit, 1)


@dataclass(frozen=True, kw_only=True, slots=True)
class ReproduceConfig:
    """Makes tables and figures of the paper, reuses what is stored, and lays out one report."""

    table: tuple[int, ...] = ()
    """Numbers of the paper's tables: 1 2 3 4 6 7, or 5 with images of restricted ImageNet. Neither
    --table nor --figure: everything that the preset's images have."""
    figure: tuple[int, ...] = ()
    """Numbers of the paper's figures: 2 3 4 5."""
    recipe: RecipeConfig = field(default_factory=RecipeConfig)
    """Of which presets each step is made."""
    space: Path | None = None
    """A file of the values of gamma for Figures 4 and 5; none: tune_spaces/gamma.toml."""
    data: DataConfig = field(default_factory=DataConfig)
    """Images of every step. A limit holds for all of them, besides their presets' own."""
    seed: int | None = None
    """Another seed for every training, attack and interval: >= 0. None: the presets'."""
    max_concurrent: int = 1
    """Trials of Figure 4 at once: >= 1."""
    resources: ResourcesConfig = field(default_factory=ResourcesConfig)
    """Workers of each training."""
    pool: PoolConfig = field(default_factory=PoolConfig)
    """Workers of attacks, features and answers."""
    tracking: TrackingConfig = field(default_factory=TrackingConfig)
    """MLflow: a run for the report, and nested in it one for each step that is not there yet."""
    storage: str = "./runs"
    """Root of everything that jobs store: a folder, or an object-storage URI such as s3://..."""
    summary: Path | None = None
    """Write the final numbers to this JSON file."""

    def __post_init__(self) -> None:
        if self.seed is not None:
            at_least("seed", self.seed, 0)
        at_least("max_concurrent", self.max_concurrent, 1)
        require(
            bool(self.storage),
            "storage",
            got="nothing",
            expected="a folder or an object-storage URI",
            remedy="set --storage",
        )
        self._require_recipe()
        for what, asked, known in (
            ("table", self.table, PART_OF_TABLE),
            ("figure", self.figure, PART_OF_FIGURE),
        ):
            strange = [number for number in asked if number not in known]
            require(
                not strange and len(set(asked)) == len(asked),
                what,
                got=" ".join(map(str, asked)),
                expected=f"some of {' '.join(map(str, known))}, each once",
                remedy=f"set --{what} to numbers of the paper's {what}s that hold results",
            )
        has_table_5 = self._detection_table == _TABLE_5
        wrong = _TABLE_5 if not has_table_5 else 4
        require(
            wrong not in self.table,
            "table",
            got=f"{wrong} with recipe.detection {self.recipe.detection}",
            expected=f"{self._detection_table}: the table of these images",
            remedy=f"ask for --table {self._detection_table}, or choose another preset",
        )

    def _require_recipe(self) -> None:
        """Finds before the first step what would stop the last one, maybe days later."""
        recipe = self.recipe
        preset(recipe.cdvae)
        classifier_preset(recipe.classifier)
        study_preset(recipe.study)
        finetune_preset(recipe.finetune)
        baseline_preset(recipe.baseline)
        gamma_preset(recipe.search)
        for what, name, table in (
            ("recipe.grey_box", recipe.grey_box, "grey-box"),
            ("recipe.white_box", recipe.white_box, "white-box"),
        ):
            found = defense_preset(name).table
            require(
                found == table,
                what,
                got=f"{name}, a preset of the {found} table",
                expected=f"one of the {table} table",
                remedy=f"set --{what.replace('_', '-')} to such a preset",
            )
        rows: tuple[tuple[str, tuple[str, ...]], ...] = (
            ("recipe.grey_box_baselines", recipe.grey_box_baselines),
            ("recipe.white_box_baselines", recipe.white_box_baselines),
            ("recipe.white_box_norms", recipe.white_box_norms),
        )
        for what, names in rows:
            require(
                len(set(names)) == len(names),
                what,
                got=" ".join(names),
                expected="each name once",
                remedy=f"set --{what.replace('_', '-')} to different ones",
            )

    # --- which results --------------------------------------------------------------------------

    @property
    def _detection_table(self) -> int:
        is_imagenet = detection_preset(self.recipe.detection).paper_table == "table-5"
        return _TABLE_5 if is_imagenet else 4

    @property
    def tables(self) -> tuple[int, ...]:
        """Numbers of the tables that are made."""
        if self.table or self.figure:
            return tuple(sorted(self.table))
        return tuple(n for n in PART_OF_TABLE if n not in (4, 5) or n == self._detection_table)

    @property
    def figures(self) -> tuple[int, ...]:
        """Numbers of the figures that are made."""
        return tuple(sorted(self.figure)) if self.table or self.figure else tuple(PART_OF_FIGURE)

    def results_of(self, part: Part) -> list[str]:
        """What is asked for of a part, as "Table 1"."""
        if part == "detection-reference":
            wanted = self.results_of("detection") if self.recipe.reference_protocol else []
            return [f"{result}, reference protocol" for result in wanted]
        return [
            *(f"Table {n}" for n in self.tables if PART_OF_TABLE[n] == part),
            *(f"Figure {n}" for n in self.figures if PART_OF_FIGURE[n] == part),
        ]

    @property
    def images(self) -> dict[str, Any]:
        """Which images every step takes, wherever they lie, as JSON values."""
        return {name: value for name, value in to_dict(self.data).items() if name != "path"}

    @property
    def parts(self) -> list[Part]:
        """The reports that are needed, in the paper's order."""
        return [part for part in PARTS if self.results_of(part)]

    @property
    def baselines(self) -> list[BaselineName]:
        """Those that the parts need, in the order of their list."""
        wanted = {
            *(self.recipe.grey_box_baselines if "grey-box" in self.parts else ()),
            *(self.recipe.white_box_baselines if "white-box" in self.parts else ()),
        }
        return [name for name in BASELINE_NAMES if name in wanted]

    @property
    def steps(self) -> list[Step]:
        """Everything that is made or found, in an order in which each finds what it rests on."""
        parts = set(self.parts)
        norms = self.recipe.white_box_norms if "white-box" in parts else ()
        needed: list[tuple[Step, bool]] = [
            (Step("classifier"), True),
            (Step("cdvae"), bool(parts & {"study", "detection"})),
            (Step("redundant-classifier"), _TABLE_3 in self.tables),
            (Step("essential-classifier"), _TABLE_3 in self.tables),
            (Step("study"), "study" in parts),
            (Step("detection"), "detection" in parts),
            (Step("detection-reference"), "detection-reference" in parts),
            (Step("defense-cdvae"), "grey-box" in parts or bool(norms)),
            (Step("defense-classifier"), "grey-box" in parts),
            *((Step("baseline", name), True) for name in self.baselines),
            *((Step("finetuned", norm), True) for norm in norms),
            (Step("grey-box"), "grey-box" in parts),
            (Step("white-box"), "white-box" in parts),
            (Step("search"), "search" in parts),
        ]
        return [step for step, is_needed in needed if is_needed]

    # --- trainings ------------------------------------------------------------------------------

    def cdvae_job(self) -> TrainConfig:
        """The CD-VAE of Tables 1-5."""
        return self._training(preset(self.recipe.cdvae))

    def defense_cdvae_job(self) -> TrainConfig:
        """The CD-VAE of Tables 6 and 7."""
        base = self._training(preset(self.recipe.cdvae), limit=self.recipe.defense_train_limit)
        return replace(base, objective=replace(base.objective, gamma=self.recipe.defense_gamma))

    def classifier_job(self, kind: InputKind = "images", cdvae: str = "") -> ClassifierJobConfig:
        """A classifier of x, or of a part behind the CD-VAE of Tables 1-5."""
        base = self._training(classifier_preset(self.recipe.classifier))
        return replace(base, input=kind, cdvae=cdvae)

    def defense_classifier_job(self, cdvae: str) -> ClassifierJobConfig:
        """D_G of Table 6, behind the CD-VAE of Tables 6 and 7."""
        base = self._training(
            classifier_preset(self.recipe.classifier), limit=self.recipe.defense_train_limit
        )
        return replace(base, input="class_redundant", cdvae=cdvae)

    def baseline_job(self, name: BaselineName, classifier: str) -> BaselineJobConfig:
        """A defence of other people's."""
        trained = self.recipe.baselines_start_trained or baseline(name).is_purifier
        return replace(
            self._training(baseline_preset(self.recipe.baseline)),
            baseline=name,
            classifier=classifier if trained else "",
        )

    def finetune_job(self, norm: Norm, cdvae: str, classifier: str) -> FinetuneJobConfig:
        """Ours of Table 7."""
        base = self._training(finetune_preset(self.recipe.finetune))
        attack = base.attack
        if norm != attack.norm:
            attack = replace(attack, norm=norm, epsilon=_EPSILON[norm])
        return replace(
            base,
            cdvae=cdvae,
            classifier=classifier,
            attack=attack,
            objective=replace(base.objective, gamma=self.recipe.defense_gamma),
        )

    # --- reports --------------------------------------------------------------------------------

    def study_job(
        self, cdvae: str, classifier: str, *, redundant: str = "", essential: str = ""
    ) -> StudyJobConfig:
        """Tables 1-3, Figures 2 and 3."""
        return replace(
            study_preset(self.recipe.study),
            checkpoint=cdvae,
            classifier=classifier,
            redundant_classifier=redundant,
            essential_classifier=essential,
            **self._report(study_preset(self.recipe.study).data),
        )

    def detection_job(
        self, cdvae: str, classifier: str, *, protocol: Protocol = "strict"
    ) -> DetectionJobConfig:
        """Table 4 or 5."""
        base = detection_preset(self.recipe.detection)
        return replace(
            base,
            checkpoint=cdvae,
            classifier=classifier,
            protocol=protocol,
            **self._report(base.data),
        )

    def grey_box_job(self, source: str, defenses: tuple[str, ...], cdvae: str) -> DefenseJobConfig:
        """Table 6."""
        base = defense_preset(self.recipe.grey_box)
        return replace(
            base, source=source, defenses=defenses, cdvae=(cdvae,), **self._report(base.data)
        )

    def white_box_job(self, defenses: tuple[str, ...]) -> DefenseJobConfig:
        """Table 7."""
        base = defense_preset(self.recipe.white_box)
        return replace(base, defenses=defenses, **self._report(base.data))

    def search_job(self, classifier: str) -> ObjectiveSearchConfig:
        """Figures 4 and 5."""
        base = gamma_preset(self.recipe.search)
        return replace(
            base,
            classifier=classifier,
            space=self.space,
            training_seed=self.seed,
            max_concurrent=self.max_concurrent,
            resources=self.resources,
            **self._report(base.data),
        )

    # --- what steps share -----------------------------------------------------------------------

    def _images(self, own: DataConfig, limit: int | None = None) -> DataConfig:
        """The images of this config under a preset's limits, streamed if the preset does so."""
        train_limit = _smallest(own.train_limit, self.data.train_limit, limit)
        is_streamed = own.streaming and self.data.streaming and train_limit is None
        return replace(
            self.data if is_streamed else self.data.in_memory(),
            train_limit=train_limit,
            test_limit=_smallest(own.test_limit, self.data.test_limit),
        )

    def _training(self, base: Training, limit: int | None = None) -> Training:
        training = base.training
        every = max(self.resources.checkpoint_every, base.resources.checkpoint_every)
        return replace(
            on_images(base, self._images(base.data, limit)),
            training=training if self.seed is None else replace(training, seed=self.seed),
            resources=replace(self.resources, checkpoint_every=every),
            tracking=self.tracking,
            storage=self.storage,
            resume=True,
        )

    def _report(self, own: DataConfig) -> dict[str, Any]:
        return {
            "data": self._images(own),
            **({} if self.seed is None else {"seed": self.seed}),
            "pool": self.pool,
            "tracking": self.tracking,
            "storage": self.storage,
        }


def _smallest(*limits: int | None) -> int | None:
    known = [limit for limit in limits if limit is not None]
    return min(known) if known else None


_CIFAR10 = DataConfig(source="cifar10", path="./data", image_size=32)


_RESTRICTED_DEFENSE_GAMMA = 2e-1
"""The paper's, section 4.3."""


def _recipe(name: str, **changed: Any) -> RecipeConfig:
    """A recipe of the presets of one name."""
    jobs = ("cdvae", "classifier", "study", "detection", "finetune", "baseline", "search")
    return RecipeConfig(**{**dict.fromkeys(jobs, name), **changed})


REPRODUCE_PRESETS: dict[str, Preset[ReproduceConfig]] = {
    "quickstart": Preset(
        "digits, small networks: everything within about an hour on a laptop (the default)",
        ReproduceConfig(),
    ),
    "smoke": Preset(
        "some digits, tiny networks, attacks of few steps: for tests",
        ReproduceConfig(
            recipe=_recipe(
                "smoke",
                grey_box="grey-box-smoke",
                white_box="smoke",
                grey_box_baselines=("hgd",),
                white_box_baselines=("at-pgd-linf",),
            ),
        ),
    ),
    "cifar10-small": Preset(
        "CIFAR-10 with small networks, on a part of its images, for a CPU: hours",
        ReproduceConfig(
            recipe=_recipe(
                "cifar10-small",
                grey_box="grey-box-small",
                white_box="white-box-small",
                defense_train_limit=20_000,
            ),
            data=_CIFAR10,
        ),
    ),
    "cifar10-tiny": Preset(
        "10,000 images of CIFAR-10, networks of half the width, Table 4 by both protocols: several "
        "seeds on a CPU",
        ReproduceConfig(
            recipe=_recipe(
                "cifar10-tiny",
                grey_box="grey-box-tiny",
                white_box="white-box-tiny",
                reference_protocol=True,
            ),
            data=_CIFAR10,
        ),
    ),
    "cifar10": Preset(
        "CIFAR-10 by the paper's text, every row of its tables: days on GPUs",
        ReproduceConfig(
            recipe=_recipe(
                "cifar10",
                grey_box="grey-box",
                white_box="white-box",
                grey_box_baselines=(
                    *("at-pgd-linf", "trades", "at-pgd-l2", "at-stadv", "hgd", "ape-gan"),
                ),
                white_box_baselines=BASELINE_NAMES,
                white_box_norms=("linf", "l2"),
                baselines_start_trained=False,
            ),
            data=_CIFAR10,
        ),
    ),
    "restricted-tiny": Preset(
        "23 classes of restricted ImageNet at 64 x 64, small networks, for a CPU: hours",
        ReproduceConfig(
            recipe=_recipe(
                "restricted-tiny",
                grey_box="grey-box-restricted-tiny",
                white_box="white-box-restricted-tiny",
                defense_gamma=_RESTRICTED_DEFENSE_GAMMA,
            ),
            data=RESTRICTED_TINY,
        ),
    ),
    "restricted-imagenet": Preset(
        "restricted ImageNet by the paper's text, streamed: weeks on GPUs",
        ReproduceConfig(
            recipe=_recipe(
                "restricted-imagenet",
                grey_box="grey-box-restricted",
                white_box="white-box-restricted",
                defense_gamma=_RESTRICTED_DEFENSE_GAMMA,
                grey_box_baselines=("at-pgd-l2", "hgd", "ape-gan"),
                baselines_start_trained=False,
            ),
            data=preset("restricted-imagenet").data,
        ),
    ),
}


def reproduce_preset(name: str) -> ReproduceConfig:
    """The config of a preset.

    Raises:
        ConfigError: no preset has that name.
    """
    return chosen(REPRODUCE_PRESETS, name, job="jobs/reproduce.py")
