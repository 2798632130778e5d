"""The tables of speed in the README, from the committed records."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from measures import MEASURES

from cdvae_ray.evaluation.layout import markdown_table

Record = Mapping[str, Any]
"""A benchmark's record: see record.py."""


class Said(NamedTuple):
    """How a ratio is said."""

    number: Callable[[float], str]
    unit: str


TIMES = Said("{:.2f}".format, "times as fast")
COST = Said(lambda ratio: f"{ratio - 1:+.1%}", "time")
SHARE = Said("{:.1%}".format, "of its rate")

JOBS: dict[str, tuple[str, Said]] = {
    "our step / a plain eager step": (
        "our training step, with the allocator settings that workers have, against a plain eager "
        "one (per-sample PIL DataLoader in the same process, NCHW, unfused AdamW)",
        TIMES,
    ),
    "an epoch on Ray, tracked / the bare loop, a core to spare": (
        "an epoch of the job on Ray, tracked in MLflow, against the same loop without both, one "
        "core left to Ray",
        COST,
    ),
    "an epoch on Ray / the bare loop, a core to spare": ("the same without tracking", COST),
    "an epoch on Ray, tracked / the bare loop, on all cores": (
        "the same, tracked, with training on all cores, so that Ray's own processes take turns "
        "with it",
        COST,
    ),
    "an epoch on Ray / the bare loop, on all cores": ("the same without tracking", COST),
    "epochs an hour, 2 workers / 1 worker": (
        "`jobs/train.py` with two workers of a thread each, which divide the batch, against one",
        TIMES,
    ),
    "epochs an hour, 1 worker of 2 threads / 1 worker": (
        "the same with one worker of two threads",
        TIMES,
    ),
    "a training whose checkpoints overlap / are waited for, as slow as an epoch": (
        "a training that writes each checkpoint while the next epoch trains "
        "(`--resources.overlap-checkpoints`) against one that waits, storage taking an epoch's "
        "time for each",
        COST,
    ),
    "a training whose checkpoints overlap / are waited for, local disk": (
        "the same on a local disk",
        COST,
    ),
    "images/s, jobs/attack.py / the bare loop": (
        "`jobs/attack.py` with one actor, storing and tracking, against the bare attack loop, one "
        "core left to Ray",
        SHARE,
    ),
    "images/s, 2 workers / 1 worker": ("`jobs/attack.py` with two actors against one", TIMES),
}
"""By a measure's name: what it is called there, and how its ratio is said."""

ATTACKS = {
    "PGD-Linf-10": "PGD L-inf, 10 steps",
    "PGD-L2-10": "PGD L2, 10 steps",
    "C&W-L2-20": "C&W L2, 20 steps",
    "StAdv-10": "StAdv, 10 steps",
    "FGSM": "FGSM",
}
IMPLEMENTATIONS = {
    "ours, channels_last": "ours, channels-last",
    "ours": "ours",
    "ours, best": "ours, keeping the best",
    "torchattacks": "torchattacks",
    "foolbox": "foolbox",
    "ART": "ART",
}

DETECTORS = {
    "KD, 10,000 references, 2,000 queries": ("kernel_density_10k", "scikit-learn, exact"),
    "KD, 50,000 references, 1,000 queries": ("kernel_density_50k", "scikit-learn, exact"),
    "LID, the reference's minibatches": ("reference_lid", "the reference's loops"),
    "MD, 10,000 scores": ("mahalanobis_score", "the class loop of Lee et al., once"),
    "MD, fitted to 50,000": ("mahalanobis_fit", "scikit-learn"),
    "LID, 2,000 against 50,000": ("neighbours_50k", "scikit-learn, brute force, float64"),
}
WHOLE_MAHALANOBIS = "the reference's whole function at m = 0"


def speed_tables(records: Mapping[str, Record]) -> dict[str, str]:
    """Markdown by the name of its marks.

    Args:
        records: by name, those that are there.
    """
    of_one = {"attacks": attacks_table, "detectors": detectors_table}
    return {"jobs": jobs_table(records)} | {
        name: table(records[name]) if name in records else "Not measured."
        for name, table in of_one.items()
    }


def jobs_table(records: Mapping[str, Record]) -> str:
    """Steps, epochs and jobs: the ratio, its rounds, and where it was measured."""
    measures = {each.name: each for each in MEASURES}
    lines = []
    for name, (what, said) in JOBS.items():
        made = records.get(measures[name].record)
        found = measures[name].of(made)
        if made and found:
            median, low, high = (said.number(each) for each in found)
            lines.append([what, f"{median} {said.unit}", f"{low} to {high}", _made(made)])
    return markdown_table(["measured", "median", "rounds", "made"], lines)


def attacks_table(made: Record) -> str:
    """Seconds of attacks in units of a bare loop of as many gradients."""
    results = made["results"]["WRN-10-1"]
    lines = [
        [shown, *(_median(results[attack].get(each), ".2f") for each in IMPLEMENTATIONS)]
        for attack, shown in ATTACKS.items()
    ]
    return f"{markdown_table(['', *IMPLEMENTATIONS.values()], lines)}\n\n{_made(made)}."


def detectors_table(made: Record) -> str:
    """Times as fast as the reference formulation, by precision."""
    results = made["results"]
    lines = []
    for shown, (row, reference) in DETECTORS.items():
        ratio = results[row]["ratio"]
        float32, float64 = ratio.get("ours, float32"), ratio.get("ours, float64")
        lines.append([shown, _median(float32), _median(float64 or ratio.get("ours, exact"))])
        lines[-1].append(reference)
        if whole := ratio.get(WHOLE_MAHALANOBIS):
            against_whole = [
                f"{each['median'] / whole['median']:.3g}" for each in (float32, float64)
            ]
            lines.append(
                [
                    "the same against all that their code does at m = 0",
                    *against_whole,
                    "the loop twice, and a gradient",
                ]
            )
    return f"{markdown_table(['', 'float32', 'float64', 'reference'], lines)}\n\n{_made(made)}."


def _median(found: Mapping[str, float] | None, how: str = ".3g") -> str:
    return "" if found is None else format(found["median"], how)


def _made(made: Record) -> str:
    return f"{made['date']}, {made['machine']}"
