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
