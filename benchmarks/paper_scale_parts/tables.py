"""Rows of Tables 1-4 and 6, unit by unit, each stored as soon as it is there."""

from __future__ import annotations

import functools
import json
import re
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch

from cdvae_ray.config.attack import AttackConfig, ThreatModelName
from cdvae_ray.config.classifier import INPUT_KINDS
from cdvae_ray.core.classifier import ImageClassifier
from cdvae_ray.core.features import features_of_classifier
from cdvae_ray.core.threat_models import THREAT_MODELS
from cdvae_ray.data.batches import evaluation_batches
from cdvae_ray.data.images import Splits
from cdvae_ray.evaluation.classification import evaluate_classifier
from cdvae_ray.evaluation.decomposition import evaluate_clean
from cdvae_ray.evaluation.frechet import feature_moments, frechet_distance
from cdvae_ray.evaluation.intervals import wilson
from cdvae_ray.evaluation.moments import column_moments, paired_moments
from cdvae_ray.evaluation.study_columns import (
    NORMS,
    PARTS,
    DecompositionColumns,
)

from .attacked_images import (
    SEED,
    AttackedImages,
    Shown,
    attack_images,
    first_images,
    predictions,
)
from .clock import Clock
from .detection import TARGETS, Detection
from .models import JOINT, Models
from .progress import Say
from .scale_preset import ScalePreset
from .stage import Stage, write_json
from .tensor_file import read_tensors, write_tensors

Rows = list[dict[str, Any]]
_NO_ATTACK = {
    "threat_model": "none",
    "attacked": "nothing: clean images",
    "attack": "none",
    "epsilon": None,
    "num_steps": None,
}
_STUDY_ATTACK = "PGD-Linf"
TABLES = ("1", "2", "3", "4", "6")


class Unit(NamedTuple):
    """What is computed and stored together: a stop loses at most one."""

    name: str
    passes: int
    """About how many images go forward and back through a network: what it costs."""
    run: Callable[[], Rows]

    @property
    def tables(self) -> set[str]:
        """Which of `TABLES` its rows are of."""
        return set(self.name.split(" ")) & set(TABLES)


