"""A cluster that begins with no worker: jobs ask its autoscaler for the places that they lack."""

import json
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from .lab import BIN, ROOT, Place, wait_for, why_not

# Ray's own provider of nodes on one machine, in place of a cloud.
CLUSTER = {
    "cluster_name": "scaling",
    "max_workers": 2,
    "upscaling_speed": 1.0,
    "idle_timeout_minutes": 0.1,
    "provider": {
        "type": "fake_multinode",
        "use_node_id_as_ip": True,
        "disable_node_updaters": True,
        "disable_launch_config_check": True,
    },
    "available_node_types": {
        "ray.head.default": {"resources": {"CPU": 1}, "node_config": {}, "max_workers": 0},
        "worker": {"resources": {"CPU": 2}, "node_config": {}, "min_workers": 0, "max_workers": 2},
    },
    "head_node_type": "ray.head.default",
    "auth": {},
    "file_mounts": {},
    "cluster_synced_files": [],
    "file_mounts_sync_continuously": False,
    "initialization_commands": [],
    "setup_commands": [],
    "head_setup_commands": [],
    "worker_setup_commands": [],
    "head_start_ray_commands": [],
    "worker_start_ray_commands": [],
}


@pytest.fixture
def scaling(tmp_path):
    """A head with one CPU, whose autoscaler has two worker nodes of two CPUs to give."""
    if reason := why_not():
        pytest.skip(reason)
    # Ray's sockets lie in it, whose paths must be short.
    folder = Path(tempfile.mkdtemp(prefix="scaling-", dir="/tmp"))
    (tmp_path / "cluster.json").write_text(json.dumps(CLUSTER))
    environment = {
        "PATH": f"{BIN}:/usr/bin:/bin",
        "HOME": str(tmp_path),
        "RAY_ADDRESS": "127.0.0.1:6379",
        "RAY_AUTH_MODE": "disabled",
        "RAY_FAKE_CLUSTER": "1",
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_TMPDIR": str(folder),
        "AUTOSCALER_UPDATE_INTERVAL_S": "1",
    }
    place = Place("127.0.0.1", folder, environment)
    place.popen(
        *(BIN / "ray", "start", "--head", "--block", "--num-cpus=1", "--num-gpus=0"),
        *("--port=6379", f"--autoscaling-config={tmp_path}/cluster.json"),
        *("--node-ip-address=127.0.0.1", "--dashboard-host=127.0.0.1"),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    yield place
    place.end()
    shutil.rmtree(folder, ignore_errors=True)


def test_a_job_scales_a_cluster_from_zero_and_leaves_it_to_shrink(scaling, tmp_path):
    wait_for(lambda: scaling.alive_nodes() == 1, "head")
    job = scaling.popen(
        *(sys.executable, ROOT / "jobs/train.py", "smoke", "--training.global-batch-size", "32"),
        *("--resources.num-workers", "2", "--resources.cpus-per-worker", "2"),
        *("--resources.wait-seconds", "120"),
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )
    output, _ = job.communicate(timeout=240)
    assert job.returncode == 0, output
    assert "waiting up to 120 s for 2 places with 2 CPU each, not 0" in output
    assert "workers: 2 x 2 threads on CPU" in output
    # Nothing of the job is left that would keep nodes.
    wait_for(lambda: scaling.alive_nodes() == 1, "cluster without idle workers", seconds=90)
