"""An MLflow server on a PostgreSQL of its own, with the flags of infra/mlflow/mlflow.service.

PostgreSQL comes from Debian's package and listens on a Unix socket alone; as in the unit, it
knows the server's user by its name, so there is no password. Both processes can be killed and
started again on the same data, and `close` leaves neither processes nor files behind.
"""

from __future__ import annotations

import importlib.util
import os
import pwd
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any

import psutil

UNIT = Path(__file__).parents[2] / "infra" / "mlflow" / "mlflow.service"
DEBIAN_POSTGRESQL = Path("/usr/lib/postgresql")
START_SECONDS = 120.0
STOP_SECONDS = 30.0


def what_is_missing() -> str:
    """Why the server cannot run here and what to install, "" where it can."""
    if _postgresql_binaries() is None:
        return f"no PostgreSQL in {DEBIAN_POSTGRESQL}: apt-get install postgresql"
    if importlib.util.find_spec("psycopg2") is None:
        return "no psycopg2: pip install the psycopg2-binary of infra/requirements-mlflow.txt"
    return ""


class TrackingServer:
    """A PostgreSQL and an MLflow server on it, on loopback.

    Attributes:
        uri: address of the server, the same after a restart.
        artifacts: folder in which the server keeps the runs' files.
    """

    def __init__(self) -> None:
        binaries = _postgresql_binaries()
        assert binaries is not None, what_is_missing()
        self._binaries = binaries
        self._user = pwd.getpwuid(os.geteuid()).pw_name
        # PostgreSQL refuses to run as root.
        self._owner = "postgres" if os.geteuid() == 0 else self._user
        self._folder = Path(tempfile.mkdtemp(prefix="cdvae-mlflow-"))
        self._folder.chmod(0o755)
        self._sockets, self.artifacts = self._folder / "sockets", self._folder / "artifacts"
        for folder in (self._sockets, self._folder / "postgresql"):
            folder.mkdir()
            shutil.chown(folder, self._owner)
        self._port = _free_port()
        self.uri = f"http://127.0.0.1:{self._port}"
        self._database: subprocess.Popen[bytes] | None = None
        self._server: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> TrackingServer:
        try:
            data = str(self._folder / "postgresql" / "data")
            self._as_owner(
                "initdb",
                *("--pgdata", data, "--username", self._owner, "--encoding", "UTF8"),
                *("--auth-local", "peer", "--auth-host", "reject", "--no-sync"),
            )
            self.start_database()
            if self._user != self._owner:
                self._as_owner("createuser", "--host", str(self._sockets), self._user)
            self._as_owner(
                "createdb", "--host", str(self._sockets), f"--owner={self._user}", "mlflow"
            )
            self.start_server()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def start_database(self) -> None:
        """Starts PostgreSQL and waits until it takes connections."""
        data = str(self._folder / "postgresql" / "data")
        command = [str(self._binaries / "postgres"), "-D", data, "-k", str(self._sockets)]
        self._database = self._start(
            "postgresql", [*command, "-c", "listen_addresses="], **self._owner_arguments()
        )
        is_ready = [str(self._binaries / "pg_isready"), "--quiet", "--dbname", "postgres"]
        is_ready += ["--host", str(self._sockets), "--username", self._owner]
        self._wait("postgresql", self._database, lambda: subprocess.call(is_ready) == 0)

    def start_server(self) -> None:
        """Starts the MLflow server and waits until it answers."""
        environment, command = unit_command(
            {
                "/opt/mlflow/bin/mlflow": f"{sys.executable} -m mlflow",
                "--port 5000": f"--port {self._port}",
                "host=/var/run/postgresql": f"host={self._sockets}",
                "/var/lib/mlflow/artifacts": str(self.artifacts),
                "localhost:5000,127.0.0.1:5000": f"localhost:{self._port},127.0.0.1:{self._port}",
            }
        )
        # MLflow behaves differently where it finds itself tested.
        inherited = {
            name: value
            for name, value in os.environ.items()
            if name not in ("MLFLOW_TRACKING_URI", "PYTEST_CURRENT_TEST")
        }
        self._server = self._start("mlflow", command, env={**inherited, **environment})
        self._wait("mlflow", self._server, self._answers)

    def kill_database(self) -> None:
        """SIGKILL to PostgreSQL and all its backends."""
        _kill(self._database)
        self._database = None

    def kill_server(self) -> None:
        """SIGKILL to the MLflow server and all its workers."""
        _kill(self._server)
        self._server = None

    def close(self) -> None:
        """Ends both and removes all that they wrote."""
        _kill(self._server)
        if self._database is not None:
            # A clean end takes PostgreSQL's shared memory along.
            self._database.send_signal(signal.SIGINT)
            with suppress(subprocess.TimeoutExpired):
                self._database.wait(STOP_SECONDS)
            _kill(self._database)
        self._server = self._database = None
        shutil.rmtree(self._folder)

    def log(self, name: str) -> str:
        """What the process "mlflow" or "postgresql" wrote."""
        return (self._folder / f"{name}.log").read_text(errors="replace")

    def _answers(self) -> bool:
        try:
            with urllib.request.urlopen(f"{self.uri}/health", timeout=5) as answer:
                return bool(answer.status == 200)
        except (urllib.error.URLError, ConnectionError, TimeoutError):
            return False

    def _owner_arguments(self) -> dict[str, Any]:
        if self._owner == self._user:
            return {}
        entry = pwd.getpwnam(self._owner)
        return {"user": entry.pw_uid, "group": entry.pw_gid, "extra_groups": []}

    def _as_owner(self, program: str, *arguments: str) -> None:
        done = subprocess.run(
            [str(self._binaries / program), *arguments],
            cwd=self._folder,
            capture_output=True,
            text=True,
            check=False,
            **self._owner_arguments(),
        )
        if done.returncode:
            raise RuntimeError(f"{program} exited with {done.returncode}: {done.stderr.strip()}")

    def _start(self, name: str, command: list[str], **options: Any) -> subprocess.Popen[bytes]:
        with (self._folder / f"{name}.log").open("ab") as log:
            return subprocess.Popen(
                command,
                cwd=self._folder,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
                **options,
            )

    def _wait(self, name: str, process: subprocess.Popen[bytes], is_up: Any) -> None:
        deadline = time.monotonic() + START_SECONDS
        while not is_up():
            code = process.poll()
            if code is not None or time.monotonic() > deadline:
                raise RuntimeError(
                    f"{name}: got {'no answer' if code is None else f'exit code {code}'}, "
                    f"expected an answer within {START_SECONDS:g} s; it wrote:\n"
                    f"{self.log(name)[-2000:]}"
                )
            time.sleep(0.2)


