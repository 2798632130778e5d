"""The README's tables of speed say what the records say."""

import json
from pathlib import Path

from benchmarks.measures import MEASURES
from benchmarks.speed_tables import JOBS, attacks_table, detectors_table, jobs_table, speed_tables

ROOT = Path(__file__).parents[2]


def record(**results):
    return {"date": "2026-01-02", "machine": "a machine", "results": results}


def spread(median, low, high):
    return {"median": median, "min": low, "max": high, "repeats": 3}


def test_every_ratio_of_the_jobs_is_said_in_its_way_with_its_rounds_and_machine():
    text = jobs_table(
        {
            "train-step": record(ratio=spread(1.5, 1.25, 2.0)),
            "train-job_on_all_cores": record(ratio=spread(1.031, 0.98, 1.25)),
            "attack-job": record(ratio=spread(0.975, 0.9, 1.0)),
        }
    )
    made = "2026-01-02, a machine"
    assert f"| 1.50 times as fast | 1.25 to 2.00 | {made} |" in text
    assert f"| +3.1% time | -2.0% to +25.0% | {made} |" in text
    assert f"| 97.5% of its rate | 90.0% to 100.0% | {made} |" in text
    # What has not been measured (all cores without tracking among it) is not there.
    assert len(text.splitlines()) == 2 + 3


def test_every_measure_of_training_and_of_jobs_is_called_something():
    known = {each.name for each in MEASURES}
    assert set(JOBS) <= known
    jobs = ("train-", "workers-", "checkpoints", "attack-job")
    assert {each.name for each in MEASURES if each.record.startswith(jobs)} == set(JOBS)


def test_attacks_stand_below_who_wrote_them_and_what_is_missing_is_empty():
    one, two = spread(0.75, 0.7, 0.8), spread(1.5, 1.4, 1.6)
    rows = {key: {"ours": two} for key in ("FGSM", "PGD-L2-10", "C&W-L2-20", "StAdv-10")}
    rows["PGD-Linf-10"] = {"ours, channels_last": one, "ours": two, "ART": one}
    lines = attacks_table(record(**{"WRN-10-1": rows})).splitlines()
    assert lines[2] == "| PGD L-inf, 10 steps | 0.75 | 1.50 |  |  |  | 0.75 |"
    assert lines[-1] == "2026-01-02, a machine."


def test_detectors_by_precision_and_the_whole_of_the_references_function():
    ratio = {"ours, float32": spread(10.0, 9.0, 11.0), "ours, float64": spread(5.0, 4.0, 6.0)}
    rows = {
        key: {"ratio": ratio}
        for key in ("kernel_density_10k", "kernel_density_50k", "reference_lid", "mahalanobis_fit")
    }
    rows["neighbours_50k"] = {"ratio": {"ours, exact": spread(1.25, 1.0, 2.0)}}
    whole = {"the reference's whole function at m = 0": spread(0.5, 0.4, 0.6)}
    rows["mahalanobis_score"] = {"ratio": ratio | whole}
    text = detectors_table(record(**rows))
    assert "| KD, 10,000 references, 2,000 queries | 10 | 5 | scikit-learn, exact |" in text
    assert "| LID, 2,000 against 50,000 |  | 1.25 |" in text
    assert "| the same against all that their code does at m = 0 | 20 | 10 |" in text
    assert text.count("the same against all") == 1


def test_the_readme_says_what_the_committed_records_say():
    names = {each.record for each in MEASURES}
    paths = {name: ROOT / f"benchmarks/records/{name}.json" for name in names}
    records = {name: json.loads(path.read_text()) for name, path in paths.items() if path.exists()}
    readme = (ROOT / "README.md").read_text()
    for name, table in speed_tables(records).items():
        marks = f"<!-- {name}: python benchmarks/run.py -->", f"<!-- end of {name} -->"
        assert f"{marks[0]}\n\n{table}\n\n{marks[1]}" in readme
