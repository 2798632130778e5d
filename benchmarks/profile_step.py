"""Where the time of a training step and of an attack goes, by kind of operation.

python benchmarks/profile_step.py [--rounds N] [--threads N]

The CD-VAE of cifar10-small at batch 128, as workers run it, and PGD L-infinity through it. Shares
are of the time that operations take by themselves (PyTorch's profiler; on a CPU the processor's
time, on a GPU the device's). Beside them stands the floor: the same convolutions alone.
"""

from __future__ import annotations

import argparse
import os
import time
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from allocator import keep_freed_memory
from record import write_record
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile
from train import BATCH, epoch_of, made_up_images, task_for

from cdvae_ray import attacks
from cdvae_ray.training.state import TrainState

ROOT = Path(__file__).parents[1]
ATTACK_STEPS = 10
KINDS = (
    ("convolution", ("convolution", "conv2d", "mkldnn", "slow_conv", "cudnn_conv")),
    ("batch normalisation", ("batch_norm",)),
    ("matrix product", ("addmm", "::mm", "bmm", "linear")),
    ("optimiser", ("_foreach", "_fused", "adam")),
    ("copies and layout", ("copy_", "contiguous", "to_copy", "clone", "fill_", "zero_", "index")),
    ("resampling", ("upsample", "pool", "pad", "grid_sampler")),
    ("activations", ("relu", "elu", "sigmoid", "tanh", "exp", "softmax", "threshold")),
)


def main() -> None:
    """Profiles both and writes the record."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=6)
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    arguments = parser.parse_args()
    keep_freed_memory()
    torch.set_num_threads(arguments.threads)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    state = TrainState(task_for(made_up_images(BATCH)), device)
    results: dict[str, Any] = {
        "what": "share of a step's own operations by kind; 'convolutions_alone' is the time of "
        "the step's convolutions, forward and backward, by themselves / the whole step's",
        "threads": arguments.threads,
        "device": device.type,
    }
    runs = {
        "training step": epoch_of(state, made_up_images(BATCH)),
        "attack step": attacking(state),
    }
    for name, run in runs.items():
        results[name] = shares(run, arguments.rounds, device)
        print_shares(name, results[name])
    results["convolutions_alone"] = convolutions_alone(state, device, arguments.rounds)
    print(f"convolutions alone: {results['convolutions_alone']:.0%} of the step")
    path = write_record("profile", results)
    print(f"record: {path.relative_to(ROOT)}")


class Essential(nn.Module):
    """D(R(x)), attacked through the whole CD-VAE."""

    def __init__(self, cdvae: nn.Module) -> None:
        super().__init__()
        self.cdvae = cdvae

    def forward(self, images: Tensor) -> Tensor:
        """Images to logits."""
        logits: Tensor = self.cdvae(images).logits
        return logits


def attacking(state: TrainState) -> Callable[[], object]:
    """Ten steps of PGD on one batch."""
    model = Essential(state.model)
    images = state.prepare(made_up_images(BATCH).images)
    labels = made_up_images(BATCH).labels.to(state.device)

    def run() -> None:
        model.eval()
        attacks.pgd(
            model, images, labels, epsilon=8 / 255, norm="linf", num_steps=ATTACK_STEPS, keep="last"
        )
        model.train()

    return run


def shares(run: Callable[[], object], rounds: int, device: torch.device) -> dict[str, float]:
    """Of each kind of operation, in the time of all."""
    run()  # warm up
    activities = [ProfilerActivity.CPU]
    if device.type == "cuda":
        activities.append(ProfilerActivity.CUDA)
    with profile(activities=activities) as profiled:
        for _ in range(rounds):
            run()
    times: dict[str, float] = defaultdict(float)
    for event in profiled.key_averages():
        is_cuda = device.type == "cuda"
        own = event.self_device_time_total if is_cuda else event.self_cpu_time_total
        times[kind_of(event.key)] += own
    total = sum(times.values())
    return {kind: own / total for kind, own in sorted(times.items(), key=lambda each: -each[1])}


def kind_of(operation: str) -> str:
    """What an operation belongs to, by its name."""
    lowered = operation.lower()
    for kind, words in KINDS:
        if any(word in lowered for word in words):
            return kind
    return "element by element, losses, the rest"


def convolutions_alone(state: TrainState, device: torch.device, rounds: int) -> float:
    """Seconds of the step's convolutions with nothing between them / seconds of the step."""
    calls: list[tuple[nn.Module, Tensor]] = []

    def remember(module: nn.Module, inputs: tuple[Tensor, ...], _output: object) -> None:
        calls.append((module, inputs[0].detach().clone()))

    hooks = [
        module.register_forward_hook(remember)
        for module in state.model.modules()
        if isinstance(module, nn.Conv2d | nn.ConvTranspose2d)
    ]
    step = epoch_of(state, made_up_images(BATCH))
    step()
    for hook in hooks:
        hook.remove()
    gradients = [torch.ones_like(module(inputs)) for module, inputs in calls]

    def alone() -> None:
        for (module, inputs), gradient in zip(calls, gradients, strict=True):
            variable = inputs.requires_grad_()
            torch.autograd.grad(module(variable), [variable, *module.parameters()], gradient)

    alone()
    ratios = [seconds(alone, device) / seconds(step, device) for _ in range(rounds)]
    return sorted(ratios)[len(ratios) // 2]


def seconds(run: Callable[[], object], device: torch.device) -> float:
    """Wall time of one call."""
    started = time.perf_counter()
    run()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - started


def print_shares(name: str, found: dict[str, float]) -> None:
    """A line each."""
    print(name)
    for kind, share in found.items():
        print(f"  {kind:<40} {share:6.1%}")


if __name__ == "__main__":
    main()
