"""A Ray cluster of several nodes on one machine: each node a network and process namespace.

A node has an address of its own (eth0), its own processes and its own temporary folder, so that a
cable can be pulled, and a machine lost, without a second machine. Storage is shared, as an object
store would be. Needs Linux and root (or CAP_SYS_ADMIN); see `why_not`.
"""

import os
import secrets
import shutil
import subprocess
import sys
import tempfile
import threading
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from tests.runtime.conftest import BIN, ROOT, wait_for

PORT, DASHBOARD = 6379, 8265
# Tests that are killed take their nodes with them.
NAMESPACE = [
    *("setpriv", "--pdeathsig", "KILL"),
    *("unshare", "--net", "--pid", "--fork", "--mount-proc", "--kill-child"),
]

# A lost node is noticed within seconds and not within half a minute.
FAST_HEALTH = {
    "RAY_health_check_initial_delay_ms": "1000",
    "RAY_health_check_period_ms": "1000",
    "RAY_health_check_timeout_ms": "2000",
    "RAY_health_check_failure_threshold": "4",
    "RAY_gcs_rpc_server_reconnect_timeout_s": "8",
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.2",
}


DRIVER_LOG = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}


def why_not():
    """Why this machine cannot hold such a cluster; empty if it can."""
    missing = [
        each for each in ("setpriv", "unshare", "nsenter", "ip") if shutil.which(each) is None
    ]
    if missing:
        return f"needs {', '.join(missing)} (util-linux, iproute2)"
    probe = subprocess.run(
        [*NAMESPACE, "sh", "-c", "ip link add b0 type bridge && ip link add a0 type veth"],
        capture_output=True,
        text=True,
    )
    return f"needs network namespaces: {probe.stderr.strip()}" if probe.returncode else ""


class Place:
    """A network and process namespace on the lab's bridge; it ends with its first process."""

    def __init__(self, address, folder, environment, bridge=None):
        self.address, self.folder = address, folder
        self._environment, self._bridge = environment, bridge
        self._started = []
        folder.mkdir(exist_ok=True)
        self._begin()

    def _begin(self):
        self._holder = subprocess.Popen([*NAMESPACE, "sleep", "infinity"])
        first = f"/proc/{self._holder.pid}/task/{self._holder.pid}/children"
        wait_for(lambda: Path(first).read_text().strip(), "namespace", seconds=10)
        self._first = Path(first).read_text().strip()
        self.run("ip", "link", "set", "lo", "up")
        if self._bridge is not None:
            pair = self._pair
            self._bridge.link(
                *("add", pair, "type", "veth", "peer", "name", "eth0", "netns", self._first)
            )
            self._bridge.link("set", pair, "master", "bridge", "up")
            self.run("ip", "address", "add", f"{self.address}/24", "dev", "eth0")
            self.run("ip", "link", "set", "eth0", "up")

    @property
    def _pair(self):
        """The bridge's end of this place's cable."""
        return f"v{self.address.rpartition('.')[2]}"

    def inside(self, *command, cwd="/"):
        """The command line that runs `command` in here."""
        enter = ["nsenter", "--target", self._first, "--net", "--pid", "--mount", f"--wdns={cwd}"]
        return [*enter, "--", *command]

    def run(self, *command, timeout=60):
        """Runs a command in here, which must succeed."""
        return subprocess.run(
            self.inside(*command), check=True, capture_output=True, text=True, timeout=timeout
        )

    def link(self, *words):
        """`ip link` on this network, which knows process ids as the machine counts them."""
        enter = ["nsenter", "--target", self._first, "--net", "--", "ip", "link"]
        subprocess.run([*enter, *words], check=True, capture_output=True, text=True)

    def popen(self, *command, cwd="/", extra=None, **options):
        """Starts a command in here with the lab's environment."""
        process = subprocess.Popen(
            self.inside(*map(str, command), cwd=cwd),
            env=self._environment | (extra or {}),
            text=True,
            **options,
        )
        self._started.append(process)
        return process

    def _listed(self, word):
        found = self.run(sys.executable, "-c", _LIST, word)
        return [line.split(maxsplit=1) for line in found.stdout.splitlines()]

    def processes(self, word):
        """Process ids, as this place counts them, of command lines that hold `word`."""
        return [process for process, _ in self._listed(word)]

    def commands(self, word):
        """Command lines that hold `word`."""
        return [command for _, command in self._listed(word)]

    def signal(self, number, *processes):
        """Sends a signal to processes of this place."""
        if processes:
            self.run("kill", f"-{int(number)}", *map(str, processes))

    @contextmanager
    def slowed(self, process):
        """A process of this place gets a fifth of a processor's time."""
        over = threading.Event()

        def hold_up():
            while not over.is_set():
                for name, seconds in (("STOP", 0.4), ("CONT", 0.1)):
                    # It may have ended by itself.
                    subprocess.run(self.inside("kill", f"-{name}", process), capture_output=True)
                    over.wait(seconds)

        holder = threading.Thread(target=hold_up)
        holder.start()
        try:
            yield
        finally:
            over.set()
            holder.join()

    def answers(self, host, port):
        """Whether something listens at an address, as seen from here."""
        script = f"import socket; socket.create_connection(({host!r}, {port}), 2)"
        asked = self.popen(sys.executable, "-c", script, stderr=subprocess.DEVNULL)
        return asked.wait(timeout=10) == 0

    def alive_nodes(self):
        """How many nodes the head that RAY_ADDRESS names takes for alive; 0 without an answer."""
        asked = self.popen(
            *(sys.executable, "-c", _ALIVE, self._environment["RAY_ADDRESS"]),
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
        )
        output, _ = asked.communicate(timeout=60)
        return int(output) if asked.returncode == 0 else 0

    def unplug(self):
        """Pulls the cable: packets are lost both ways, processes live on."""
        self._bridge.link("set", self._pair, "down")

    def plug(self):
        """Puts the cable back."""
        self._bridge.link("set", self._pair, "up")

    def end(self):
        """Kills every process in here, as a lost machine does."""
        for process in (self._holder, *self._started):
            process.kill()
            process.wait()
            if process.stdout is not None:
                process.stdout.close()
        self._started.clear()

    def again(self):
        """The same machine after a restart: same address, no process."""
        # The kernel takes its time with the cables of a network that has ended.
        self._bridge.link("delete", self._pair)
        self.end()
        wait_for(lambda: not Path(f"/proc/{self._first}").exists(), "end of a place", seconds=20)
        shutil.rmtree(self.folder, ignore_errors=True)
        self.folder.mkdir()
        self._begin()


