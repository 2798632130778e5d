"""Cost of the detectors: ours against scikit-learn and the reference code's formulations.

python benchmarks/detectors.py [--rounds N] [--threads N] [--scale S] [--only ROW ...]

Features are Gaussian classes, as wide as those of WRN-28-10; --scale multiplies how many there are.
Every number is a ratio of measurements that were interleaved in this run; medians over rounds. Each
row also says how far our scores lie from the reference's.
"""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from record import spread, write_record
from scipy.spatial.distance import cdist  # type: ignore[import-untyped]
from sklearn.covariance import EmpiricalCovariance
from sklearn.neighbors import KernelDensity, NearestNeighbors
from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]
from torch import Tensor

from cdvae_ray import detectors

ROOT = Path(__file__).parents[1]
CLASSES, WIDTH = 10, 640
LAYER_WIDTHS = (16, 160, 320, 640)
NEIGHBOURS = tuple(range(10, 91, 10))
BATCH = 100
Run = Callable[[], object]


@dataclass(frozen=True, kw_only=True)
class Row:
    """One task of a detector, done in several ways."""

    sizes: str
    """What it is done on."""
    reference: Run
    """Returns the reference's scores."""
    ours: dict[str, Run]
    """Return our scores, by precision."""
    others: dict[str, Run]
    """What users run too, of which the speed alone is measured."""


def main() -> None:
    """Runs everything and writes the record."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--scale", type=float, default=1.0)
    parser.add_argument("--only", nargs="*", choices=sorted(ROWS), help="rows to run")
    parser.add_argument("--no-record", action="store_true", help="print only, for a trial")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    results: dict[str, Any] = {
        "what": "seconds of the reference / seconds of ours (above 1: ours is faster); 'deviation' "
        "is the largest difference of the scores over the reference's largest score",
        "threads": arguments.threads,
        "scale": arguments.scale,
    }
    with threadpool_limits(arguments.threads):
        for name in arguments.only or ROWS:
            results[name] = compare(name, ROWS[name](arguments.scale), arguments.rounds)
    if not arguments.no_record:
        path = write_record("detectors", results)
        print(f"record: {path.relative_to(ROOT)}")


def compare(name: str, row: Row, rounds: int) -> dict[str, Any]:
    """Ratios, seconds and deviations of one row; the first calls warm up."""
    expected = numbers(row.reference())
    deviations = {
        label: float(np.abs(numbers(run()) - expected).max() / np.abs(expected).max())
        for label, run in row.ours.items()
    }
    runs = {"reference": row.reference, **row.ours, **row.others}
    times: dict[str, list[float]] = {label: [] for label in runs}
    for _ in range(rounds):
        for label, run in runs.items():
            times[label].append(seconds(run))
    ratios = {
        label: spread([a / b for a, b in zip(times["reference"], times[label], strict=True)])
        for label in runs
        if label != "reference"
    }
    print(f"{name} ({row.sizes}): reference {spread(times['reference'])['median']:.3f} s")
    for label, ratio in ratios.items():
        print(
            f"  {label:<28} {spread(times[label])['median']:8.3f} s  {ratio['median']:6.2f} times "
            + (f"as fast  deviation {deviations[label]:.1e}" if label in deviations else "as fast")
        )
    return {
        "sizes": row.sizes,
        "ratio": ratios,
        "seconds": {label: spread(values) for label, values in times.items()},
        "deviation": deviations,
    }


def seconds(run: Run) -> float:
    """Wall time of one call."""
    started = time.perf_counter()
    run()
    return time.perf_counter() - started


def numbers(scores: object) -> Any:
    """Scores of either library as float64 numpy."""
    values = scores.numpy() if isinstance(scores, Tensor) else scores
    return np.asarray(values, dtype=np.float64)


def features(count: int, width: int = WIDTH, *, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Gaussian classes (count, width) in float32, and their labels in turn."""
    generator = torch.Generator().manual_seed(0)
    means = torch.randn(CLASSES, width, generator=generator)
    generator.manual_seed(seed + 1)
    labels = torch.arange(count) % CLASSES
    return means[labels] + torch.randn(count, width, generator=generator), labels


