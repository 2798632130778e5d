"""Bad input to the searches: one line on stderr, exit code 1, nothing written, no cluster."""

import pytest

WRONG = """parameter = "beta"
values = [1.0]
low = 0.1
high = 1.0
[metrics]
defense_accuracy = "max"
"""


@pytest.mark.parametrize(
    ("job", "arguments", "complaint"),
    [
        ("tune_gamma", ["table-4"], "preset: got 'table-4', expected one of quickstart"),
        ("tune_beta", ["table-4"], "run jobs/tune_beta.py --help"),
        ("tune_gamma", ["smoke"], "classifier: got none, expected a plain classifier on x"),
        ("tune_margin", ["smoke", "--classifier", "c"], "cdvae: got none"),
        ("tune_gamma", ["smoke", "--classifier", "c", "--space", "no.toml"], "space no.toml"),
        ("tune_gamma", ["smoke", "--classifier", "nowhere"], "nowhere: got nothing there"),
        ("tune_gamma", ["smoke", "--classifier", "c", "--train", "huge"], "preset: got 'huge'"),
        ("tune_margin", ["smoke", "--max-concurrent", "0"], "max_concurrent: got 0"),
        ("tune_margin", ["smoke", "--epochs", "0"], "epochs: got 0"),
    ],
)
def test_bad_input_to_a_search_is_one_line(refused, job, arguments, complaint):
    refused(job, arguments, complaint)


@pytest.mark.parametrize("job", ["tune_gamma", "tune_margin"])
@pytest.mark.parametrize(
    ("storage", "complaint"),
    [
        ("./runs", "storage: got the relative path ./runs in a submitted job"),
        ("mock://bucket/runs", "tracking: got no MLflow store in a submitted job"),
    ],
)
def test_a_submitted_search_stores_nothing_in_the_folder_that_ray_deletes(
    refused, monkeypatch, job, storage, complaint
):
    monkeypatch.setenv("RAY_JOB_CONFIG_JSON_ENV_VAR", "{}")
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    refused(
        job,
        ["smoke", "--classifier", "c", "--cdvae", "g", "--storage", storage]
        if job == "tune_margin"
        else ["smoke", "--classifier", "c", "--storage", storage],
        complaint,
    )


def test_the_space_of_another_search_is_refused(refused, tmp_path):
    (tmp_path / "beta.toml").write_text(WRONG)
    arguments = ["smoke", "--classifier", "c", "--space", "beta.toml"]
    refused("tune_gamma", arguments, "or run jobs/tune_beta.py")
