"""Where the device's time of a training step goes, operation by operation."""

from __future__ import annotations

import time
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

from cdvae_ray.data.images import ImageSet

from .arithmetic import wait_for
from .progress import Say
from .scale_preset import ScalePreset
from .speed import OURS, OURS_EAGER, Measured, forms

_STEPS = 5
_SHOWN = 40


def profile_steps(
    preset: ScalePreset, images: ImageSet, device: torch.device, say: Say
) -> dict[str, Any]:
    """Of our forms of the step: wall time, the operations' own time, and the longest of them.

    On a GPU the time is the device's: where it is less than the wall time, the device waited for
    the host. On a CPU it is the processor's. The wall time is of steps without the profiler.
    """
    found = {}
    for name, form in forms(preset.training, device).items():
        if name in (OURS, OURS_EAGER):
            found[name] = _of_form(Measured(preset, form, images, device), device)
            busy, wall = found[name]["busy_milliseconds"], found[name]["step_milliseconds"]
            say(f"profile: {name}: {wall:.1f} ms a step, busy {busy:.1f} ms")
    return found


def _of_form(measured: Measured, device: torch.device) -> dict[str, Any]:
    started = time.perf_counter()
    measured.steps(_STEPS)
    wall = time.perf_counter() - started
    is_cuda = device.type == "cuda"
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if is_cuda else [])]
    with profile(activities=activities) as profiled:
        measured.steps(_STEPS)
        wait_for(device)
    own: list[tuple[float, int, str]] = []
    for event in profiled.key_averages():
        # Kernels count, not the host's calls that started them nor the ranges that enclose them:
        # those would count twice.
        is_range = is_cuda and event.is_user_annotation
        if event.device_type.name == ("CUDA" if is_cuda else "CPU") and not is_range:
            micro = event.self_device_time_total if is_cuda else event.self_cpu_time_total
            own.append((micro / 1000 / _STEPS, event.count // _STEPS, event.key))
    own.sort(reverse=True)
    return {
        "step_milliseconds": wall * 1000 / _STEPS,
        "busy_milliseconds": sum(each[0] for each in own),
        "operations": [
            {"milliseconds": milliseconds, "calls": calls, "name": name[:160]}
            for milliseconds, calls, name in own[:_SHOWN]
        ],
    }