_LIST = """
import psutil, sys
for each in psutil.process_iter(["cmdline", "status"]):
    line = " ".join(each.info["cmdline"] or [])
    if sys.argv[1] in line and each.info["status"] != "zombie" and "-c" not in line.split()[1:2]:
        print(each.pid, line[:200])
"""

# What systemd or Kubernetes does for a node: a Ray that ends is started again.
_SUPERVISED = 'while true; do "$@"; sleep 1; done'


class Lab:
    """A head without CPUs for jobs, workers with one each, and a driver's shell on the head.

    Args:
        workers: how many worker nodes.
        settings: further environment of every process.
    """

    def __init__(self, workers=2, settings=None):
        self._root = Path(tempfile.mkdtemp(prefix="lab-", dir="/tmp"))
        inherited = {
            name: value
            for name, value in os.environ.items()
            if not name.startswith(("RAY_", "MLFLOW_", "PYTEST", "OMP_"))
        }
        self.environment = inherited | {
            **FAST_HEALTH,
            "RAY_USAGE_STATS_ENABLED": "0",
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN_PATH": str(self._root / "token"),
            "GLOO_SOCKET_IFNAME": "eth0",
            "PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}",
            "RAY_ADDRESS": f"10.77.0.1:{PORT}",
            **(settings or {}),
        }
        token = Path(self.environment["RAY_AUTH_TOKEN_PATH"])
        token.touch(mode=0o600)
        token.write_text(secrets.token_hex(32))
        self._stack = ExitStack()
        self.storage = self._root / "storage"
        self._mount()
        self.bridge = Place("10.77.0.254", self._root / "bridge", self.environment)
        self._stack.callback(self.bridge.end)
        for command in (
            ("ip", "link", "add", "bridge", "type", "bridge"),
            ("ip", "address", "add", "10.77.0.254/24", "dev", "bridge"),
            ("ip", "link", "set", "bridge", "up"),
        ):
            self.bridge.run(*command)
        self.head = self._place("h", "10.77.0.1")
        self.workers = [self._place(f"w{n}", f"10.77.0.{n + 2}") for n in range(workers)]
        self.start()

    def _mount(self):
        # Before the first namespace, which takes it along: all nodes then see the same files.
        self.storage.mkdir()
        subprocess.run(
            ["mount", "-t", "tmpfs", "-o", "size=64m", "lab", str(self.storage)], check=True
        )
        self._stack.callback(
            lambda: subprocess.run(["umount", "--lazy", str(self.storage)], check=True)
        )

    @contextmanager
    def storage_trouble(self, kind):
        """The shared storage is "full" (no byte free) or "read-only"."""
        filler = self.storage / "filler"
        if kind == "full":
            with filler.open("wb", buffering=0) as stream, suppress(OSError):
                while True:
                    stream.write(bytes(4096))
        else:
            self._remount("ro")
        try:
            yield
        finally:
            if kind == "full":
                filler.unlink()
            else:
                self._remount("rw")

    @staticmethod
    def complaint(kind):
        """What the system says of a trouble of `storage_trouble`."""
        return {"full": "No space left", "read-only": "Read-only file system"}[kind]

    def _remount(self, how):
        subprocess.run(["mount", "-o", f"remount,{how}", str(self.storage)], check=True)

    def _place(self, name, address):
        place = Place(
            address,
            self._root / name,
            self.environment | {"RAY_TMPDIR": str(self._root / name)},
            self.bridge,
        )
        self._stack.callback(place.end)
        return place

    def start(self):
        """Starts Ray on every node, and waits until all have joined."""
        common = ("--disable-usage-stats", "--object-store-memory=150000000", "--block")
        quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
        self.head.popen(
            *(BIN / "ray", "start", "--head", f"--port={PORT}", "--num-cpus=0", "--num-gpus=0"),
            *(f"--node-ip-address={self.head.address}", f"--temp-dir={self.head.folder}"),
            *("--dashboard-host=127.0.0.1", f"--dashboard-port={DASHBOARD}", *common),
            **quiet,
        )
        for place in self.workers:
            place.popen(
                *("sh", "-c", _SUPERVISED, "supervised"),
                *(BIN / "ray", "start", f"--address={self.head.address}:{PORT}", "--num-cpus=1"),
                *("--num-gpus=0", f"--node-ip-address={place.address}"),
                *(f"--temp-dir={place.folder}", *common),
                **quiet,
            )
        self.wait_for_nodes(1 + len(self.workers))

    def wait_for_nodes(self, count, seconds=90):
        """Until the head takes `count` nodes for alive."""
        wait_for(
            lambda: self.head.alive_nodes() == count, f"cluster of {count} nodes", seconds=seconds
        )

    def restart(self):
        """The head's machine and with it every node's Ray starts anew."""
        for place in (self.head, *self.workers):
            place.again()
        self.start()

    def job(self, folder, *arguments, job="train", extra=None):
        """Starts a job from a shell on the head, its output in one stream."""
        return self.head.popen(
            *(sys.executable, ROOT / "jobs" / f"{job}.py", *arguments),
            cwd=folder,
            extra=extra,
            **DRIVER_LOG,
        )

    def shell(self, *command, extra=None, timeout=240):
        """Runs a command in a shell on the head: (exit code, output in one stream)."""
        process = self.head.popen(*command, extra=extra, **DRIVER_LOG)
        output, _ = process.communicate(timeout=timeout)
        return process.returncode, output

    def ended(self, folder, *arguments, job="train", timeout=240, code=0, extra=None):
        """Runs a job to its end, which must be this exit code; its output."""
        process = self.job(folder, *arguments, job=job, extra=extra)
        output, _ = process.communicate(timeout=timeout)
        assert process.returncode == code, output
        return output

    def train_workers(self):
        """(place, process id) of each Ray Train worker."""
        return [
            (place, each)
            for place in self.workers
            for each in place.processes("ray::RayTrainWorker")
        ]

    def close(self):
        """Ends every process of the lab and removes its folders."""
        self._stack.close()
        shutil.rmtree(self._root, ignore_errors=True)


_ALIVE = """
import sys
from ray._raylet import GcsClient
from ray.core.generated.gcs_pb2 import GcsNodeInfo
nodes = GcsClient(address=sys.argv[1]).get_all_node_info(timeout=5)
print(sum(each.state == GcsNodeInfo.GcsNodeState.ALIVE for each in nodes.values()))
"""
