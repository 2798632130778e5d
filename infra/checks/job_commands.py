"""Command lines of jobs, parsed by the jobs' own parsers; nothing is started."""

from __future__ import annotations

import contextlib
import importlib.util
import io
import re
import sys
from collections.abc import Sequence
from functools import cache
from types import ModuleType
from typing import Any

from cdvae_ray import cli
from cdvae_ray.errors import CdvaeError
from infra.checks.files import ROOT


class _Parsed(Exception):  # noqa: N818 - not an error: it ends a job where its work would begin
    """The job has parsed its command line."""


def _parse_only(*arguments: Any, **settings: Any) -> None:
    cli.parse(*arguments, **settings)
    raise _Parsed


@cache
def _job(name: str) -> ModuleType | None:
    path = ROOT / "jobs" / f"{name}.py"
    specification = importlib.util.spec_from_file_location(f"_checked_{name}", path)
    if not path.is_file() or specification is None or specification.loader is None:
        return None
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    # Every job's main begins with this call.
    module.parse = _parse_only  # type: ignore[attr-defined]
    return module


def job_problem(name: str, arguments: Sequence[str]) -> str:
    """What a job says against its arguments; empty if it would begin its work."""
    module = _job(name)
    if module is None:
        return f"no jobs/{name}.py"
    said, before = io.StringIO(), sys.argv
    sys.argv = [f"{name}.py", *arguments]
    try:
        with contextlib.redirect_stderr(said), contextlib.redirect_stdout(said):
            module.main()
    except _Parsed:
        return ""
    except CdvaeError as error:
        return str(error)
    except SystemExit:
        # tyro draws a box around what it says.
        text = re.sub(r"[─-╿]", " ", said.getvalue())
        return " ".join(text.split())[:200]
    finally:
        sys.argv = before
    return f"jobs/{name}.py does not parse its command line by cdvae_ray.cli.parse"