class Tables:
    """All units of a run, in the order of what they tell for their cost.

    Args:
        preset: of the run.
        models: trained.
        splits: training images for the detectors, test images for everything.
        dataset: its name.
        device: of the models.
        folder: of the stage.
        say: gets lines.
    """

    def __init__(
        self,
        preset: ScalePreset,
        models: Models,
        splits: Splits,
        dataset: str,
        device: torch.device,
        folder: Path,
        say: Say,
    ) -> None:
        self._preset, self._models, self._splits = preset, models, splits
        self._dataset, self._device, self._folder = dataset, device, folder
        self._detection = Detection(
            preset,
            models,
            splits.train,
            first_images(splits.test, preset.detection_images, device),
            device,
            say,
        )

    def units(self) -> list[Unit]:
        """Table 3, clean reconstruction, Tables 1 and 2, PGD of 6, then 4 and the rest of 6."""
        preset, test = self._preset, len(self._splits.test)
        classifiers: dict[str, ImageClassifier] = {JOINT: self._models.joint}
        for kind, classifier in self._models.classifiers.items():
            classifiers[kind] = classifier
        cross = [
            Unit(f"3 {name}", test, functools.partial(self._cross, name, classifier))
            for name, classifier in classifiers.items()
        ]
        # The classifier of R(x) comes last, if at all, and the others keep their places.
        units, last = cross[:3], cross[3:]
        units.append(Unit("3 reconstruction", test, self._reconstruction))
        units.append(Unit("1 2", preset.study_images * 8, self._study))
        detection = [
            Unit(
                f"4 {target} {attack.label}",
                preset.detection_images * (20 + 2 * (attack.num_steps or 1)),
                functools.partial(self._detect, target, attack),
            )
            for attack in preset.detection
            for target in TARGETS
        ]
        targets: dict[ThreatModelName, tuple[AttackConfig, ...]] = {
            "classifier": preset.grey_box,
            "class-redundant": preset.white_box,
        }
        defense = [
            [
                Unit(
                    f"6 {model} {attack.label}",
                    preset.defense_images * 2 * (attack.num_steps or 1),
                    functools.partial(self._defend, model, attack),
                )
                for attack in attacks
            ]
            for model, attacks in targets.items()
        ]
        units.append(Unit("6 clean", preset.defense_images * 2, self._clean_defense))
        # Where time is short, one attack that transfers and one that does not come first.
        units += [first for first, *_ in defense]
        return units + detection + [each for _, *rest in defense for each in rest] + last

    def _cross(self, name: str, classifier: ImageClassifier) -> Rows:
        """Table 3: a classifier on x, G(x) and R(x) of all test images."""
        count = len(self._splits.test)
        batches = evaluation_batches(
            self._splits.test, batch_size=self._preset.batch_size, rank=0, world_size=1
        )
        tally = evaluate_classifier(classifier, batches, self._device, cdvae=self._models.cdvae)
        sums = tally.sums()
        return [
            {
                "table": "3",
                "row": f"trained on {name}, tested on {kind}",
                **_NO_ATTACK,
                "n": count,
                "top1": _share(int(sums[f"accuracy_on_{kind}"]), count),
                "top5": _share(int(sums[f"top5_accuracy_on_{kind}"]), count),
            }
            for kind in INPUT_KINDS
        ]

    def _reconstruction(self) -> Rows:
        """Section 4.1: accuracy of D(R(x)) and of the reconstruction."""
        batches = evaluation_batches(
            self._splits.test, batch_size=self._preset.batch_size, rank=0, world_size=1
        )
        tally = evaluate_clean(self._models.cdvae, batches, self._device)
        return [
            {
                "table": "4.1",
                "row": f"gamma {self._preset.objective.gamma:g}",
                **_NO_ATTACK,
                "n": tally.count,
                **tally.means(),
            }
        ]

    def _study(self) -> Rows:
        """Tables 1 and 2, and the correlation of latents of Figure 3, normalised units."""
        (attack,) = (each for each in self._preset.detection if each.label == _STUDY_ATTACK)
        shown = first_images(self._splits.test, self._preset.study_images, self._device)
        classifier = self._models.classifier("images")
        attacked = self._models.attacked("classifier")
        made = attack_images(attack, attacked, shown, batch_size=self._preset.batch_size)
        module = DecompositionColumns(
            self._models.cdvae, attacked, _Penultimate(classifier), units="normalized", seed=SEED
        )
        parts: dict[str, list[torch.Tensor]] = {}
        for batch in zip(
            *(
                torch.split(each, self._preset.batch_size)
                for each in (shown.images, made.images, shown.labels, shown.image_ids)
            ),
            strict=True,
        ):
            for name, values in module(*batch).items():
                parts.setdefault(name, []).append(values.cpu())
        columns = {name: torch.cat(values) for name, values in parts.items()}
        common = _attacked("classifier", attack, made)
        count = len(shown.labels)
        cosines = column_moments(columns["cosine"])
        rows: Rows = [
            {
                "table": "1",
                "row": f"{part}(x) vs. {part}(x')",
                **common,
                "n": count,
                "cosine_mean": float(cosines.mean_a[place]),
                "cosine_std": float(cosines.std_a()[place]),
                "frechet_distance": frechet_distance(
                    feature_moments(columns[f"features/{part}(x)"]),
                    feature_moments(columns[f"features/{part}(x')"]),
                ),
                "frechet_features": "penultimate layer of the classifier on x, not Inception",
            }
            for place, part in enumerate("GR")
        ]
        moments = {norm: column_moments(columns[norm]) for norm in NORMS}
        rows += [
            {
                "table": "2",
                "row": part,
                **common,
                "n": count,
                **{f"{norm}_mean": float(each.mean_a[place]) for norm, each in moments.items()},
                **{f"{norm}_std": float(each.std_a()[place]) for norm, each in moments.items()},
            }
            for place, part in enumerate(PARTS)
        ]
        r = paired_moments(columns["latent"], columns["latent_adversarial"]).correlation()
        varying = r[~torch.isnan(r)]
        rows.append(
            {
                "table": "Figure 3",
                "row": "correlation of z and z' by dimension",
                **common,
                "n": count,
                "dimensions": len(r),
                "dimensions_that_vary": len(varying),
                **{
                    name: float(torch.quantile(varying, at)) if len(varying) else None
                    for name, at in {"min": 0.0, "q05": 0.05, "median": 0.5}.items()
                },
            }
        )
        return rows

    def _detect(self, target: ThreatModelName, attack: AttackConfig) -> Rows:
        unit = self._detection.unit(target, attack, self._dataset)
        path = self._folder / "scores" / f"{_slug(f'{target} {attack.label}')}.safetensors"
        path.parent.mkdir(exist_ok=True)
        write_tensors(path, unit.scores, unit.facts)
        return unit.rows

    def _clean_defense(self) -> Rows:
        shown = first_images(self._splits.test, self._preset.defense_images, self._device)
        return self._answers(shown, shown.images, _NO_ATTACK)

    def _defend(self, threat_model: ThreatModelName, attack: AttackConfig) -> Rows:
        """Table 6: images made against one function, answered by D(x) and by D_G(G(x))."""
        shown = first_images(self._splits.test, self._preset.defense_images, self._device)
        made = attack_images(
            attack,
            self._models.attacked(threat_model),
            shown,
            batch_size=self._preset.batch_size,
        )
        return self._answers(shown, made.images, _attacked(threat_model, attack, made))

    def _answers(self, shown: Shown, images: torch.Tensor, common: dict[str, Any]) -> Rows:
        defenses: dict[str, ThreatModelName] = {"none": "classifier", "G(x)": "class-redundant"}
        rows: Rows = []
        for defense, name in defenses.items():
            answers = predictions(
                self._models.attacked(name), images, batch_size=self._preset.batch_size
            )
            right = int((answers == shown.labels).sum())
            rows.append(
                {
                    "table": "6",
                    "row": f"defence {defense}, attack {common['attack']}",
                    **common,
                    "answers": THREAT_MODELS[name].attacked,
                    "is_white_box": common["threat_model"] == name,
                    "gamma": self._preset.objective.gamma,
                    "n": len(shown.labels),
                    "accuracy": _share(right, len(shown.labels)),
                }
            )
        return rows


