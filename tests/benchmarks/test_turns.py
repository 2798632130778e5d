"""Processes in turns: who waits does not run, nor what it started, and only its turns count."""

import os
import sys

import psutil
import pytest

from benchmarks.turns import Runner, ending, take_turns

PARENT = "import subprocess, sys; subprocess.run([sys.executable, '-c', 'input()'])"
SHORT = "print('done', file=open('done', 'w'))"


def run(code, folder):
    folder.mkdir()
    return Runner([sys.executable, "-c", code], folder, os.environ)


def family(runner):
    head = psutil.Process(runner._process.pid)
    return [head, *head.children(recursive=True)]


def is_alive(process):
    try:
        return process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def test_a_pause_stops_a_process_and_its_children_and_an_end_leaves_none(tmp_path):
    runner = run(PARENT, tmp_path / "a")
    with ending({"a": runner}):
        while len(family(runner)) < 2:
            pass
        everyone = family(runner)
        runner.pause()
        # A signal is delivered when its process next runs.
        while {each.status() for each in everyone} != {psutil.STATUS_STOPPED}:
            pass
        runner.go_on()
        assert psutil.STATUS_STOPPED not in {each.status() for each in everyone}
    while any(map(is_alive, everyone)):
        pass


def test_only_turns_count(tmp_path):
    runner = run(SHORT, tmp_path / "a")
    with ending({"a": runner}):
        runner._turns, runner._began = [(10.0, 13.0), (19.0, 22.0)], 28.0
        assert runner.seconds_between(11.0, 20.0) == 3.0
        assert runner.seconds_between(0.0, 30.0) == 8.0
        assert runner.seconds_between(13.0, 19.0) == 0.0


def test_all_get_turns_until_they_are_over_and_a_failure_is_no_end(tmp_path):
    runners = [run(SHORT, tmp_path / name) for name in "abc"]
    with ending(dict(zip("abc", runners, strict=True))):
        for each in runners:
            each.pause()
        take_turns(runners, seconds=0.2)
    assert all((tmp_path / name / "done").exists() for name in "abc")
    failing = run("raise SystemExit(3)", tmp_path / "d")
    with ending({"d": failing}), pytest.raises(RuntimeError, match="ended with 3"):
        failing.pause()
        take_turns([failing])
