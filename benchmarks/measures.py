"""What the benchmarks measure, where it stands in their records, and when it has become worse.

Every measure is a ratio: of ours to something that was measured in the same run, in turns with it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Literal, NamedTuple

REGRESSION = 0.10
"""How much worse than before is pointed out."""

Better = Literal["more", "less"]


class Spread(NamedTuple):
    """Median, least and most over rounds."""

    median: float
    low: float
    high: float


class Measure(NamedTuple):
    """A number of a record that says how fast something is."""

    group: str
    name: str
    record: str
    """File of benchmarks/records, without .json."""
    path: tuple[str, ...]
    """Where the record's results have it."""
    better: Better

    def of(self, record: Mapping[str, Any] | None) -> Spread | None:
        """The number in a record; None where it has none."""
        found: Any = record["results"] if record else None
        for key in self.path:
            found = found.get(key) if isinstance(found, Mapping) else None
        return None if found is None else Spread(found["median"], found["min"], found["max"])


class Comparison(NamedTuple):
    """A measure before and now."""

    measure: Measure
    before: Spread | None
    now: Spread | None

    @property
    def change(self) -> float | None:
        """Part of before by which the median became better (above 0) or worse (below)."""
        if self.before is None or self.now is None:
            return None
        grown = self.now.median / self.before.median - 1
        return grown if self.measure.better == "more" else -grown

    @property
    def is_regression(self) -> bool:
        """Whether it is worse by more than `REGRESSION`."""
        return self.change is not None and self.change < -REGRESSION

    @property
    def is_within_noise(self) -> bool:
        """Whether the rounds of before and now overlap, so that the change may be chance."""
        if self.before is None or self.now is None:
            return False
        return self.before.low <= self.now.high and self.now.low <= self.before.high


TRAINING, ATTACKS, DETECTORS = "training", "attacks", "detectors"
_ATTACKS = ("FGSM", "PGD-Linf-10", "PGD-L2-10", "C&W-L2-20", "StAdv-10")
_SPARE, _ALL = "train-job_with_a_core_to_spare", "train-job_on_all_cores"
_DETECTORS = {
    "KD, 10,000 references": ("kernel_density_10k", "ours, float32"),
    "KD, 50,000 references": ("kernel_density_50k", "ours, float32"),
    "KD in float64, 10,000 references": ("kernel_density_10k", "ours, float64"),
    "LID, the reference's minibatches": ("reference_lid", "ours, float64"),
    "MD, 10,000 scores": ("mahalanobis_score", "ours, float32"),
    "MD, fitted to 50,000": ("mahalanobis_fit", "ours, float64"),
    "LID's neighbours, exact, of 2,000 in 50,000": ("neighbours_50k", "ours, exact"),
}

MEASURES: tuple[Measure, ...] = (
    Measure(TRAINING, "our step / a plain eager step", "train-step", ("ratio",), "more"),
    *(
        Measure(TRAINING, f"an epoch on {what} / the bare loop, {cores}", record, (key,), "less")
        for what, key in (("Ray", "ratio_without_tracking"), ("Ray, tracked", "ratio"))
        for record, cores in ((_SPARE, "a core to spare"), (_ALL, "on all cores"))
    ),
    *(
        Measure(
            TRAINING, f"epochs an hour, {who} / 1 worker", "workers-train", ("ratio", who), "more"
        )
        for who in ("2 workers", "1 worker of 2 threads")
    ),
    *(
        Measure(
            TRAINING,
            f"a training whose checkpoints overlap / are waited for, {place}",
            "checkpoints",
            ("ratio", place),
            "less",
        )
        for place in ("local disk", "as slow as an epoch")
    ),
    *(
        Measure(
            ATTACKS,
            f"{attack}, channels-last, seconds / a bare loop of its gradients, channels-first",
            "attacks",
            ("WRN-10-1", attack, "ours, channels_last"),
            "less",
        )
        for attack in _ATTACKS
    ),
    *(
        Measure(
            ATTACKS,
            f"{attack} keeping the best, channels-first, seconds / the same loop",
            "attacks",
            ("WRN-10-1", attack, "ours, best"),
            "less",
        )
        for attack in _ATTACKS
    ),
    Measure(ATTACKS, "images/s, jobs/attack.py / the bare loop", "attack-job", ("ratio",), "more"),
    Measure(
        ATTACKS, "images/s, 2 workers / 1 worker", "workers-attack", ("ratio", "2 workers"), "more"
    ),
    *(
        Measure(
            DETECTORS,
            f"{name}, ours / the reference formulation",
            "detectors",
            (row, "ratio", how),
            "more",
        )
        for name, (row, how) in _DETECTORS.items()
    ),
)


def compare(
    before: Mapping[str, Mapping[str, Any]], now: Mapping[str, Mapping[str, Any]]
) -> list[Comparison]:
    """Every measure that stands in a record of now.

    Args:
        before, now: records by name.
    """
    found = (
        Comparison(each, each.of(before.get(each.record)), each.of(now.get(each.record)))
        for each in MEASURES
    )
    return [each for each in found if each.now is not None]


def changed_conditions(
    before: Mapping[str, Mapping[str, Any]], now: Mapping[str, Mapping[str, Any]]
) -> list[str]:
    """What else differs between records that are compared: machine and versions, a line each."""
    lines: dict[str, None] = {}
    for name in sorted(before.keys() & now.keys()):
        old, new = before[name], now[name]
        facts = {"machine": (old["machine"], new["machine"])} | {
            key: (old["environment"].get(key), new["environment"].get(key))
            for key in ("python", "torch", "ray", "mlflow", "numpy")
        }
        for fact, (was, is_now) in facts.items():
            if was != is_now:
                lines[f"{name}: {fact} was {was}, is {is_now}"] = None
    return list(lines)


def table(comparisons: Iterable[Comparison]) -> str:
    """Markdown: now, its rounds, before, and how much better or worse."""
    lines = ["| | measured | ratio | rounds | before | |", "|---|---|---:|---:|---:|---|"]
    for each in comparisons:
        measure, now, before = each.measure, each.now, each.before
        if now is None:
            continue
        wanted = "more is better" if measure.better == "more" else "less is better"
        remark = (
            ""
            if each.change is None
            else f"{abs(each.change):.0%} " + ("better" if each.change >= 0 else "worse")
        )
        if each.is_regression:
            remark = f"**{remark}**" + (", rounds overlap" if each.is_within_noise else "")
        lines.append(
            f"| {measure.group} | {measure.name} ({wanted}) | {now.median:.3g} "
            f"| {now.low:.3g} to {now.high:.3g} "
            f"| {'' if before is None else f'{before.median:.3g}'} | {remark} |"
        )
    return "\n".join(lines)
