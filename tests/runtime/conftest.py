"""One Ray cluster for all tests that need one: starting it takes some ten seconds."""

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import psutil
import pytest

ROOT = Path(__file__).parents[2]
BIN = Path(sys.executable).parent


def pytest_collection_modifyitems(items):
    for item in items:
        if item.path.is_relative_to(Path(__file__).parent):
            item.add_marker(pytest.mark.cluster)
            # A guard against hanging, not a measure: machines and their other work differ.
            item.add_marker(pytest.mark.timeout(900))


class Cluster:
    """A real cluster of one node with four logical CPUs, and jobs on it as a person starts them."""

    def __init__(self, environment, dashboard, head):
        self.environment, self.dashboard, self.head = environment, dashboard, head

    def train_workers(self):
        """This cluster's Ray Train workers, and no other cluster's."""
        return [
            process
            for process in psutil.Process(self.head.pid).children(recursive=True)
            if "RayTrainWorker" in " ".join(_command_line(process))
        ]

    def command(self, *arguments, job="train"):
        return [sys.executable, str(ROOT / "jobs" / f"{job}.py"), *map(str, arguments)]

    def train(self, folder, *arguments, job="train", timeout=600):
        """Runs a job, the main one unless another is named, to its end."""
        return subprocess.run(
            self.command(*arguments, job=job),
            cwd=folder,
            env=self.environment,
            capture_output=True,
            text=True,
            timeout=timeout,
        )

    def start(self, folder, *arguments, job="train"):
        """Starts a job, the main one unless another is named, and leaves it running."""
        return subprocess.Popen(
            self.command(*arguments, job=job),
            cwd=folder,
            env=self.environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )


def free_ports(count):
    """Ports that nothing listens on, all different."""
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]


@pytest.fixture(scope="session")
def cluster(tmp_path_factory):
    environment = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("RAY_", "MLFLOW_", "PYTEST"))
    } | {
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.2",
        "RAY_AUTH_MODE": "disabled",
        # Ray notes the machine's newest cluster in its temporary folder, and parts of it trust
        # that note: in a folder of its own this cluster cannot be taken for another.
        "RAY_TMPDIR": tempfile.mkdtemp(prefix="cdvae-", dir="/tmp"),
        "PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}",
    }
    gcs, dashboard, agent, client = free_ports(4)
    address = f"127.0.0.1:{gcs}"
    # A process of our own instead of `ray stop`, which would stop other people's clusters too.
    with subprocess.Popen(
        [
            *(str(BIN / "ray"), "start", "--head", "--block", "--num-cpus=4", "--num-gpus=0"),
            *(f"--port={gcs}", "--node-ip-address=127.0.0.1", f"--dashboard-port={dashboard}"),
            *("--dashboard-host=127.0.0.1", f"--dashboard-agent-listen-port={agent}"),
            *(f"--ray-client-server-port={client}", "--object-store-memory=200000000"),
        ],
        env=environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    ) as head:
        environment["RAY_ADDRESS"] = address
        wait_for(lambda: _answers(dashboard) and _answers(gcs), "Ray cluster")
        yield Cluster(environment, f"http://127.0.0.1:{dashboard}", head)
        family = psutil.Process(head.pid).children(recursive=True)
        head.terminate()
        _, alive = psutil.wait_procs([*family, psutil.Process(head.pid)], timeout=5)
        for process in alive:
            process.kill()


def _answers(port):
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def wait_for(condition, what, seconds=300):
    deadline = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < deadline, f"no {what} within {seconds} s"
        time.sleep(0.02)
    return found


def read_until(job, start):
    """The lines that a running job prints up to one that begins so."""
    lines = []
    for line in job.stdout:
        lines.append(line)
        if line.startswith(start):
            return lines
    raise AssertionError(f"no line began with {start}: {''.join(lines)}")


def run_folder(storage):
    """The folder of the one run below a storage root, once it is there."""
    return wait_for(lambda: next(iter(storage.glob("train/cdvae-*")), None), "run folder")


def _command_line(process):
    # A process may end between being listed and being asked.
    with contextlib.suppress(psutil.NoSuchProcess):
        return process.cmdline()
    return []


def kill(process):
    os.kill(process.pid, signal.SIGKILL)


def summary(path):
    return json.loads(path.read_text())