def scaled(count: int, scale: float, *, at_least: int) -> int:
    """A count by scale, never so small that a row loses its sense."""
    return max(at_least, round(count * scale))


# --- rows ----------------------------------------------------------------------------------------


def density_row(references: int, queries: int, scale: float) -> Row:
    """Kernel densities of the predicted class."""
    known, labels = features(scaled(references, scale, at_least=100))
    asked, predictions = features(scaled(queries, scale, at_least=50), seed=1)
    bandwidth = 1.0
    density = detectors.fit_kernel_density(known, labels, CLASSES, bandwidth=bandwidth)
    single = density.to(dtype=torch.float32)

    def sklearn(leaf_size: int) -> Run:
        trees = [
            KernelDensity(bandwidth=bandwidth, leaf_size=leaf_size).fit(known[labels == label])
            for label in range(CLASSES)
        ]

        def run() -> object:
            scores = np.empty(len(asked))
            for label, tree in enumerate(trees):
                rows = (predictions == label).numpy()
                scores[rows] = -tree.score_samples(asked.numpy()[rows])
            return scores

        return run

    return Row(
        sizes=f"{len(known)} x {WIDTH}, {len(asked)} queries",
        reference=sklearn(10**9),
        ours={
            "ours, float64": lambda: density.score(asked, predictions),
            "ours, float32": lambda: single.score(asked, predictions),
        },
        others={"scikit-learn, default (wrong)": sklearn(40)},
    )


def reference_lid_row(scale: float) -> Row:
    """The reference protocol: 3 sets, 4 layers, 9 numbers of neighbours."""
    count = BATCH * scaled(10, scale, at_least=1)
    layers = [[features(count, width, seed=seed)[0] for seed in range(3)] for width in LAYER_WIDTHS]

    def literal() -> object:
        return np.stack(
            [
                literal_lid(queries.numpy(), sets[0].numpy(), k)
                for sets in layers
                for queries in sets
                for k in NEIGHBOURS
            ],
            axis=1,
        )

    def ours() -> object:
        return torch.cat(
            [
                detectors.reference_lid(queries, sets[0], NEIGHBOURS, batch_size=BATCH)
                for sets in layers
                for queries in sets
            ],
            dim=1,
        )

    return Row(
        sizes=f"{count} x 3 sets x {len(NEIGHBOURS)} k x {len(layers)} layers",
        reference=literal,
        ours={"ours, float64": ours},
        others={},
    )


def literal_lid(queries: Any, clean: Any, num_neighbours: int) -> Any:
    """As the reference code goes about it: a function applied to every sorted row, k by k."""
    parts = []
    for start in range(0, len(clean), BATCH):
        batch = clean[start : start + BATCH]
        k = min(num_neighbours, len(batch) - 1)
        distances = cdist(queries[start : start + BATCH], batch)
        closest = np.apply_along_axis(np.sort, axis=1, arr=distances)[:, 1 : k + 1]
        parts.append(np.apply_along_axis(lambda r, k=k: -k / np.sum(np.log(r / r[-1])), 1, closest))  # type: ignore[call-overload]
    return np.concatenate(parts)


