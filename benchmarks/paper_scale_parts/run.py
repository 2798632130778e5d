"""One call: every stage that was asked for, as far as the budget reaches."""

from __future__ import annotations

import platform
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from cdvae_ray.config.serialize import to_dict
from cdvae_ray.data.images import Splits
from cdvae_ray.errors import ConfigError, ResourceError
from cdvae_ray.training.classifier_task import ClassifierTask
from cdvae_ray.training.state import resolve_precision

from .arithmetic import trying_convolutions
from .clock import Clock, OutOfBudgetError
from .models import INPUT_OF, frozen_cdvae, load_models
from .picture import write_decompositions
from .plan import make_plan, scheduled
from .prepared import INDEX, load_source, read_prepared, source_of
from .profile import profile_steps
from .progress import Say, teller
from .scale_preset import NEEDED, TRAINED, ScalePreset, scale_preset
from .speed import cdvae_task, measure_speed
from .stage import Stage, stage_states, write_json
from .synthetic import synthetic_splits
from .tables import Tables, fill_tables, gather_scores, stored_rows
from .train import train_stage

_LAST = TRAINED[-1]
_FIRST = ("cdvae", "classifier-x")
"""What is not trained behind a CD-VAE."""
STAGES = ("speed", *NEEDED, "tables", _LAST)
PROFILE = "profile"
"""A stage that is done only where it is asked for."""
SYNTHETIC = "synthetic"


@dataclass(frozen=True, kw_only=True, slots=True)
class Arguments:
    """What a call was given; see the command's help."""

    preset: str
    data: str
    out: Path
    state: Path | None
    budget_seconds: float
    plan_seconds: float | None
    device: str
    stages: list[str]
    tables: list[str] | None
    gamma: float | None
    recalibration_steps: int


def run(arguments: Arguments, *, started: float | None = None) -> bool:
    """Does what fits; returns whether everything that was asked for is finished.

    Raises:
        CdvaeError: settings, data or files that it cannot go on with.
    """
    clock = Clock(arguments.budget_seconds, started=started)
    say = teller(clock)
    call = _Call(arguments, clock, say)
    finished = False
    try:
        call.all_stages()
        finished = True
    except OutOfBudgetError:
        say("the budget is used up: the same command goes on from here")
    finally:
        call.summarize(finished)
    say("finished" if finished else "not finished")
    return finished


