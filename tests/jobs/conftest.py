"""Scripts run in the test process: starting Python and PyTorch for each case takes seconds."""

import runpy
import signal
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture
def run_script(monkeypatch, capsys):
    """A function that runs jobs/<name>.py in a folder, and gives what a process would give."""

    def run(name, folder, *arguments):
        command = [f"{name}.py", *map(str, arguments)]
        monkeypatch.chdir(folder)
        monkeypatch.setattr(sys, "argv", command)
        monkeypatch.setattr(signal, "signal", lambda *_: None)
        capsys.readouterr()
        with pytest.raises(SystemExit) as stopped:
            runpy.run_path(str(ROOT / "jobs" / f"{name}.py"), run_name="__main__")
        output = capsys.readouterr()
        return subprocess.CompletedProcess(command, stopped.value.code, output.out, output.err)

    return run


@pytest.fixture
def refused(run_script, tmp_path):
    """Asserts that a script refuses arguments in one line, with exit code 1, and writes nothing."""

    def check(name, arguments, complaint):
        before = sorted(tmp_path.rglob("*"))
        done = run_script(name, tmp_path, *arguments)
        lines = done.stderr.strip().splitlines()
        assert done.returncode == 1, done.stderr
        assert len(lines) == 1, done.stderr
        assert lines[0].startswith("error: ")
        assert complaint in lines[0]
        for part in ("got ", ", expected ", "; "):
            assert part in lines[0]
        assert sorted(tmp_path.rglob("*")) == before

    return check