def unit_command(replaced: dict[str, str]) -> tuple[dict[str, str], list[str]]:
    """The environment and command line of infra/mlflow/mlflow.service.

    Args:
        replaced: texts of the command line, each of which must be there, and what takes their
            place.
    """
    lines = UNIT.read_text().replace("\\\n", " ").splitlines()
    environment: dict[str, str] = {}
    for line in lines:
        if line.startswith("Environment="):
            name, _, value = line.removeprefix("Environment=").partition("=")
            environment[name] = value
    (command,) = [line for line in lines if line.startswith("ExecStart=")]
    for old, new in replaced.items():
        assert command.count(old) == 1, f"{UNIT.name}: expected {old!r} once in {command!r}"
        command = command.replace(old, new)
    return environment, shlex.split(command.removeprefix("ExecStart="))


def _postgresql_binaries() -> Path | None:
    """Folder of the newest PostgreSQL's programs."""
    found = [path.parent for path in DEBIAN_POSTGRESQL.glob("*/bin/postgres")]
    return max(found, key=lambda folder: int(folder.parent.name), default=None)


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        return int(listening.getsockname()[1])


def _kill(process: subprocess.Popen[bytes] | None) -> None:
    """SIGKILL to a process and all below it; parents first, for they start children anew."""
    if process is None:
        return
    family: list[psutil.Process] = []
    with suppress(psutil.NoSuchProcess):
        parent = psutil.Process(process.pid)
        family = [parent, *parent.children(recursive=True)]
    for member in family:
        with suppress(psutil.NoSuchProcess):
            member.kill()
    process.wait()
    psutil.wait_procs(family, timeout=STOP_SECONDS)
