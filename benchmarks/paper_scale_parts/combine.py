"""At home: Table 4 as the paper has it, layers weighted by a regression that saw the attack."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

from cdvae_ray.config.detection import SplitSettings
from cdvae_ray.errors import DataError
from cdvae_ray.evaluation.detection_protocol import Detection, MethodScores, same_attack
from cdvae_ray.evaluation.detection_table import detection_row

from .attacked_images import SEED
from .detection import PAPERS_PAIRS, SPACES, SUBSETS, method_scores, plain_row
from .stage import write_json
from .tensor_file import read_tensors


def combine(out: Path, *, resamples: int) -> int:
    """Fits and tests on each attack's own scores (other images each); returns how many rows.

    Needs scikit-learn.

    Args:
        out: of the run; gets combined.json.
        resamples: behind the intervals.

    Raises:
        CheckpointError: there are no scores.
    """
    found = read_tensors(out / "scores.safetensors")
    rows = []
    for unit, facts in found.facts.items():
        tensors = {
            name.removeprefix(f"{unit}/"): each
            for name, each in found.tensors.items()
            if name.startswith(f"{unit}/")
        }
        for space in SPACES:
            for method in ("KD", "LID", "MD"):
                scores = method_scores(
                    tensors,
                    facts["layers"],
                    method=method,
                    space=space,
                    target=facts["target"],
                    attack=facts["attack"],
                    dataset=facts["dataset"],
                )
                rows += _rows(scores, facts, resamples=resamples)
    write_json(out / "combined.json", rows)
    return len(rows)


def _rows(scores: MethodScores, facts: dict[str, Any], *, resamples: int) -> list[dict[str, Any]]:
    """One detector's rows: of all attacks and of the successful ones."""
    rows = []
    for subset in SUBSETS:
        row: dict[str, Any] = {
            "table": "4",
            "row": f"{scores.method} on {scores.space}, {subset} attacks",
            "as_in_the_paper": (facts["target"], scores.space) in PAPERS_PAIRS,
            "attack": facts["attack"],
            "threat_model": facts["target"],
        }
        try:
            detection = _trained(scores, facts["attack"])
            if subset == "successful":
                detection = detection.of_successful()
            row |= plain_row(detection_row(detection, seed=SEED, num_resamples=resamples))
            row["n"] = row["adversarial_images"]
        except DataError as error:
            row |= {"n": 0, "no row": str(error)}
        rows.append(row)
    return rows


@functools.lru_cache(maxsize=1)
def _trained(scores: MethodScores, attack: str) -> Detection:
    """Trained once for both subsets of what it is tested on."""
    return same_attack(scores, attack, split=SplitSettings(seed=SEED), subset="all")
