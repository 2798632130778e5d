"""jobs/compare_seeds.py on stored reproductions: what it makes, and what it refuses in one line."""

import json

import pytest
from mlflow import MlflowClient

from cdvae_ray.storage.artifact import read_artifact, write_artifact
from cdvae_ray.storage.store import Store, to_json_bytes
from tests.evaluation.test_seed_tables import defences, detection

IMAGES = {"source": "digits", "image_size": 16, "train_limit": 400, "test_limit": None}


def reproduction(folder, seed, *, area=0.8, images=IMAGES, gamma=2e-3, name=None):
    """A report as `jobs/reproduce.py` stores it."""
    name = name or f"report-{seed}"
    tables = defences(0.3) | detection(area)
    write_artifact(
        Store.at(folder),
        name,
        kind="reproduction-report",
        files={"tables.json": to_json_bytes(tables)},
        facts={
            "digest": f"digest of {name}",
            "identity": {"recipe": {"defense_gamma": gamma}, "results": ["Table 4", "Table 6"]},
            "preset": "smoke",
            "seed": seed,
            "images": images,
            "made_by": {"commit": "abc"},
        },
    )
    return str(folder / name)


def test_seeds_are_compared_in_order_stored_and_tracked(run_script, tmp_path):
    reports = [reproduction(tmp_path, seed, area=0.7 + seed / 10) for seed in (2, 0, 1)]
    done = run_script("compare_seeds", tmp_path, "--reports", *reports, "--summary", "numbers.json")
    assert done.returncode == 0, done.stderr
    assert "seeds: 0 1 2" in done.stdout
    (report,) = (tmp_path / "runs/seeds").glob("report-*")
    artifact = read_artifact(Store.at(report.parent), report.name, kind="seeds-report")
    columns = json.loads(artifact.files["seeds.json"])
    place = columns["quantity"].index("auroc")
    assert columns["values"][place] == pytest.approx([0.7, 0.8, 0.9])
    assert columns["mean"][place] == pytest.approx(0.8)
    assert artifact.facts["identity"]["reports"] == {
        str(seed): f"digest of report-{seed}" for seed in range(3)
    }
    assert artifact.files["seeds.png"].startswith(b"\x89PNG")
    assert "- images: digits, 16 x 16, at most 400 train" in artifact.files["report.md"].decode()

    client = MlflowClient(tracking_uri=f"sqlite:///{tmp_path}/mlflow.db")
    run = client.get_run(json.loads((tmp_path / "numbers.json").read_text())["run_id"])
    assert run.info.status == "FINISHED"
    assert run.data.metrics["seeds"] == 3
    again = run_script("compare_seeds", tmp_path, "--reports", *reversed(reports))
    assert again.returncode == 0
    assert [report] == list((tmp_path / "runs/seeds").glob("report-*"))


@pytest.mark.parametrize(
    ("others", "message"),
    [
        ([{"seed": 1, "name": "twice"}], "reports: got two of seed 1: "),
        ([{"seed": 2, "gamma": 0.2}], "recipe of "),
        ([{"seed": 2, "images": IMAGES | {"train_limit": 100}}], "images of "),
        ([{"seed": None}], "the seed of "),
        ([], "reports: got "),
    ],
    ids=["one seed twice", "other recipe", "other images", "no seed", "one report"],
)
def test_what_cannot_be_averaged_is_refused(run_script, tmp_path, others, message):
    reports = [reproduction(tmp_path, 1), *(reproduction(tmp_path, **each) for each in others)]
    done = run_script("compare_seeds", tmp_path, "--reports", *reports)
    assert done.returncode == 1
    (line,) = done.stderr.strip().splitlines()
    assert line.startswith(f"error: {message}"), line
    assert not (tmp_path / "runs").exists()


def test_no_report_and_something_else_are_refused(run_script, tmp_path):
    done = run_script("compare_seeds", tmp_path)
    assert done.returncode == 1
    assert "error: reports: got none, expected two or more" in done.stderr
    reports = [reproduction(tmp_path, seed) for seed in (0, 1)]
    done = run_script("compare_seeds", tmp_path, "--reports", *reports, str(tmp_path / "gone"))
    assert done.returncode == 1
    assert "got no manifest.json in it" in done.stderr


def test_a_damaged_report_is_refused(run_script, tmp_path):
    reports = [reproduction(tmp_path, seed) for seed in (0, 1)]
    tables = tmp_path / "report-1/tables.json"
    tables.write_bytes(tables.read_bytes().replace(b"0.8", b"0.9"))
    done = run_script("compare_seeds", tmp_path, "--reports", *reports)
    assert done.returncode == 1
    assert "SHA-256" in done.stderr
