"""Who may join a cluster, and what those who may not are told."""

import sys

import pytest

from .lab import BIN, DASHBOARD, ROOT

JOB = (sys.executable, str(ROOT / "jobs/train.py"), "smoke")
SUBMIT = (BIN / "ray", "job", "submit")
PATCHED = """
import runpy, sys
import ray._private.utils
ray._private.utils.compute_version_info = lambda: {versions!r}
sys.argv = {argv!r}
sys.path.insert(0, {root!r})
runpy.run_path(sys.argv[0], run_name="__main__")
"""


def error_of(output):
    (line,) = [line for line in output.splitlines() if line.startswith("error: ")]
    assert "Traceback" not in output
    return line


@pytest.mark.parametrize(
    "extra",
    [
        {"RAY_AUTH_TOKEN": "0" * 64, "RAY_AUTH_TOKEN_PATH": ""},
        {"RAY_AUTH_TOKEN_PATH": "/nowhere"},
        {"RAY_AUTH_MODE": "disabled"},
    ],
    ids=["a wrong token", "no token", "authentication turned off"],
)
def test_a_driver_without_the_token_is_told_where_it_belongs(lab, extra):
    code, output = lab.shell(*JOB, extra=extra)
    assert code == 1
    line = error_of(output)
    assert "expected the token that the cluster was started with" in line
    assert "RAY_AUTH_TOKEN_PATH" in line
    assert "0" * 64 not in output


@pytest.mark.parametrize("versions", [("2.59.0", "3.11.7"), ("2.60.0", "3.12.1")])
def test_a_driver_of_other_versions_is_told_both(lab, versions):
    script = PATCHED.format(versions=versions, argv=list(JOB[1:]), root=str(ROOT))
    code, output = lab.shell(sys.executable, "-c", script)
    assert code == 1
    line = error_of(output)
    assert f"Ray: {versions[0]} Python: {versions[1]}" in line
    assert "ray job submit" in line


def test_a_cluster_that_is_not_there_is_an_error_at_once(lab):
    code, output = lab.shell(*JOB, extra={"RAY_ADDRESS": "10.77.0.9:6379"})
    assert code == 1
    assert "expected one at 10.77.0.9:6379" in error_of(output)


@pytest.mark.parametrize(
    ("extra", "said"),
    [
        ({"RAY_AUTH_TOKEN": "0" * 64, "RAY_AUTH_TOKEN_PATH": ""}, "token"),
        ({"RAY_ADDRESS": "http://127.0.0.1:9"}, "Failed to connect to Ray at address"),
    ],
    ids=["a wrong token", "no cluster"],
)
def test_ray_job_submit_says_what_infra_readme_quotes(lab, extra, said):
    address = {"RAY_ADDRESS": f"http://127.0.0.1:{DASHBOARD}"}
    code, output = lab.shell(*SUBMIT, "--", "python", "-V", extra=address | extra)
    assert code != 0
    assert said in output
    assert "0" * 64 not in output