class _Call:
    """The stages of one call, made as they are reached: later ones depend on earlier results."""

    def __init__(self, arguments: Arguments, clock: Clock, say: Say) -> None:
        self._arguments, self._clock, self._say = arguments, clock, say
        self._preset: ScalePreset = scale_preset(
            arguments.preset,
            gamma=arguments.gamma,
            recalibration_steps=arguments.recalibration_steps,
        )
        self._root = arguments.state or arguments.out / "state"
        arguments.out.mkdir(parents=True, exist_ok=True)
        self.device = _device(arguments.device)
        self._splits, self._data = _load(arguments.data)
        self._stages: dict[str, Stage] = {}
        say(
            f"{arguments.preset} on {self.device}: {len(self._splits.train)} training and "
            f"{len(self._splits.test)} test images of {self._data['name']}"
        )

    def all_stages(self) -> None:
        """In order; finished ones are skipped."""
        wanted = self._arguments.stages
        if "speed" in wanted:
            self._speed()
        if PROFILE in wanted:
            self._profile()
        if set(wanted) <= {"speed", PROFILE}:
            return
        plan = self._plan()
        for name in NEEDED:
            # The others are looked at, for what was asked for may need them.
            if name in wanted or name in _FIRST or self._stages["cdvae"].finished:
                self._train(name, plan)
        if "tables" in wanted:
            self._tables()
        if _LAST in wanted and plan["epochs"][_LAST] > 0:
            self._train(_LAST, plan)
            if "tables" in wanted:
                self._tables()

    def summarize(self, finished: bool) -> None:
        """The small files of results, whatever there is so far."""
        out, tables = self._arguments.out, self._root / "tables"
        gather_scores(tables, out / "scores.safetensors")
        on_gpu = self.device.type == "cuda"
        write_json(
            out / "summary.json",
            {
                "finished": finished,
                "preset": self._arguments.preset,
                "gamma": self._preset.objective.gamma,
                "recalibration_steps": self._preset.training.recalibration_steps,
                "device": torch.cuda.get_device_name(self.device) if on_gpu else "cpu",
                "torch": torch.__version__,
                "python": platform.python_version(),
                "float32": "convolutions in TF32, PyTorch's default" if on_gpu else "IEEE",
                "data": self._data,
                "stages": [
                    {key: value for key, value in state.items() if key != "settings"}
                    for state in stage_states(self._root)
                ],
                "rows": stored_rows(tables),
            },
        )

    def _step_stage(self, name: str) -> Stage:
        """A stage that measures the training step."""
        settings = {
            "model": to_dict(self._preset.model),
            "batch": self._preset.training.global_batch_size,
            "device": self.device.type,
        }
        return Stage(self._root, name, settings)

    def _speed(self) -> None:
        stage = self._stages["speed"] = self._step_stage("speed")
        if stage.finished:
            return
        self._clock.begin(0.0)
        started = time.perf_counter()
        with trying_convolutions():
            found = measure_speed(self._preset, self._splits.train, self.device, self._say)
        stage.note(seconds=time.perf_counter() - started, finished=True, **found)

    def _profile(self) -> None:
        stage = self._stages[PROFILE] = self._step_stage(PROFILE)
        if not stage.finished:
            self._clock.begin(0.0)
            with trying_convolutions():
                found = profile_steps(self._preset, self._splits.train, self.device, self._say)
            stage.note(finished=True, forms=found)

    def _plan(self) -> dict[str, Any]:
        preset, given = self._preset, self._arguments.plan_seconds
        # All are planned, so that a call of some stages plans as one of all would.
        settings = {"model": to_dict(preset.model)}
        stage = Stage(self._root, "plan", settings)
        if stage.finished:
            planned = stage.results.get("seconds")
            if None not in (given, planned) and given != planned:
                raise ConfigError(
                    "--plan-seconds",
                    got=given,
                    expected=f"{planned}, by which the epochs were planned",
                    remedy="leave it out, or take another --out",
                )
            return stage.results
        if preset.fixed_epochs is None and "speed" not in self._stages:
            self._speed()
        plan = make_plan(
            preset,
            seconds=self._arguments.budget_seconds if given is None else given,
            num_images=len(self._splits.train),
            speed=self._stages["speed"].results if "speed" in self._stages else {},
        )
        stage.note(finished=True, **plan)
        self._say(f"plan: epochs {plan['epochs']} from {plan['from']}")
        return stage.results

    def _train(self, name: str, plan: dict[str, Any]) -> None:
        preset, train = self._preset, self._splits.train
        training = scheduled(preset.training, plan, name)
        settings = {
            "augmentation": to_dict(preset.augmentation),
            "training": {
                **to_dict(training),
                "precision": resolve_precision(training, self.device),
            },
            "train_images": train.digest,
        }
        is_wanted = name in self._arguments.stages
        if name == "cdvae":
            settings |= {
                "model": to_dict(preset.model),
                "objective": to_dict(preset.objective),
            }
        else:
            settings |= {"model": to_dict(preset.classifier)}
            if name != "classifier-x":
                settings["cdvae"] = self._finished("cdvae").results["weights_sha256"]
        stage = self._stages[name] = Stage(self._root, name, settings)
        if stage.finished or not is_wanted:
            return
        if name == "cdvae":
            task: Any = cdvae_task(preset, training, train)
        else:
            task = ClassifierTask(
                input_kind=INPUT_OF[name],
                cdvae=None
                if name == "classifier-x"
                else frozen_cdvae(self._finished("cdvae"), preset, train),
                model=preset.classifier,
                training=training,
                augmentation=preset.augmentation,
                image_size=train.image_size,
                class_names=train.class_names,
            )
        with trying_convolutions():
            train_stage(
                stage,
                task,
                train,
                self.device,
                self._clock,
                self._say,
                planned_epoch_seconds=plan.get("epoch_seconds"),
            )

    def _tables(self) -> None:
        preset = self._preset
        needed = {name: self._finished(name) for name in NEEDED}
        settings = {
            "weights": {name: each.results["weights_sha256"] for name, each in needed.items()},
            "test_images": self._splits.test.digest,
            "attacks": [
                to_dict(each) for each in (*preset.detection, *preset.grey_box, *preset.white_box)
            ],
            "detectors": to_dict(preset.detectors),
            "images": [preset.study_images, preset.detection_images, preset.defense_images],
            "resamples": preset.resamples,
        }
        stage = self._stages["tables"] = Stage(self._root, "tables", settings)
        last = self._stages.get(_LAST)
        has_last = last is not None and last.finished
        if stage.finished and stage.results["has_last"] == has_last:
            return
        ready = {**needed, _LAST: last} if last is not None and has_last else needed
        models = load_models(ready, preset, self._splits.train, self.device)
        write_decompositions(
            self._arguments.out / "pictures.png", models.cdvae, self._splits.test, self.device
        )
        tables = Tables(
            preset,
            models,
            self._splits,
            str(self._data["name"]),
            self.device,
            stage.folder,
            self._say,
        )
        is_full = fill_tables(stage, tables, self._clock, self._say, only=self._arguments.tables)
        if is_full:
            stage.note(finished=True, has_last=has_last)

    def _finished(self, name: str) -> Stage:
        stage = self._stages.get(name)
        if stage is None or not stage.finished:
            raise ConfigError(
                f"the stage {name}",
                got="not finished" if stage else "not begun",
                expected="finished, as later stages need it",
                remedy=f"run --stages {name} first",
            )
        return stage


def _device(name: str) -> torch.device:
    has_gpu = torch.cuda.is_available()
    if name == "cuda" and not has_gpu:
        raise ResourceError(
            "--device",
            got="cuda, of which torch sees none",
            expected="a GPU",
            remedy="take --device cpu, with --preset small or smoke",
        )
    return torch.device("cpu" if name == "cpu" or not has_gpu else "cuda")


def _load(data: str) -> tuple[Splits, dict[str, Any]]:
    if data == SYNTHETIC:
        splits = synthetic_splits()
        return splits, {"name": SYNTHETIC, "digests": [each.digest for each in splits]}
    folder = Path(data)
    if (folder / INDEX).is_file():
        return read_prepared(folder)
    splits = load_source(source_of(folder), folder, 32)
    return splits, {"name": folder.name, "digests": [each.digest for each in splits]}
