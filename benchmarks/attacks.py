"""Cost of the attacks: ours and those of public libraries, against a bare loop of gradients.

python benchmarks/attacks.py [--rounds N] [--threads N] [--batch N] [--networks NAME ...]

The bare loop takes as many steps as the attack, each a forward and a gradient with respect to the
images alone. Every number is a ratio of measurements that were interleaved in this run; medians
over rounds. Networks have random weights, normalise inside and run in eval mode, on 32 x 32 noise.
"""

from __future__ import annotations

import argparse
import copy
import functools
import importlib
import os
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torchattacks  # type: ignore[import-untyped]
from allocator import keep_freed_memory
from art.attacks.evasion import (  # type: ignore[import-untyped]
    CarliniL2Method,
    FastGradientMethod,
    ProjectedGradientDescentPyTorch,
)
from art.estimators.classification import PyTorchClassifier  # type: ignore[import-untyped]
from record import spread, write_record
from torch import Tensor, nn

from cdvae_ray import attacks
from cdvae_ray.core.wide_resnet import WideResNet

with warnings.catch_warnings():
    # foolbox 3.3.4 imports from a namespace that SciPy has renamed.
    warnings.simplefilter("ignore", DeprecationWarning)
    # By name: its modules do not export what they offer, as mypy sees it.
    foolbox: Any = importlib.import_module("foolbox")

ROOT = Path(__file__).parents[1]
NETWORKS = {"WRN-10-1": (10, 1), "WRN-16-2": (16, 2)}
CLASSES = 10
LINF, L2, FLOW = 8 / 255, 1.0, 0.05
STEPS = {"FGSM": 1, "PGD-Linf-10": 10, "PGD-L2-10": 10, "C&W-L2-20": 20, "StAdv-10": 10}
Attack = Callable[[], object]


class Classifier(nn.Module):
    """A network of random weights on images in [0, 1]."""

    def __init__(self, depth: int, widen_factor: int) -> None:
        super().__init__()
        self.network = WideResNet(depth=depth, widen_factor=widen_factor, num_classes=CLASSES)

    def forward(self, images: Tensor) -> Tensor:
        """Images to logits."""
        logits: Tensor = self.network((images - 0.5) / 0.25)
        return logits