def mahalanobis_row(scale: float) -> Row:
    """Scores of one layer."""
    known, labels = features(scaled(5_000, scale, at_least=2 * WIDTH))
    asked, _ = features(scaled(10_000, scale, at_least=100), seed=1)
    moments = detectors.class_moments(known, labels, CLASSES)
    detector = detectors.fit_mahalanobis(moments)
    single = detector.to(dtype=torch.float32)
    precision = torch.linalg.inv(moments.scatter / len(known)).float()
    means = moments.means.float()

    def class_scores(rows: Tensor) -> Tensor:
        terms = []
        for mean in means:
            centred = rows - mean
            # All products between images are made, and the diagonal kept.
            terms.append(-0.5 * torch.mm(torch.mm(centred, precision), centred.T).diag())
        return torch.stack(terms, dim=1)

    def literal() -> object:
        batches = asked.split(BATCH)  # type: ignore[no-untyped-call]
        return torch.cat([-class_scores(rows).amax(dim=1) for rows in batches])

    def whole_function() -> object:
        """Lee's function at m = 0: the scores, a gradient for a step of nothing, the scores."""
        scores = []
        for batch in asked.split(BATCH):  # type: ignore[no-untyped-call]
            rows = batch.clone().requires_grad_()
            centred = rows - means[class_scores(rows).argmax(dim=1)]
            pure = -0.5 * torch.mm(torch.mm(centred, precision), centred.T).diag()
            (-pure).mean().backward()  # type: ignore[no-untyped-call]
            with torch.no_grad():
                scores.append(-class_scores(rows).amax(dim=1))
        return torch.cat(scores)

    return Row(
        sizes=f"{len(asked)} x {WIDTH}",
        reference=literal,
        ours={
            "ours, float64": lambda: detector.score(asked),
            "ours, float32": lambda: single.score(asked),
        },
        others={"the reference's whole function at m = 0": whole_function},
    )


def covariance_row(scale: float) -> Row:
    """Class means, covariance and its pseudo-inverse."""
    known, labels = features(scaled(50_000, scale, at_least=2 * WIDTH))
    asked, _ = features(20, seed=1)

    def scores_of(means: Any, precision: Any) -> object:
        centred = asked.double().numpy()[:, None] - means
        return 0.5 * np.einsum("ncd,de,nce->nc", centred, precision, centred).min(axis=1)

    def sklearn() -> object:
        rows = known.double()
        means = torch.stack([rows[labels == label].mean(dim=0) for label in range(CLASSES)])
        estimate = EmpiricalCovariance(assume_centered=True).fit((rows - means[labels]).numpy())
        return scores_of(means.numpy(), estimate.get_precision())

    def ours() -> object:
        moments = detectors.class_moments(known, labels, CLASSES)
        return detectors.fit_mahalanobis(moments).score(asked)

    return Row(
        sizes=f"{len(known)} x {WIDTH}, with pinvh and {len(asked)} scores",
        reference=sklearn,
        ours={"ours, float64": ours},
        others={},
    )


def neighbours_row(scale: float) -> Row:
    """LID against a fixed sample of references."""
    known, _ = features(scaled(50_000, scale, at_least=200))
    asked, _ = features(scaled(2_000, scale, at_least=50), seed=1)
    lid = detectors.fit_lid(known, torch.arange(len(known)))
    single = NearestNeighbors(algorithm="brute").fit(known.numpy())
    double = NearestNeighbors(algorithm="brute").fit(known.double().numpy())

    def sklearn(index: NearestNeighbors, queries: Any) -> object:
        distances, _ = index.kneighbors(queries, n_neighbors=max(NEIGHBOURS))
        logs = np.log(distances)
        columns = [k / (k * logs[:, k - 1] - logs[:, :k].sum(axis=1)) for k in NEIGHBOURS]
        return np.stack(columns, axis=1)

    return Row(
        sizes=f"{len(asked)} against {len(known)} x {WIDTH}",
        reference=lambda: sklearn(double, asked.double().numpy()),
        ours={"ours, exact": lambda: lid.scores(asked, NEIGHBOURS)},
        others={"scikit-learn, float32": lambda: sklearn(single, asked.numpy())},
    )


ROWS: dict[str, Callable[[float], Row]] = {
    "kernel_density_10k": lambda scale: density_row(10_000, 2_000, scale),
    "kernel_density_50k": lambda scale: density_row(50_000, 1_000, scale),
    "reference_lid": reference_lid_row,
    "mahalanobis_score": mahalanobis_row,
    "mahalanobis_fit": covariance_row,
    "neighbours_50k": neighbours_row,
}


if __name__ == "__main__":
    main()
