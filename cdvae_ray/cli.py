"""What every job's command line shares: presets, one-line errors, the summary file."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import signal
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any, NoReturn, TypeVar

import tyro

from cdvae_ray.config.tracking import TrackingConfig
from cdvae_ray.errors import CdvaeError, ConfigError, StorageError, holds_secrets
from cdvae_ray.evaluation.results import table_text
from cdvae_ray.evaluation.search_table import search_text

if TYPE_CHECKING:
    from cdvae_ray.runtime.search import SearchOutcome
    from cdvae_ray.runtime.training_job import TrainOutcome

Config = TypeVar("Config")


def parse(
    kind: type[Config],
    arguments: Sequence[str],
    *,
    job: str,
    presets: Mapping[str, tuple[str, Config]],
    default_preset: str,
    choose: Callable[[str], Config],
) -> tuple[str, Config]:
    """The preset's name and the config of a command line `[preset] [--flag value ...]`.

    The preset may as well be given as `--preset NAME`, anywhere.

    Args:
        kind: the config's type, whose docstrings become the help.
        arguments: without the program's name.
        job: the program, for the help.
        presets: what each preset is, and its config.
        default_preset: what a command line without a preset means.
        choose: a preset's config, or an error that names the presets.

    Raises:
        ConfigError: an address that jobs write down holds credentials, or the summary cannot be
            written where it is to go.
    """
    given, arguments = _given_preset(arguments)
    name = default_preset if given is None else given
    listing = "\n".join(f"  {each:<18}{summary}" for each, (summary, _) in presets.items())
    config = tyro.cli(
        kind,
        args=arguments,
        default=choose(name),
        prog=f"{job} [preset]",
        description=f"{kind.__doc__}\n\nPresets ({default_preset} without one):\n{listing}\n\n"
        f"Defaults below are those of {name}.",
    )
    _refuse_secrets(config)
    if (summary := getattr(config, "summary", None)) is not None:
        _require_writable(summary)
    return name, config


def _require_writable(path: Path) -> None:
    """Says before the work, and not after it, that a summary cannot be written there."""
    got = ""
    try:
        place = next(each for each in path.absolute().parents if each.exists())
        if path.is_dir():
            got = "a folder"
        elif not place.is_dir() or not os.access(place, os.W_OK):
            got = f"{place}, which cannot be written to"
    except OSError as error:  # a folder that may not even be looked into
        got = f"{error.strerror}: {error.filename}"
    if got:
        raise ConfigError(
            f"summary {path}",
            got=got,
            expected="a file in a folder that can be written to",
            remedy="correct --summary",
        )


def _refuse_secrets(value: Any, what: str = "") -> None:
    """Refuses credentials in any address but MLflow's, which is shown without them everywhere."""
    if isinstance(value, TrackingConfig):
        return
    if isinstance(value, str) and holds_secrets(value):
        raise ConfigError(
            what,
            got=f"credentials in the address {value}",
            expected="an address without, since it is written into manifests and MLflow",
            remedy="set them in the environment (AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY) or in "
            "~/.aws/credentials, and take them out of the address",
        )
    if dataclasses.is_dataclass(value):
        for each in dataclasses.fields(value):
            name = f"{what}.{each.name}" if what else each.name
            _refuse_secrets(getattr(value, each.name), name)
    elif isinstance(value, Mapping):
        for each in value.values():
            _refuse_secrets(each, what)
    elif isinstance(value, list | tuple):
        for each in value:
            _refuse_secrets(each, what)


def _given_preset(arguments: Sequence[str]) -> tuple[str | None, list[str]]:
    """The preset of a command line, None without one, and the other arguments."""
    rest = list(arguments)
    if rest and not rest[0].startswith("-"):
        return rest[0], rest[1:]
    for place, each in enumerate(rest):
        flag, equals, value = each.partition("=")
        if flag == "--preset":
            end = place + (1 if equals else 2)
            return value or "".join(rest[place + 1 : end]), rest[:place] + rest[end:]
    return None, rest


def write_summary(
    path: Path,
    *,
    job: str,
    run_id: str | None,
    checkpoint: str,
    config_digest: str,
    metrics: Mapping[str, float],
) -> None:
    """Writes a job's final numbers as JSON, whole or not at all.

    Raises:
        StorageError: the place cannot be written to, or is full.
    """
    summary = {
        "job": job,
        "run_id": run_id,
        "checkpoint": checkpoint,
        "config_digest": config_digest,
        "metrics": dict(metrics),
    }
    content = json.dumps(summary, indent=2, allow_nan=False) + "\n"
    aside = path.with_name(f".partial-{path.name}-{os.getpid()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        aside.write_text(content)
        aside.replace(path)
    except OSError as error:
        with contextlib.suppress(OSError):
            aside.unlink(missing_ok=True)
        raise StorageError(
            f"summary {path}",
            got=error.strerror or str(error),
            expected="a writable place with room",
            remedy="correct --summary; the results are stored, and the same command finds them",
        ) from error


def conclude_training(
    outcome: TrainOutcome, *, job: str, stored: str, summary: Path | None
) -> None:
    """Prints what training came to, and writes the summary if one is asked for.

    Args:
        outcome: of the job.
        job: its name in the summary.
        stored: what lies in the folder of results.
        summary: where the summary goes.
    """
    say("")
    say(table_text(outcome.table))
    say(f"\n  {stored}: {outcome.results}\n  checkpoint: {outcome.checkpoint}")
    if outcome.run_id:
        say(f"  MLflow run: {outcome.run_id}  (make ui)")
    if summary is not None:
        write_summary(
            summary,
            job=job,
            run_id=outcome.run_id,
            checkpoint=outcome.checkpoint,
            config_digest=outcome.config_digest,
            metrics=outcome.metrics,
        )


def conclude_search(outcome: SearchOutcome, *, job: str, summary: Path | None) -> None:
    """Prints what a search came to, and writes the summary if one is asked for.

    Args:
        outcome: of the job.
        job: its name in the summary.
        summary: where the summary goes.
    """
    say(f"\n{search_text(outcome.trials, outcome.space)}\n")
    for trial in outcome.trials:
        if trial.reason:
            say(f"  {outcome.space.parameter} = {trial.value:g} {trial.state}: {trial.reason}")
    say(f"  * on the Pareto front\n  table, page and pictures: {outcome.report}")
    if outcome.run_id:
        say(f"  MLflow run: {outcome.run_id}  (make ui)")
    if summary is not None:
        write_summary(
            summary,
            job=job,
            run_id=outcome.run_id,
            checkpoint="",
            config_digest=outcome.config_digest,
            metrics=outcome.metrics,
        )


def run_job(job: Callable[[], Any]) -> NoReturn:
    """Runs a job and exits: 0 if it went well, 1 with one line on stderr if not."""
    signal.signal(signal.SIGTERM, _stop)
    try:
        job()
    except CdvaeError as error:
        print(f"error: {error}", file=sys.stderr)  # noqa: T201 - the command line's own output
        sys.exit(1)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)  # noqa: T201
        sys.exit(130)
    sys.exit(0)


def say(line: str) -> None:
    """Prints a line at once, also into a pipe."""
    print(line, flush=True)  # noqa: T201


def _stop(number: int, _frame: FrameType | None) -> NoReturn:
    # A stopped job unwinds like an interrupted one, so that its MLflow run ends as KILLED.
    sys.exit(128 + number)