def fill_tables(
    stage: Stage, tables: Tables, clock: Clock, say: Say, *, only: Sequence[str] | None
) -> bool:
    """Runs the units that are not stored yet; returns whether all units are now.

    Args:
        stage: its folder.
        tables: whose units.
        clock: of this call.
        say: gets lines.
        only: of these tables alone, in the order of the units; None: of all.

    Raises:
        OutOfBudgetError: the next unit does not fit into this call.
    """
    units = tables.units()
    folder = stage.folder / "rows"
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / f"{place:02d}-{_slug(unit.name)}.json" for place, unit in enumerate(units)]
    # By table, of its last unit; what no table tells is taken to be as fast as the fastest.
    seconds_a_pass: dict[str, float] = dict(stage.results.get("seconds_a_pass", {}))
    for path, unit in zip(paths, units, strict=True):
        if path.is_file() or not (only is None or unit.tables & set(only)):
            continue
        table = unit.name.partition(" ")[0]
        fastest = min(seconds_a_pass.values(), default=0.0)
        clock.begin(unit.passes * seconds_a_pass.get(table, fastest))
        started = time.perf_counter()
        rows = unit.run()
        seconds = time.perf_counter() - started
        write_json(path, [{**row, "seconds": seconds} for row in rows])
        seconds_a_pass[table] = seconds / unit.passes
        done = sum(each.is_file() for each in paths)
        stage.note(
            seconds=seconds,
            reached=f"{done} of {len(units)} units",
            seconds_a_pass=seconds_a_pass,
        )
        say(f"tables: {unit.name}: {len(rows)} rows in {seconds:.1f} s ({done}/{len(units)})")
    return all(path.is_file() for path in paths)


def stored_rows(stage_folder: Path) -> Rows:
    """All rows so far, in the order of the units."""
    rows: Rows = []
    for path in sorted((stage_folder / "rows").glob("*.json")):
        rows += json.loads(path.read_text())
    return rows


def gather_scores(stage_folder: Path, out: Path) -> None:
    """All scores of Table 4 so far in one file, for the command `combine`."""
    tensors: dict[str, torch.Tensor] = {}
    facts: dict[str, Any] = {}
    for path in sorted((stage_folder / "scores").glob("*.safetensors")):
        found = read_tensors(path)
        facts[path.stem] = found.facts
        tensors |= {f"{path.stem}/{name}": each for name, each in found.tensors.items()}
    if facts:
        write_tensors(out, tensors, facts)


class _Penultimate(torch.nn.Module):
    """What the linear layer of a classifier on x sees of images in [0, 1]."""

    def __init__(self, classifier: ImageClassifier) -> None:
        super().__init__()
        self.classifier = classifier

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return features_of_classifier(self.classifier, images)["penultimate"]


def _attacked(
    threat_model: ThreatModelName, attack: AttackConfig, made: AttackedImages
) -> dict[str, Any]:
    """What every row of an attack says."""
    return {
        "threat_model": threat_model,
        "attacked": THREAT_MODELS[threat_model].attacked,
        "attack": attack.label,
        "attack_settings": attack.describe(),
        "epsilon": attack.epsilon,
        "num_steps": attack.num_steps or 1,
        "fooled": int(made.success.sum()),
        "zero_gradient": made.zero_gradient,
        "nonfinite_gradient": made.nonfinite_gradient,
    }


def _share(right: int, count: int) -> list[float]:
    """A proportion and the ends of its 95 % interval."""
    return [right / count, *wilson(right, count)]


def _slug(name: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")
