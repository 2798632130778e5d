"""A stage's folder: which settings it was begun with, how far it is, and the time it took."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cdvae_ray.config.serialize import digest_of
from cdvae_ray.errors import ConfigError

_FILE = "stage.json"


class Stage:
    """One stage of the run, for these settings; an interrupted one goes on where it was.

    Args:
        root: the folder of all stages.
        name: of this one.
        settings: all that determines its results, as JSON values.

    Raises:
        ConfigError: the folder holds the stage with other settings.
    """

    def __init__(self, root: Path, name: str, settings: Mapping[str, Any]) -> None:
        self.name, self.folder = name, root / name
        plain = json.loads(json.dumps(settings))
        self._state: dict[str, Any] = {
            "stage": name,
            "settings_digest": digest_of(plain),
            "settings": plain,
            "seconds": 0.0,
            "finished": False,
            "reached": "",
            "results": {},
        }
        path = self.folder / _FILE
        if path.is_file():
            before = json.loads(path.read_text())
            if before["settings_digest"] != self._state["settings_digest"]:
                what, got, expected = _first_difference(plain, before["settings"], "")
                raise ConfigError(
                    f"settings of the stage {name}: {what}",
                    got=got,
                    expected=f"{expected}, with which it was begun",
                    remedy=f"call it as before, take another --out, or delete {self.folder}",
                )
            self._state = before

    @property
    def finished(self) -> bool:
        """Whether there is nothing left to do."""
        return bool(self._state["finished"])

    @property
    def results(self) -> dict[str, Any]:
        """Small numbers that it came to."""
        results: dict[str, Any] = self._state["results"]
        return results

    def note(
        self,
        *,
        seconds: float = 0.0,
        reached: str | None = None,
        finished: bool = False,
        **results: Any,
    ) -> None:
        """Stores progress: seconds are added, results replace those of the same name."""
        self._state["seconds"] += seconds
        self._state["finished"] = self.finished or finished
        self._state["results"] |= results
        if reached is not None:
            self._state["reached"] = reached
        self.folder.mkdir(parents=True, exist_ok=True)
        write_json(self.folder / _FILE, self._state)


def stage_states(root: Path) -> list[dict[str, Any]]:
    """What the stages of a run say of themselves."""
    return [json.loads(path.read_text()) for path in sorted(root.glob(f"*/{_FILE}"))]


def write_json(path: Path, values: Any) -> None:
    """Writes JSON whole or not at all."""
    aside = path.with_suffix(".partial")
    aside.write_text(json.dumps(_finite(values), indent=1, allow_nan=False) + "\n")
    aside.replace(path)


def _finite(values: Any) -> Any:
    """The same with null for NaN and infinity, of which JSON knows nothing."""
    if isinstance(values, dict):
        return {name: _finite(each) for name, each in values.items()}
    if isinstance(values, list | tuple):
        return [_finite(each) for each in values]
    return None if isinstance(values, float) and not math.isfinite(values) else values


def _first_difference(now: Any, before: Any, what: str) -> tuple[str, str, str]:
    """The name of the first setting that differs, what it is and what it was."""
    if isinstance(now, dict) and isinstance(before, dict):
        for name in sorted({*now, *before}):
            if now.get(name) != before.get(name):
                inner = f"{what}.{name}" if what else name
                return _first_difference(now.get(name), before.get(name), inner)
    return what, json.dumps(now), json.dumps(before)