def main() -> None:
    """Runs everything and writes the record."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--networks", nargs="*", choices=tuple(NETWORKS), default=["WRN-10-1"])
    arguments = parser.parse_args()
    keep_freed_memory()
    torch.set_num_threads(arguments.threads)
    results: dict[str, Any] = {
        "what": "seconds of an attack / seconds of a bare loop of as many forwards and input "
        "gradients, channels-first; 'ours' keeps the last iterate and drops nothing, 'ours, "
        "channels_last' is the same in the layout that jobs use, 'ours, best' keeps the best "
        "and drops images once fooled; the C&W of torchattacks may stop before its last step",
        "threads": arguments.threads,
        "batch": arguments.batch,
    }
    for name in arguments.networks:
        depth, widen_factor = NETWORKS[name]
        torch.manual_seed(0)
        model = Classifier(depth, widen_factor).eval()
        results[name] = compare(name, model, arguments.batch, arguments.rounds)
    path = write_record("attacks", results)
    print(f"record: {path.relative_to(ROOT)}")


def compare(
    network: str, model: Classifier, batch: int, rounds: int
) -> dict[str, dict[str, dict[str, float]]]:
    """Ratios to the bare loop, by attack and by who wrote it."""
    images = torch.rand(batch, 3, 32, 32)
    with torch.no_grad():
        labels = model(images).argmax(dim=1)  # so that no image is fooled before it is attacked
    candidates = {
        attack: {
            **ours(attack, model, images, labels),
            **by_torchattacks(attack, model, images, labels),
            **by_foolbox(attack, model, images, labels),
            **by_art(attack, model, images, labels),
        }
        for attack in STEPS
    }
    ratios: dict[str, dict[str, list[float]]] = {
        attack: {name: [] for name in runs} for attack, runs in candidates.items()
    }
    bare_loop(model, images, labels, 1)  # warm up
    for round_number in range(rounds):
        for attack, runs in candidates.items():
            floor = seconds(functools.partial(bare_loop, model, images, labels, STEPS[attack]))
            for name, run in runs.items():
                ratios[attack][name].append(seconds(run) / floor)
        print(f"{network}: round {round_number + 1} of {rounds}", flush=True)
    summary = {
        attack: {name: spread(values) for name, values in rows.items()}
        for attack, rows in ratios.items()
    }
    print_table(network, summary)
    return summary


def print_table(network: str, summary: dict[str, dict[str, dict[str, float]]]) -> None:
    """Medians: an attack a row, an implementation a column."""
    columns = list(dict.fromkeys(name for rows in summary.values() for name in rows))
    print(f"\n{network:<12}" + "".join(f"{name:>20}" for name in columns))
    for attack, rows in summary.items():
        cells = (f"{rows[name]['median']:.2f}" if name in rows else "" for name in columns)
        print(f"{attack:<12}" + "".join(f"{cell:>20}" for cell in cells))
    print()


def seconds(run: Attack) -> float:
    """Wall time of one call."""
    started = time.perf_counter()
    run()
    return time.perf_counter() - started


def bare_loop(model: nn.Module, images: Tensor, labels: Tensor, steps: int) -> None:
    """The least that an attack of so many steps has to compute."""
    for _ in range(steps):
        variable = images.detach().requires_grad_()
        loss = nn.functional.cross_entropy(model(variable), labels, reduction="sum")
        torch.autograd.grad(loss, variable)


def ours(attack: str, model: Classifier, images: Tensor, labels: Tensor) -> dict[str, Attack]:
    """The last iterate in both memory layouts, and the best with fooled images dropped."""
    last_layout = torch.channels_last
    rows: dict[str, tuple[nn.Module, Tensor, bool]] = {
        "ours": (model, images, False),
        "ours, channels_last": (
            copy.deepcopy(model).to(memory_format=last_layout),  # type: ignore[call-overload]
            images.contiguous(memory_format=last_layout),
            False,
        ),
        "ours, best": (model, images, True),
    }
    return {
        name: functools.partial(run_ours, attack, classify, batch, labels, best)
        for name, (classify, batch, best) in rows.items()
    }


def run_ours(attack: str, model: nn.Module, images: Tensor, labels: Tensor, best: bool) -> object:
    """One of our attacks. C&W always keeps its best; `best` lets it abort."""
    keep: Any = "best" if best else "last"
    steps = STEPS[attack]
    if attack == "FGSM":
        return attacks.fgsm(model, images, labels, epsilon=LINF, keep=keep)
    if attack == "C&W-L2-20":
        return attacks.carlini_wagner_l2(
            model, images, labels, num_steps=steps, num_searches=1, abort_early=best
        )
    if attack == "StAdv-10":
        return attacks.stadv(model, images, labels, epsilon=FLOW, num_steps=steps, keep=keep)
    is_l2 = attack == "PGD-L2-10"
    return attacks.pgd(
        model,
        images,
        labels,
        epsilon=L2 if is_l2 else LINF,
        norm="l2" if is_l2 else "linf",
        num_steps=steps,
        keep=keep,
    )


def by_torchattacks(
    attack: str, model: nn.Module, images: Tensor, labels: Tensor
) -> dict[str, Attack]:
    """torchattacks 3.5.1; it has no StAdv."""
    steps = STEPS[attack]
    makers: dict[str, Callable[[], Any]] = {
        "FGSM": lambda: torchattacks.FGSM(model, eps=LINF),
        "PGD-Linf-10": lambda: torchattacks.PGD(model, eps=LINF, alpha=LINF / 4, steps=steps),
        "PGD-L2-10": lambda: torchattacks.PGDL2(model, eps=L2, alpha=L2 / 4, steps=steps),
        "C&W-L2-20": lambda: torchattacks.CW(model, c=1e-3, steps=steps),
    }
    if attack not in makers:
        return {}
    return {"torchattacks": functools.partial(makers[attack](), images, labels)}


def by_foolbox(attack: str, model: nn.Module, images: Tensor, labels: Tensor) -> dict[str, Attack]:
    """foolbox 3.3.4, its raw `run`, without the final check of success; it has no StAdv."""
    wrapped = foolbox.PyTorchModel(model, bounds=(0, 1), device="cpu")
    steps = STEPS[attack]
    criterion = foolbox.criteria.Misclassification(labels)
    radius = {"epsilon": L2 if attack == "PGD-L2-10" else LINF}
    made: dict[str, Any] = {
        "FGSM": foolbox.attacks.LinfFastGradientAttack(),
        "PGD-Linf-10": foolbox.attacks.LinfPGD(abs_stepsize=LINF / 4, steps=steps),
        "PGD-L2-10": foolbox.attacks.L2PGD(abs_stepsize=L2 / 4, steps=steps),
        "C&W-L2-20": foolbox.attacks.L2CarliniWagnerAttack(
            binary_search_steps=1, steps=steps, abort_early=False
        ),
    }
    if attack not in made:
        return {}
    options = {} if attack == "C&W-L2-20" else radius
    return {"foolbox": functools.partial(made[attack].run, wrapped, images, criterion, **options)}


def by_art(attack: str, model: nn.Module, images: Tensor, labels: Tensor) -> dict[str, Attack]:
    """ART 1.20.1, on NumPy arrays as it takes them; it has no StAdv."""
    estimator = PyTorchClassifier(
        model,
        loss=nn.CrossEntropyLoss(),
        input_shape=tuple(images.shape[1:]),
        nb_classes=CLASSES,
        clip_values=(0.0, 1.0),
        device_type="cpu",
    )
    batch, steps = len(images), STEPS[attack]
    common = {"batch_size": batch, "verbose": False}
    climb = {"max_iter": steps, "num_random_init": 1, **common}
    makers: dict[str, Callable[[], Any]] = {
        "FGSM": lambda: FastGradientMethod(estimator, eps=LINF, batch_size=batch),
        "PGD-Linf-10": lambda: ProjectedGradientDescentPyTorch(
            estimator, eps=LINF, eps_step=LINF / 4, **climb
        ),
        "PGD-L2-10": lambda: ProjectedGradientDescentPyTorch(
            estimator, norm=2, eps=L2, eps_step=L2 / 4, **climb
        ),
        "C&W-L2-20": lambda: CarliniL2Method(
            estimator, binary_search_steps=1, max_iter=steps, initial_const=1e-3, **common
        ),
    }
    if attack not in makers:
        return {}
    one_hot = nn.functional.one_hot(labels, CLASSES).float().numpy()
    return {"ART": functools.partial(makers[attack]().generate, images.numpy(), one_hot)}


if __name__ == "__main__":
    main()
