"""Images/s of the CD-VAE's training step: ours against plain ones, and against the device's peak.

All forms are measured in turn in one process, several rounds of some steps each; medians count.
"""

from __future__ import annotations

import statistics
import time
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from torch.utils.flop_counter import FlopCounterMode

from cdvae_ray.config.training import TrainingConfig
from cdvae_ray.core.random import image_keys, keyed_normal
from cdvae_ray.data.images import ImageSet
from cdvae_ray.training.cdvae_task import CdvaeTask
from cdvae_ray.training.state import TrainState

from .arithmetic import Products, products, wait_for
from .device_batches import DeviceBatches
from .progress import Say
from .scale_preset import ScalePreset

OURS, OURS_EAGER = "ours, compiled", "ours, eager"
PLAIN, PLAIN_TF32 = "plain eager float32", "plain eager TF32"
_WARM_UP_STEPS = 3
_COUNTED_IMAGES = 8


class Form(NamedTuple):
    """A way to compute one and the same step."""

    training: TrainingConfig
    products: Products


def forms(training: TrainingConfig, device: torch.device) -> dict[str, Form]:
    """The ways that a device has. Ours: channels last, bfloat16 where the device has it."""
    plain = replace(training, precision="float32", channels_last=False, compile=False)
    found = {
        OURS: Form(replace(training, compile=True), "default"),
        OURS_EAGER: Form(replace(training, compile=False), "default"),
        PLAIN: Form(plain, "ieee"),
        PLAIN_TF32: Form(plain, "tf32"),
    }
    if device.type != "cuda":
        # Compiling for a CPU needs a C++ compiler and minutes; TF32 is a thing of GPUs.
        del found[OURS], found[PLAIN_TF32]
    return found


def measure_speed(
    preset: ScalePreset, images: ImageSet, device: torch.device, say: Say
) -> dict[str, Any]:
    """Everything about speed, as JSON values."""
    peak = peak_tflops(preset.matmul_size, device)
    if peak is not None:
        say(f"speed: bfloat16 products reach {peak:.0f} TFLOP/s")
    states: dict[str, Measured] = {}
    failed: dict[str, str] = {}
    for name, form in forms(preset.training, device).items():
        try:
            states[name] = Measured(preset, form, images, device)
        except Exception as error:
            if not form.training.compile:
                raise
            # Whatever a compiler throws: the others go on.
            failed[name] = f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
            say(f"speed: {name} does not work here ({failed[name][:120]})")
    for number in range(preset.speed_rounds):
        for name, state in states.items():
            rate = state.round(preset.speed_steps)
            say(f"speed: round {number + 1}, {name}: {rate:.0f} images/s")
    flops = next(iter(states.values())).flops_per_image()
    rates = {name: statistics.median(state.rates) for name, state in states.items()}
    return {
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
        "torch": torch.__version__,
        "batch": preset.training.global_batch_size,
        "peak_bfloat16_tflops": peak,
        "gflop_per_image": flops / 1e9,
        "forms": {
            name: {
                "images_per_second": rates[name],
                "least": min(state.rates),
                "most": max(state.rates),
                "rounds": len(state.rates),
                "warm_up_seconds": state.warm_up_seconds,
                "precision": state.state.precision,
                "share_of_peak": None if peak is None else rates[name] * flops / (peak * 1e12),
                "times_plain_float32": rates[name] / rates[PLAIN] if PLAIN in rates else None,
                "times_plain_tf32": rates[name] / rates[PLAIN_TF32]
                if PLAIN_TF32 in rates
                else None,
            }
            for name, state in states.items()
        },
        "failed": failed,
    }


def peak_tflops(size: int, device: torch.device, *, repeats: int = 20) -> float | None:
    """Of bfloat16 products of random square matrices, the median; None without a GPU."""
    if device.type != "cuda":
        return None
    a, b = (torch.randn((size, size), device=device, dtype=torch.bfloat16) for _ in range(2))
    seconds = []
    for repeat in range(repeats + _WARM_UP_STEPS):
        wait_for(device)
        started = time.perf_counter()
        torch.mm(a, b)
        wait_for(device)
        if repeat >= _WARM_UP_STEPS:
            seconds.append(time.perf_counter() - started)
    return 2 * size**3 / statistics.median(seconds) / 1e12


class Measured:
    """One form, warmed up."""

    def __init__(
        self, preset: ScalePreset, form: Form, images: ImageSet, device: torch.device
    ) -> None:
        self._form, self._device = form, device
        self._batch = form.training.global_batch_size
        self.state = TrainState(cdvae_task(preset, form.training, images), device)
        self.state.model.train()
        self._source = DeviceBatches(
            images, global_batch_size=self._batch, seed=form.training.seed, device=device
        )
        self.rates: list[float] = []
        started = time.perf_counter()
        self.steps(_WARM_UP_STEPS)
        self.warm_up_seconds = time.perf_counter() - started

    def round(self, steps: int) -> float:
        """Images/s of some steps, which are kept."""
        wait_for(self._device)
        started = time.perf_counter()
        self.steps(steps)
        self.rates.append(steps * self._batch / (time.perf_counter() - started))
        return self.rates[-1]

    def flops_per_image(self) -> float:
        """Of a training step's forward and backward passes, counted operation by operation."""
        model = self.state.task.build_model().to(self._device).train()
        size = self.state.task.image_size  # type: ignore[attr-defined]
        images = torch.rand((_COUNTED_IMAGES, 3, size, size), device=self._device)
        keys = image_keys(0, "speed", 0, torch.arange(_COUNTED_IMAGES)).to(self._device)
        noise = keyed_normal(keys, model.config.noise_size)  # type: ignore[union-attr, arg-type]
        with FlopCounterMode(display=False) as counter:
            output = model(images, noise)
            (output.logits.sum() + output.reconstruction.sum()).backward()
        return float(counter.get_total_flops()) / _COUNTED_IMAGES

    def steps(self, count: int) -> None:
        """Some steps, waited for."""
        done = 0
        with products(self._form.products):
            while True:
                for index, batch in enumerate(self._source.epoch_batches(0)):
                    if done == count:
                        wait_for(self._device)
                        return
                    self.state.train_step(batch, epoch=0, index=index)
                    done += 1


def cdvae_task(preset: ScalePreset, training: TrainingConfig, images: ImageSet) -> CdvaeTask:
    """The CD-VAE of a preset on a dataset."""
    return CdvaeTask(
        model=preset.model,
        objective=preset.objective,
        training=training,
        augmentation=preset.augmentation,
        image_size=images.image_size,
        class_names=images.class_names,
    )
