"""Time and cost of the paper's whole experiment on 1 to 64 GPUs, on paper.

python benchmarks/scale.py

Counts the networks' FLOPs and parameters, takes the work from the presets of jobs/reproduce.py,
feeds the equations of scale_model.py, checks them by simulation and against the measured points of
scale_points.py, and writes benchmarks/records/scale.json, docs/scale.md and docs/images/scale.png.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib as mpl
import torch
from record import write_record
from scale_model import (
    FEWEST_ROUNDS,
    FLOAT_BYTES,
    SYNC_BYTES,
    TOLERANCE,
    Evaluation,
    Link,
    Machine,
    Part,
    Shards,
    Training,
    Work,
    best_time,
    ceiling,
    list_schedule,
    one_after_another,
    pool_seconds,
    predicted_points,
    shard_time,
    side_by_side,
    simulate_steps,
    step_time,
)
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from cdvae_ray.config.attack import SUITES, AttackConfig
from cdvae_ray.config.attack_job import PoolConfig
from cdvae_ray.config.baseline import BASELINES, BaselineName, baseline
from cdvae_ray.config.classifier import InputKind
from cdvae_ray.config.data import DataConfig
from cdvae_ray.config.defense_job import WHITE_BOX_SUITE, DefenseJobConfig
from cdvae_ray.config.detection import STRATEGIES
from cdvae_ray.config.reproduce_job import ReproduceConfig, Step, reproduce_preset
from cdvae_ray.config.serialize import digest_of, to_dict
from cdvae_ray.config.train_job import TrainConfig
from cdvae_ray.config.training import TrainingConfig
from cdvae_ray.core.attacks.auto_attack import MOST_TARGETS, NUM_QUERIES, NUM_STEPS
from cdvae_ray.core.cdvae import build_cdvae
from cdvae_ray.core.classifier import ImageClassifier, build_classifier
from cdvae_ray.core.defenses import RedundantDefense
from cdvae_ray.core.objective import cdvae_loss
from cdvae_ray.evaluation.attack_report import strength_variants
from cdvae_ray.training.baseline_task import build_purifier
from cdvae_ray.training.purifier_model import ApeGanModel

mpl.use("Agg")
import matplotlib.pyplot as plt

ROOT = Path(__file__).parents[1]
RECORDS = ROOT / "benchmarks/records"
PAGE, PICTURE = ROOT / "docs/scale.md", ROOT / "docs/images/scale.png"
GPUS = (1, 2, 4, 8, 16, 32, 64)
SHOWN = (1, 8, 64)
DATASETS = {"cifar10": "CIFAR-10", "restricted-imagenet": "restricted ImageNet"}
IMAGES = {"cifar10": (50_000, 10_000), "restricted-imagenet": (257_748, 10_150)}
"""Training and test images, by the paper's section 4."""
CLASSES = {"cifar10": 10, "restricted-imagenet": 203}
GAMMAS = (0.0002, 0.002, 0.02, 0.2, 2.0, 20.0)
"""The grid of tune_spaces/gamma.toml."""

# --- assumptions ----------------------------------------------------------------------------------
# No GPU was at hand. What stands here is of data sheets or a guess, and nothing of it was measured.

SHARE_OF_PEAK = {"cifar10": 0.20, "restricted-imagenet": 0.10}
"""Of the bfloat16 peak, reached in training by eager PyTorch: a guess (2026-11). A WideResNet's 3x3
convolutions of 160 to 640 planes suit tensor cores; a ResNet-50 with its batch norms waits for
memory more. The page has the result at half and at twice of it."""
TF32_SHARE = 0.5
"""Attacks and features run in float32, whose convolutions take TF32: half the peak of bfloat16."""
FOOLED_SHARE = 0.1
"""Of its steps that an image takes which is fooled at last (attacks drop it then): a guess."""
ENCODED_BYTES = 110e3
"""Of an image in Parquet: about the mean of ILSVRC2012's files, as remembered."""
JITTER = 0.05
"""Deviation of a worker's step in the simulation: a guess."""
DRIVER_SECONDS = {"detection": 1200.0, "study": 120.0, "defense": 120.0, "trial": 120.0}
"""Fitting KD, LID and MD, bootstraps, tables and pictures on the driver: a guess."""
RESISTING: dict[str, tuple[float, float]] = {
    "normal": (0.960, 0.0),
    "at-pgd-linf": (0.868, 0.490),
    "trades": (0.849, 0.525),
    "at-pgd-l2": (0.850, 0.478),
    "at-recolor": (0.934, 0.085),
    "at-stadv": (0.862, 0.002),
    "sat": (0.856, 0.531),
    "oia": (0.834, 0.516),
    "pat": (0.824, 0.349),
    "hgd": (0.808, 0.0),
    "ape-gan": (0.909, 0.0),
    "ours-linf": (0.812, 0.431),
    "ours-l2": (0.810, 0.424),
    "ours-grey-box": (0.868, 0.0),
}
"""Clean images that a defence gets right, and that resist (the larger of the two norms), by the
paper's Table 7; purifiers' failure under white-box attacks holds for the grey-box CD-VAE too. On
restricted ImageNet the paper has no such numbers: those of CIFAR-10 stand for them."""

_NONE = Link(bandwidth=1e12, latency=0.0)


def machines(pixels_per_cpu: float, tracking_seconds: float) -> dict[str, Machine]:
    """The clusters, as remembered in 2026-11 from data sheets and list prices."""
    h100 = Machine(
        name="H100 (p5.48xlarge)",
        # NVIDIA's data sheet of the H100 SXM: bfloat16, dense.
        peak_flops=989e12,
        # An eager operation with its share of Python: a guess.
        launch_seconds=20e-6,
        gpus_per_node=8,
        # NVLink 4: 450 GB/s each way; some 350 are reached by NCCL.
        within=Link(bandwidth=350e9, latency=3e-6),
        # EFA: 3,200 Gbit/s a node of 8; some 70 % are reached.
        between=Link(bandwidth=35e9, latency=8e-6),
        collective_seconds=20e-6,
        overlaps=True,
        contention=1.0,
        pixels_per_cpu=pixels_per_cpu,
        # 192 vCPUs for 8 GPUs, of which 2 a GPU are left to the workers themselves.
        loader_cpus=22,
        # PCIe 5 from pageable memory: a guess.
        host_bandwidth=5e9,
        # Several connections to S3 at some 90 MB/s each.
        store=Link(bandwidth=0.5e9, latency=0.05),
        tracking_seconds=tracking_seconds,
        start_seconds=60.0,
        shard_seconds=0.5,
        # On demand, us-west-2: about 55 USD/h for 8.
        usd_per_gpu_hour=6.88,
    )
    l4 = replace(
        h100,
        name="L4 (g6.2xlarge)",
        # NVIDIA's data sheet of the L4: 242 TFLOP/s with sparsity, half of it dense.
        peak_flops=121e12,
        gpus_per_node=1,
        within=_NONE,
        # Up to 10 Gbit/s by TCP.
        between=Link(bandwidth=1.0e9, latency=25e-6),
        collective_seconds=40e-6,
        loader_cpus=6,
        # What infra/README.md reckons with, on demand.
        usd_per_gpu_hour=0.98,
    )
    return {"H100": h100, "L4": l4}


# --- what networks cost ---------------------------------------------------------------------------


class Counts(NamedTuple):
    """Of one image, but for operations, which are those of a batch, and for parameters."""

    forward: float
    """FLOPs, a multiplication and an addition being two."""
    attack: float
    """FLOPs of a forward pass and the gradient of its input."""
    train: float
    """FLOPs of a forward pass and the gradients of all weights that are trained."""
    forward_operations: int
    attack_operations: int
    train_operations: int
    parameters: int
    """Trained ones."""
    batch_norms: int
    """In train mode."""


class _Operations(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts operations that compute something."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        # Neither views nor buffers nor questions to Python compute anything.
        is_buffer = str(func).startswith(("aten.empty", "prim."))
        self.count += not (func.is_view or is_buffer)
        return func(*args, **(kwargs or {}))


_BATCH = 2


def count_networks(name: str) -> dict[str, Counts]:
    """FLOPs and operations of every network of a preset, without computing anything."""
    config = reproduce_preset(name)
    cdvae_config, classifier_config = config.cdvae_job(), config.classifier_job().model
    size = cdvae_config.data.image_size
    names = tuple(map(str, range(CLASSES[name])))
    with FakeTensorMode(allow_non_fake_inputs=True):
        cdvae = build_cdvae(cdvae_config.model, image_size=size, class_names=names, seed=0)

        def plain(kind: InputKind = "images", side: int = size) -> ImageClassifier:
            return build_classifier(
                classifier_config,
                input_kind=kind,
                image_size=side,
                class_names=names,
                seed=0,
                cdvae_digest=None if kind == "images" else "0" * 64,
            )

        images = torch.rand(_BATCH, 3, size, size)
        labels = torch.zeros(_BATCH, dtype=torch.int64)
        counts = {
            "classifier": _count(plain(), images, lambda model: model(images).sum()),
            "cdvae": _count(
                cdvae,
                images,
                lambda model: _cdvae_loss(model, images, labels, cdvae_config),
                classify=cdvae.classify_essential,
            ),
        }
        defense = RedundantDefense(cdvae, plain("class_redundant"))
        defense.cdvae.requires_grad_(False)
        counts["redundant"] = _count(defense, images, lambda model: model(images).sum())
        # Purifiers refuse sides that 4 does not divide: they are counted at the next that it does.
        side = math.ceil(size / 4) * 4
        padded = torch.rand(_BATCH, 3, side, side)
        for purifier in ("hgd", "ape-gan"):
            width = baseline(purifier).defaults.width or 0
            model = build_purifier(purifier, plain(side=side), width=width, seed=0)
            counts[purifier] = _count(
                model, padded, partial(_purifier_loss, padded), classify=model.defense()
            )
    return counts


def _cdvae_loss(model: nn.Module, images: Tensor, labels: Tensor, config: TrainConfig) -> Tensor:
    noise = torch.zeros(len(images), config.model.noise_size)
    return cdvae_loss(model(images, noise), labels, objective=config.objective, epoch=0).total


def _purifier_loss(images: Tensor, model: nn.Module) -> Tensor:
    if not isinstance(model, ApeGanModel):
        loss: Tensor = model(images).sum()
        return loss
    output = model(images, images)
    return torch.stack([each.sum() for each in output]).sum()


def _count(
    model: nn.Module,
    images: Tensor,
    loss: Callable[[nn.Module], Tensor],
    *,
    classify: Callable[[Tensor], Tensor] | None = None,
) -> Counts:
    """Of a model's loss in train mode, and of its answers in eval mode."""
    classify = classify or model
    trained = [each for each in model.parameters() if each.requires_grad]
    batch_norms = sum(
        isinstance(each, nn.BatchNorm2d) and each.training and each.weight.requires_grad
        for each in model.train().modules()
    )
    with _counting() as train:
        loss(model).backward()  # type: ignore[no-untyped-call]
    model.requires_grad_(False)
    model.eval()
    with _counting() as forward, torch.no_grad():
        classify(images)
    with _counting() as attack:
        variable = images.detach().clone().requires_grad_()
        classify(variable).sum().backward()  # type: ignore[no-untyped-call]
    for each in trained:
        each.requires_grad_(True)
    return Counts(
        forward=forward["flops"] / _BATCH,
        attack=attack["flops"] / _BATCH,
        train=train["flops"] / _BATCH,
        forward_operations=int(forward["operations"]),
        attack_operations=int(attack["operations"]),
        train_operations=int(train["operations"]),
        parameters=sum(each.numel() for each in trained),
        batch_norms=batch_norms,
    )


@contextmanager
def _counting() -> Iterator[dict[str, float]]:
    found: dict[str, float] = {}
    with FlopCounterMode(display=False) as flops, _Operations() as operations:
        yield found
    found |= {"flops": flops.get_total_flops(), "operations": operations.count}


# --- the experiment's work ------------------------------------------------------------------------


class Experiment:
    """Everything that jobs/reproduce.py makes of a preset, as work.

    Args:
        preset: its name.
        counts: of its networks.
        everything_resists: attacks run all their steps on every image.
    """

    def __init__(
        self, preset: str, counts: Mapping[str, Counts], *, everything_resists: bool = False
    ) -> None:
        self.preset, self.counts, self.everything_resists = preset, counts, everything_resists
        self.config: ReproduceConfig = reproduce_preset(preset)
        self.share = SHARE_OF_PEAK[preset]
        self._made_as: dict[str, str] = {}

    def works(self) -> list[Work]:
        """All jobs, each once, in an order in which each finds what it needs."""
        found: list[Work] = []
        first: dict[str, str] = {}
        for work, identity in self._every():
            # What has the settings of something earlier is found, not made.
            self._made_as[work.name] = first.setdefault(identity or work.name, work.name)
            if self._made_as[work.name] == work.name:
                needs = tuple(dict.fromkeys(self._made_as[each] for each in work.needs))
                found.append(replace(work, needs=needs))
        return found

    def _every(self) -> Iterator[tuple[Work, str]]:
        """Each work with what identifies a training; "" for reports."""
        for step in self.config.steps:
            if step.kind == "search":
                yield from self._search()
            elif step.kind in ("study", "detection", "grey-box", "white-box"):
                yield self._report(step), ""
            else:
                yield self._model(step)

    # trainings

    def _model(self, step: Step) -> tuple[Training, str]:
        config, name = self.config, str(step)
        match step.kind:
            case "cdvae":
                return self._cdvae(name, config.cdvae_job())
            case "defense-cdvae":
                return self._cdvae(name, config.defense_cdvae_job())
            case "classifier":
                return self._classifier(name, "images", "", config.classifier_job())
            case "redundant-classifier":
                job = config.classifier_job("class_redundant", "cdvae")
                return self._classifier(name, "class_redundant", str(Step("cdvae")), job)
            case "essential-classifier":
                job = config.classifier_job("class_essential", "cdvae")
                return self._classifier(name, "class_essential", str(Step("cdvae")), job)
            case "defense-classifier":
                job = config.defense_classifier_job("cdvae")
                cdvae = str(Step("defense-cdvae"))
                return self._classifier(name, "class_redundant", cdvae, job)
            case "baseline":
                return self._baseline(name, step.option)
            case _:
                return self._finetuned(name)

    def _cdvae(self, name: str, job: TrainConfig) -> tuple[Training, str]:
        c = self.counts["cdvae"]
        work = self._training(
            name,
            job,
            flops=c.train,
            hiding=c.train,
            operations=c.train_operations,
            parameters=c.parameters,
            batch_norms=c.batch_norms,
        )
        return work, self._identity(job, "cdvae")

    def _classifier(self, name: str, kind: InputKind, cdvae: str, job: Any) -> tuple[Training, str]:
        c, whole = self.counts["classifier"], self.counts["cdvae"]
        seen = 0.0 if kind == "images" else self._generator
        operations = 0 if kind == "images" else whole.forward_operations
        work = self._training(
            name,
            job,
            needs=(cdvae,) if cdvae else (),
            flops=c.train + seen,
            hiding=c.train,
            operations=c.train_operations + operations,
            parameters=c.parameters,
            batch_norms=c.batch_norms,
        )
        return work, self._identity(job, kind, self._made_as.get(cdvae, cdvae))

    @property
    def _generator(self) -> float:
        """FLOPs of G(x)."""
        return self.counts["redundant"].forward - self.counts["classifier"].forward

    def _baseline(self, name: str, option: str) -> tuple[Training, str]:
        chosen: BaselineName = next(each for each in BASELINES if each == option)
        job = self.config.baseline_job(chosen, "classifier")
        recipe = baseline(chosen).recipe(job.recipe)
        steps = recipe.num_steps or 0
        c = self.counts["classifier"]
        flops = steps * c.attack + c.forward
        operations = steps * c.attack_operations + c.forward_operations
        passes = 1
        trained = c
        if chosen in ("trades", "sat"):
            passes = 2
            flops, operations = flops + c.forward, operations + c.forward_operations
        elif chosen == "pat":
            # A step looks once with a gradient and once without.
            flops += steps * c.forward
            operations += steps * c.forward_operations
        elif chosen == "oia":
            share = (recipe.validation_images or 0) / self._images(job.data)
            flops += share * (steps * c.attack + c.forward)
        elif baseline(chosen).is_purifier:
            trained = self.counts[chosen]
            # HGD is led by both x' and x; either looks once more at D.
            passes = 2 if chosen == "hgd" else 1
            flops, operations = flops + c.forward, operations + c.forward_operations
        work = self._training(
            name,
            job,
            needs=(str(Step("classifier")),) if baseline(chosen).is_purifier else (),
            flops=flops + passes * trained.train,
            hiding=trained.train,
            operations=operations + passes * trained.train_operations,
            parameters=trained.parameters,
            batch_norms=passes * trained.batch_norms,
        )
        return work, ""

    def _finetuned(self, name: str) -> tuple[Training, str]:
        job = self.config.finetune_job("linf", "cdvae", "classifier")
        g, whole, d = (self.counts[each] for each in ("redundant", "cdvae", "classifier"))
        steps = job.attack.num_steps
        clean = 1 if job.clean_weight else 0
        work = self._training(
            name,
            job,
            needs=(str(Step("defense-cdvae")), str(Step("classifier"))),
            flops=2 * g.forward + steps * g.attack + (1 + clean) * whole.train + d.train,
            hiding=whole.train + d.train,
            operations=2 * g.forward_operations
            + steps * g.attack_operations
            + (1 + clean) * whole.train_operations
            + d.train_operations,
            parameters=whole.parameters + d.parameters,
            batch_norms=(1 + clean) * whole.batch_norms + d.batch_norms,
        )
        return work, ""

    def _training(
        self,
        name: str,
        job: Any,
        *,
        needs: tuple[str, ...] = (),
        flops: float,
        hiding: float,
        operations: float,
        parameters: int,
        batch_norms: int,
    ) -> Training:
        training: TrainingConfig = job.training
        moments = 2 if training.optimizer == "adamw" else 1
        return Training(
            name=name,
            needs=needs,
            flops=flops,
            hiding_flops=hiding,
            operations=operations,
            share_of_peak=self.share,
            gradient_bytes=FLOAT_BYTES * parameters,
            # torch.nn.SyncBatchNorm gathers once forward and reduces once backward.
            sync_calls=2 * batch_norms if training.sync_batch_norm else 0,
            images=self._images(job.data),
            epochs=training.epochs,
            global_batch=training.global_batch_size,
            pixels=job.data.image_size**2,
            encoded_bytes=ENCODED_BYTES if job.data.streaming else 0.0,
            checkpoint_bytes=(1 + moments) * FLOAT_BYTES * parameters,
            checkpoint_every=job.resources.checkpoint_every,
        )

    def _images(self, data: DataConfig) -> int:
        every = IMAGES[self.preset][0]
        return every if data.train_limit is None else min(every, data.train_limit)

    def _identity(self, job: Any, *more: str) -> str:
        named = {name: to_dict(getattr(job, name)) for name in ("data", "training", "model")}
        named["augmentation"] = to_dict(job.augmentation)
        if isinstance(job, TrainConfig):
            named["objective"] = to_dict(job.objective)
        return digest_of({"settings": named, "more": list(more)})

    # reports

    def _report(self, step: Step) -> Evaluation:
        match step.kind:
            case "study":
                return self._study(str(step))
            case "detection":
                return self._detection(str(step))
            case "grey-box":
                rows = self._grey_box_rows()
                job = self.config.grey_box_job("classifier", (), "cdvae")
            case _:
                rows = self._white_box_rows()
                job = self.config.white_box_job(())
        return self._defense(str(step), job, rows)

    def _study(self, name: str) -> Evaluation:
        config = self.config.study_job("cdvae", "classifier")
        (attack,) = SUITES[config.suite].choose(config.attacks)
        radii = [attack, *config.further_attacks()]
        sources = 2 * len(radii)  # adversarial images, and noise as long
        # Each source is split beside its clean image, and its parts are looked at as images.
        looks = self._answers("cdvae", 2 * sources), self._answers("classifier", 6 * sources)
        cross = self._answers("classifier", 9), self._answers("cdvae", 1)
        needs = ["classifier", "cdvae", "redundant-classifier", "essential-classifier"]
        return self._evaluation(
            name,
            [Step(each) for each in needs],  # type: ignore[arg-type]
            [[self._attack(each, "classifier", "normal") for each in radii], [*looks, *cross]],
            "study",
        )

    def _detection(self, name: str) -> Evaluation:
        config = self.config.detection_job("cdvae", "classifier")
        attacks = SUITES[config.suite].choose(config.attacks)
        spaces = ("classifier", "cdvae")
        made = [self._attack(each, net, "normal") for net in spaces for each in attacks]
        # Clean images; adversarial ones and noise of each attack on each of two functions.
        sources = 1 + 2 * 2 * len(attacks)
        train = self._images(config.data)
        features = [self._answers(net, sources) for net in spaces]
        features += [self._answers(net, 1, images=train) for net in spaces]
        layers = 5
        steps = sum(each > 0 for each in config.detectors.magnitudes) * layers
        stepped = []
        for net in spaces:
            c = self.counts[net]
            flops = sources * (steps * c.forward + layers * c.attack)
            operations = steps * c.forward_operations + layers * c.attack_operations
            stepped.append(self._shards(flops, sources * operations))
        adaptive, size = config.adaptive, PoolConfig().batch_size
        runs = 3 * len(STRATEGIES) * len(adaptive.step_scales)  # KD, LID and MD
        aware = [
            self._shards(
                # D and the detector, each with a gradient.
                2 * adaptive.num_steps * self.counts[net].attack,
                2 * adaptive.num_steps * self.counts[net].attack_operations,
                images=adaptive.num_images,
                size=size,
                times=runs,
            )
            for net in spaces
        ]
        needs = [Step("classifier"), Step("cdvae")]
        return self._evaluation(name, needs, [made, features, stepped, aware], "detection")

    def _grey_box_rows(self) -> list[tuple[str, str, Step]]:
        """Network, row of RESISTING and model of each defence."""
        return [
            ("classifier", "normal", Step("classifier")),
            *self._baseline_rows(self.config.recipe.grey_box_baselines),
            ("redundant", "ours-grey-box", Step("defense-classifier")),
        ]

    def _white_box_rows(self) -> list[tuple[str, str, Step]]:
        recipe = self.config.recipe
        return [
            ("classifier", "normal", Step("classifier")),
            *self._baseline_rows(recipe.white_box_baselines),
            *(
                ("redundant", f"ours-{norm}", Step("finetuned", norm))
                for norm in recipe.white_box_norms
            ),
        ]

    def _baseline_rows(self, names: Sequence[BaselineName]) -> list[tuple[str, str, Step]]:
        return [
            (name if baseline(name).is_purifier else "classifier", name, Step("baseline", name))
            for name in names
        ]

    def _defense(
        self, name: str, job: DefenseJobConfig, rows: Sequence[tuple[str, str, Step]]
    ) -> Evaluation:
        transfer = SUITES["grey-box"].attacks if job.table == "grey-box" else ()
        own = SUITES[WHITE_BOX_SUITE[job.table]].attacks
        few = job.evidence.images
        pools = [[self._attack(each, "classifier", "normal") for each in transfer]]
        for net, row, _ in rows:
            pool = [self._attack(each, net, row) for each in own]
            variants = [more for each in own for more in strength_variants(each).values()]
            looks = [*variants, *job.evidence.sweep(), *job.evidence.square()]
            pool += [self._attack(each, net, row, images=few) for each in looks]
            pools.append(pool)
        shown = 1 + len(transfer) + (2 if job.table == "white-box" else 0)
        pools.append([self._answers(net, shown) for net, _, _ in rows])
        return self._evaluation(name, [step for _, _, step in rows], pools, "defense")

    def _search(self) -> Iterator[tuple[Work, str]]:
        config = self.config.search_job("classifier")
        transfer = config.transfer_job().chosen_attacks()
        attacks = config.detection_job("cdvae").attack_job("class-essential").chosen_attacks()
        shared = [self._attack(each, "classifier", "normal") for each in (*transfer, *attacks)]
        first = f"{Step('search')}, shared"
        yield self._evaluation(first, [Step("classifier")], [shared], "trial"), ""
        train = self._images(config.data)
        for gamma in GAMMAS:
            cdvae, redundant = f"CD-VAE, gamma {gamma:g}", f"classifier of G(x), gamma {gamma:g}"
            yield self._cdvae(cdvae, config.cdvae_job("gamma", gamma))
            yield self._classifier(
                redundant, "class_redundant", cdvae, config.redundant_job("cdvae")
            )
            looks = [
                self._answers("cdvae", 1 + 2 * 2 * len(attacks)),
                self._answers("cdvae", 1, images=train),
                self._answers("redundant", 2),
            ]
            made = [self._attack(each, "cdvae", "normal") for each in attacks]
            trial = self._evaluation(f"trial, gamma {gamma:g}", [], [made, looks], "trial")
            yield replace(trial, needs=(first, cdvae, redundant)), ""

    def _evaluation(
        self, name: str, needs: Sequence[Step], pools: Sequence[Sequence[Shards]], driver: str
    ) -> Evaluation:
        return Evaluation(
            name=name,
            needs=tuple(map(str, needs)),
            share_of_peak=self.share * TF32_SHARE,
            pools=tuple(tuple(pool) for pool in pools if pool),
            driver_seconds=DRIVER_SECONDS[driver],
        )

    def _answers(self, net: str, times: int, *, images: int | None = None) -> Shards:
        """Forward passes of images, so many times."""
        c = self.counts[net]
        return self._shards(c.forward, c.forward_operations, images=images, times=times)

    def _attack(
        self, attack: AttackConfig, net: str, row: str, *, images: int | None = None
    ) -> Shards:
        """An attack on a network of which some images resist."""
        c = self.counts[net]
        right, resist = RESISTING[row]
        if self.everything_resists:
            right = resist = 1.0
        active = resist + (right - resist) * FOOLED_SHARE
        if attack.attack == "auto_attack":
            queries = NUM_QUERIES * c.forward
            query_operations = NUM_QUERIES * c.forward_operations
            if attack.version == "square":
                return self._shards(active * queries, query_operations, images=images)
            # APGD on the cross-entropy; then, on what is left, targeted APGD and FAB, and Square.
            climbs = NUM_STEPS * c.attack
            targets = min(MOST_TARGETS, CLASSES[self.preset] - 1)
            rest = targets * (2 * climbs + NUM_STEPS * c.forward) + queries
            operations = once = NUM_STEPS * c.attack_operations
            if resist > 0:
                operations += targets * (2 * once + NUM_STEPS * c.forward_operations)
                operations += query_operations
            return self._shards(active * climbs + resist * rest, operations, images=images)
        steps = (attack.num_steps or 1) * (attack.num_restarts or 1)
        # The last iterate is wanted of every image; the best only until it fools.
        share = 1.0 if attack.keep == "last" or attack.attack == "fgsm" else active
        # A batch goes on while one of its images resists.
        operations = steps * c.attack_operations + c.forward_operations
        flops = share * steps * c.attack + c.forward
        return self._shards(flops, operations, images=images)

    def _shards(
        self,
        flops: float,
        operations: float,
        *,
        images: int | None = None,
        size: int | None = None,
        times: int = 1,
    ) -> Shards:
        """Shards of images; operations are those of a batch, flops those of an image."""
        pool = PoolConfig()
        images, size = images or IMAGES[self.preset][1], size or pool.shard_size
        size = min(size, images)
        pixels = self.config.data.image_size**2
        return Shards(
            number=times * math.ceil(images / size),
            flops=size * flops,
            operations=math.ceil(size / pool.batch_size) * operations,
            bytes=3 * FLOAT_BYTES * pixels * size,
        )


# --- what it comes to -----------------------------------------------------------------------------


def main() -> None:
    """Computes everything and writes the record, the page and the picture."""
    stream = _results("streaming-memory-of-the-stream")
    points = _results("scale-points")
    # What a longer stream took more, so that starting does not count; one CPU decoded.
    longer, shorter = stream["4x"], stream["1x"]
    decoded = (longer["images"] - shorter["images"]) / (longer["seconds"] - shorter["seconds"])
    clusters = machines(decoded * stream["size"] ** 2, points["tracking_seconds"])
    counts = {name: count_networks(name) for name in DATASETS}
    works = {name: Experiment(name, counts[name]).works() for name in DATASETS}
    results = {
        "what": "hours and USD of everything that jobs/reproduce.py makes, by the model; GPU rates "
        "are assumptions, only loading, tracking and the two-worker points were measured",
        "assumptions": {
            "share_of_peak": SHARE_OF_PEAK,
            "tf32_share": TF32_SHARE,
            "fooled_share": FOOLED_SHARE,
            "encoded_bytes": ENCODED_BYTES,
            "jitter": JITTER,
            "driver_seconds": DRIVER_SECONDS,
            "resisting": RESISTING,
            "machines": {name: asdict(each) for name, each in clusters.items()},
        },
        "measured": {"images_per_cpu_second": decoded, "size": stream["size"]},
        "counts": {
            name: {net: each._asdict() for net, each in nets.items()}
            for name, nets in counts.items()
        },
        "totals": {
            name: {key: _totals(each, machine) for key, machine in clusters.items()}
            for name, each in works.items()
        },
        "parts": {name: _parts(each, clusters["H100"]) for name, each in works.items()},
        "jobs": {name: _jobs(each, clusters["H100"]) for name, each in works.items()},
        "sensitivity": {
            name: _sensitivity(name, counts[name], works[name], clusters["H100"])
            for name in DATASETS
        },
        "simulation": {name: _simulated(each, clusters["H100"]) for name, each in works.items()},
        "points": {
            point.name: {**point._asdict(), "error": point.error}
            for point in predicted_points(points)
        },
        "points_rounds": points["rounds"],
        "points_batch": points["batch"],
        "points_all_reduce": points["all_reduce"]["seconds_by_bytes"],
    }
    path = write_record("scale", results)
    PAGE.write_text(page(results))
    picture(results)
    for name, title in DATASETS.items():
        for row in results["totals"][name]["H100"]:
            if row["gpus"] in SHOWN:
                print(
                    f"{title}, {row['gpus']} x H100: {row['alone']['hours']:.0f} h, "
                    f"{row['alone']['usd']:,.0f} USD as one command; "
                    f"{row['beside']['hours']:.0f} h, {row['beside']['usd']:,.0f} USD side by side"
                )
    print(f"record: {path.relative_to(ROOT)}, page: {PAGE.relative_to(ROOT)}")


def _results(name: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((RECORDS / f"{name}.json").read_text())["results"]
    return found


def _totals(works: Sequence[Work], machine: Machine) -> list[dict[str, Any]]:
    rows = []
    for gpus in GPUS:
        row: dict[str, Any] = {"gpus": gpus}
        for name, schedule in (("alone", one_after_another), ("beside", side_by_side)):
            time = schedule(works, machine, gpus)
            hours = time.seconds / 3600
            row[name] = {"hours": hours, "usd": time.usd, "busy_share": time.busy_share}
        rows.append(row)
    return rows


def _parts(works: Sequence[Work], machine: Machine) -> dict[str, dict[str, float]]:
    """Hours of one command by what they go to, at each number of GPUs."""
    hours: dict[str, dict[str, float]] = {}
    for gpus in GPUS:
        parts: dict[str, float] = {}
        for work in works:
            for part, seconds in best_time(work, machine, gpus).parts.items():
                parts[part] = parts.get(part, 0.0) + seconds / 3600
        hours[str(gpus)] = parts
    return hours


def _jobs(works: Sequence[Work], machine: Machine) -> list[dict[str, Any]]:
    """Each job alone on the cluster: how long, and where it stops scaling."""
    rows = []
    for work in works:
        end = ceiling(work, machine, GPUS[-1])
        times = {gpus: best_time(work, machine, gpus) for gpus in GPUS}
        step = step_time(work, machine, 1)._asdict() if isinstance(work, Training) else None
        rows.append(
            {
                "name": work.name,
                "kind": "training" if isinstance(work, Training) else "evaluation",
                "needs": work.needs,
                "hours": {str(gpus): time.total / 3600 for gpus, time in times.items()},
                "workers": {str(gpus): time.workers for gpus, time in times.items()},
                "exaflops": work.work_seconds(replace(machine, peak_flops=1e18))
                * work.share_of_peak,
                "limit_on_one": times[1].limit,
                "ceiling": end.workers,
                "limit": end.limit,
                "step_on_one": step,
            }
        )
    return rows


def _sensitivity(
    name: str, counts: Mapping[str, Counts], works: Sequence[Work], machine: Machine
) -> dict[str, dict[str, float]]:
    """Hours of one command if one assumption were another."""
    every = Experiment(name, counts, everything_resists=True).works()

    def shared(factor: float) -> list[Work]:
        return [replace(each, share_of_peak=factor * each.share_of_peak) for each in works]

    cases: dict[str, tuple[Sequence[Work], Machine]] = {
        "as assumed": (works, machine),
        "half the share of peak": (shared(0.5), machine),
        "twice the share of peak": (shared(2.0), machine),
        "every image resists every attack": (every, machine),
        "one CPU a worker decodes (the default of --resources.loader-cpus)": (
            works,
            replace(machine, loader_cpus=1),
        ),
        "launches cost nothing (CUDA graphs, larger kernels)": (
            works,
            replace(machine, launch_seconds=0.0),
        ),
        "a tenth of the bandwidth between nodes": (
            works,
            replace(
                machine, between=replace(machine.between, bandwidth=machine.between.bandwidth / 10)
            ),
        ),
    }
    return {
        case: {str(gpus): one_after_another(changed, other, gpus).seconds / 3600 for gpus in SHOWN}
        for case, (changed, other) in cases.items()
    }


def _simulated(works: Sequence[Work], machine: Machine) -> dict[str, Any]:
    """How far the closed forms are from simulation, at the most workers that each job can use."""
    exact, late, pools = [], [], []
    for work in works:
        workers = best_time(work, machine, GPUS[-1]).workers
        if isinstance(work, Training):
            step = step_time(work, machine, workers)
            run = partial(simulate_steps, step, workers=workers, steps=200, seed=0)
            exact.append(run(jitter=0.0) / (200 * step.total) - 1)
            late.append(run(jitter=JITTER) / (200 * step.total) - 1)
            continue
        for pool in work.pools:
            timed = [(each.number, shard_time(each, work, machine)[0]) for each in pool]
            seconds = [each for number, each in timed for _ in range(number)]
            pools.append(pool_seconds(timed, workers) / list_schedule(seconds, workers) - 1)
    return {
        "steps_without_jitter": max(map(abs, exact)),
        "steps_with_jitter": {"min": min(late), "max": max(late)},
        "pools": {"min": min(pools), "max": max(pools)},
    }


# --- the page -------------------------------------------------------------------------------------


def page(results: Mapping[str, Any]) -> str:
    """docs/scale.md: nothing stands in it that is not computed here."""
    parts = [
        "# What the whole experiment takes on n GPUs: a model",
        "Made by `python benchmarks/scale.py`, all of it. **No GPU was at hand**: rates of GPUs, "
        "networks between them and prices are data sheets, memory and guesses (below), and the "
        "hours are the model's, not a measurement. Counted by program are FLOPs, operations and "
        "parameters of the networks and the work of the presets; measured are how fast a CPU "
        "decodes, what a call to MLflow takes and the two-worker points.",
        "![time and cost against GPUs, and where each job stops scaling](images/scale.png)",
        "## Time and cost",
        "All tables and figures, models that several share made once. *One command* is "
        "`jobs/reproduce.py`: a job after another, each on as many of the GPUs as make it fastest. "
        "*Side by side* starts jobs as soon as what they need is there. GPUs are paid for until "
        "the last job ends.",
        _totals_table(results),
        *_limits(results),
        "### What the hours of one command go to",
        _parts_table(results),
        "## If an assumption were another",
        "Hours of one command on H100s.",
        _sensitivity_table(results),
        "## The equations",
        "`benchmarks/scale_model.py`:\n\n"
        "```\n"
        "step     = max(compute, launches, data) + all-reduce left over + batch norms + fixed\n"
        "compute  = batch / n * FLOPs of an image / (peak * share)\n"
        "launches = operations of a step * time of one: what a small batch cannot go below\n"
        "all-reduce = 2 (n - 1) / n * bytes / bandwidth + latencies, less what the last backward "
        "pass hides\n"
        "epoch    = max(steps * step, tracking calls)\n"
        "training = start + epochs + checkpoints (rank 0 writes, the others wait)\n"
        "pool     = min(sum ceil(shards / n) * shard, work / n + (1 - 1 / n) * longest shard)\n"
        "```",
        _simulation_text(results),
        "## Against measurements",
        _points_text(results),
        "## Assumptions",
        _assumptions(results),
        "## Counted",
        _counts_table(results),
        "Left out: whether a batch fits into a GPU's memory, images that an attack's own transform "
        "renders (JPEG, StAdv, ReColorAdv), evaluation after training, optimiser arithmetic, "
        "moving data between jobs, lost machines and their repetition, and queues for GPUs.",
    ]
    return "\n\n".join(parts) + "\n"


def _grouped(jobs: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Jobs with those that differ by gamma alone as one."""
    groups: dict[str, dict[str, Any]] = {}
    for job in jobs:
        name, _, value = job["name"].partition(", gamma ")
        key = f"{name} of a gamma" if value else name
        group = groups.setdefault(key, {**job, "name": key, "count": 0})
        group["count"] += 1
    for group in groups.values():
        if group["count"] > 1:
            group["name"] = f"{group['name']}, each of {group['count']}"
    return list(groups.values())


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---", *["---:"] * (len(head) - 1)], *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _number(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def _totals_table(results: Mapping[str, Any]) -> str:
    machines_of = results["assumptions"]["machines"]
    rows = [
        [
            f"{title}, {machines_of[key]['name']}",
            str(row["gpus"]),
            *(
                _number(row[mode][what])
                for mode in ("alone", "beside")
                for what in ("hours", "usd")
            ),
            f"{row['beside']['busy_share']:.0%}",
        ]
        for name, title in DATASETS.items()
        for key, every in results["totals"][name].items()
        for row in every
        if row["gpus"] in SHOWN
    ]
    head = ["", "GPUs", "one command, h", "USD", "side by side, h", "USD", "of it in use"]
    return _table(head, rows)


def _parts_table(results: Mapping[str, Any]) -> str:
    shown = [
        (f"{title}, {gpus} x H100", results["parts"][name][str(gpus)])
        for name, title in DATASETS.items()
        for gpus in SHOWN
    ]
    parts = list(dict.fromkeys(part for _, hours in shown for part in hours))
    # A part that nowhere takes a hundredth of the time is left out.
    parts = [
        part
        for part in parts
        if any(hours.get(part, 0.0) > 0.01 * sum(hours.values()) for _, hours in shown)
    ]
    rows = [[label, *(f"{hours.get(part, 0.0):.1f}" for part in parts)] for label, hours in shown]
    return _table(["hours", *parts], rows)


def _limits(results: Mapping[str, Any]) -> list[str]:
    parts = [
        "## Where it stops scaling",
        "Each job alone on H100s. *Scales to*: the most GPUs at which it is at least half as "
        "efficient as on one. *On*: what takes most beyond, besides computing. A training runs on "
        "numbers of workers that divide its global batch, so a batch of 100 takes 5 of 8 GPUs and "
        "50 of 64. *launches*: a small batch waits for the host. *shards*: the last shards are "
        "late, or fewer than GPUs. *data*: decoding.",
    ]
    for name, title in DATASETS.items():
        jobs = _grouped(results["jobs"][name])
        rows = [
            [
                job["name"],
                _number(job["exaflops"]),
                *(_number(job["hours"][str(gpus)]) for gpus in SHOWN),
                str(job["ceiling"]),
                job["limit"] or f"scales to {GPUS[-1]}",
            ]
            for job in jobs
        ]
        head = [title, "EFLOP", *(f"h on {gpus}" for gpus in SHOWN), "scales to", "on"]
        parts.append(_table(head, rows))
    return parts


def _sensitivity_table(results: Mapping[str, Any]) -> str:
    rows = [
        [f"{title}: {case}", *(_number(hours[str(gpus)]) for gpus in SHOWN)]
        for name, title in DATASETS.items()
        for case, hours in results["sensitivity"][name].items()
    ]
    return _table(["", *(f"{gpus} GPU{'s' * (gpus > 1)}" for gpus in SHOWN)], rows)


def _simulation_text(results: Mapping[str, Any]) -> str:
    rows = []
    for name, title in DATASETS.items():
        found = results["simulation"][name]
        jitter, pools = found["steps_with_jitter"], found["pools"]
        rows.append(
            [
                title,
                f"{found['steps_without_jitter']:.1e}",
                f"{jitter['min']:+.1%} to {jitter['max']:+.1%}",
                f"{pools['min']:+.1%} to {pools['max']:+.1%}",
            ]
        )
    head = [
        "",
        "steps, no jitter",
        f"steps at {results['assumptions']['jitter']:.0%} jitter, over the equation",
        "pools, equation over greedy schedule",
    ]
    return (
        "Simulated (workers at a barrier, shards to whoever is free, jobs as a graph on the "
        "cluster), at the numbers of workers that are fastest on 64 GPUs:\n\n" + _table(head, rows)
    )


def _points_text(results: Mapping[str, Any]) -> str:
    rows = [
        [
            name,
            f"{point['measured']:.4g} {point['unit']}",
            f"{point['predicted']:.4g}",
            f"{point['error']:+.1%}",
            "yes" if abs(point["error"]) <= TOLERANCE else "**no**",
        ]
        for name, point in results["points"].items()
    ]
    remark = (
        ""
        if results["points_rounds"] >= FEWEST_ROUNDS
        else "**A trial run on a busy machine, not yet a measurement.** "
    )
    return (
        f"{remark}Two processes of one thread on two cores, joined by gloo, predicted from one "
        "worker at two batch sizes, two that do not talk (what sharing memory costs) and a "
        "microbenchmark of the "
        f"all-reduce (`benchmarks/scale_points.py`, {results['points_rounds']} rounds, batch "
        f"{results['points_batch']}). A prediction within {TOLERANCE:.0%} was called useful before "
        "anything was measured.\n\n"
        + _table(["two workers", "measured", "predicted", "error", "within"], rows)
        + f"\n\n{_small_reductions(results['points_all_reduce'])}"
    )


def _small_reductions(seconds_by_bytes: Mapping[str, float]) -> str:
    """Why synchronised layers are told too fast."""
    sizes = sorted(seconds_by_bytes, key=int)[:2]
    least, next_one = (f"{1e3 * seconds_by_bytes[size]:.2g} ms" for size in sizes)
    return (
        f"A batch norm's statistics are about {SYNC_BYTES:,} bytes. The model gives them the time "
        f"of the smallest all-reduce and their share of the bandwidth; gloo took {least} for "
        f"{int(sizes[0]):,} bytes and {next_one} for {int(sizes[1]):,}."
    )


def _assumptions(results: Mapping[str, Any]) -> str:
    assumed, measured = results["assumptions"], results["measured"]
    rows = [
        [
            each["name"],
            f"{each['peak_flops'] / 1e12:.0f}",
            str(each["gpus_per_node"]),
            f"{each['between']['bandwidth'] / 1e9:g}",
            str(each["loader_cpus"]),
            f"{each['usd_per_gpu_hour']:.2f}",
        ]
        for each in assumed["machines"].values()
    ]
    head = ["", "bf16 TFLOP/s", "GPUs a node", "GB/s between", "decoding CPUs", "USD/GPU-h"]
    one = next(iter(assumed["machines"].values()))
    lines = [
        *(
            f"- {title}: {share:.0%} of the bfloat16 peak in training, "
            f"{share * assumed['tf32_share']:.0%} in attacks and features, which run in float32 "
            "(TF32). A guess."
            for (name, title) in DATASETS.items()
            for share in [assumed["share_of_peak"][name]]
        ),
        f"- An operation takes the host {1e6 * one['launch_seconds']:.0f} microseconds; a job "
        f"starts in {one['start_seconds']:.0f} s; a shard costs {one['shard_seconds']} s besides "
        "computing; the object store takes "
        f"{one['store']['bandwidth'] / 1e9:g} GB/s of a client. Guesses.",
        "- Images that resist an attack: by defence, of the paper's Table 7; a fooled one takes "
        f"{assumed['fooled_share']:.0%} of the steps (a guess). Restricted ImageNet takes "
        "CIFAR-10's.",
        f"- Measured on a CPU: {measured['images_per_cpu_second']:.0f} images/s decoded at "
        f"{measured['size']} x {measured['size']} on one (`streaming-memory-of-the-stream.json`), "
        f"{1000 * one['tracking_seconds']:.1f} ms for a call to MLflow (`scale-points.json`).",
        "- Prices and data sheets are as remembered in 2026-11, not looked up.",
    ]
    return _table(head, rows) + "\n\n" + "\n".join(lines)


def _counts_table(results: Mapping[str, Any]) -> str:
    rows = [
        [
            f"{title}: {net}",
            f"{each['parameters'] / 1e6:.2f}",
            *(f"{each[what] / 1e9:.2f}" for what in ("forward", "attack", "train")),
            str(each["train_operations"]),
            str(each["batch_norms"]),
        ]
        for name, title in DATASETS.items()
        for net, each in results["counts"][name].items()
    ]
    head = ["", "trained, M", "forward, GFLOP", "attack step", "training", "operations", "BN"]
    return _table(head, rows) + (
        "\n\n*redundant* is D_G(G(x)) with G frozen; *hgd* and *ape-gan* are purifiers before a "
        "frozen classifier, counted at 300 x 300 where images are 299 x 299, which they refuse. "
        "By `torch.utils.flop_counter`: convolutions and matrix products, a multiplication and an "
        "addition being two."
    )


# --- the picture ----------------------------------------------------------------------------------

_COLORS = {"cifar10": "#1b6ca8", "restricted-imagenet": "#c0504d"}
_LIMIT_COLORS: dict[Part | None, str] = {
    "launches": "#7f5fa8",
    "shards": "#e08a1e",
    "data": "#2e8b57",
    "all-reduce": "#c0504d",
    "batch norm": "#1b6ca8",
    "start": "#888888",
    "fixed": "#a0522d",
    "driver": "#444444",
    "object store": "#d4a017",
    "tracking": "#17becf",
    None: "#cccccc",
}


def picture(results: Mapping[str, Any]) -> None:
    """Time and cost against GPUs, and how far each job scales."""
    figure, axes = plt.subplots(
        2, 2, figsize=(13, 12), height_ratios=(1, 1.4), layout="constrained"
    )
    for axis, what, label in zip(axes[0], ("hours", "usd"), ("hours", "USD"), strict=True):
        for name, title in DATASETS.items():
            for key, line in (("H100", "o-"), ("L4", "s--")):
                rows = results["totals"][name][key]
                values = [row["beside"][what] for row in rows]
                axis.plot(GPUS, values, line, color=_COLORS[name], label=f"{title}, {key}")
                if what == "hours":
                    ideal = [values[0] / gpus for gpus in GPUS]
                    axis.plot(GPUS, ideal, ":", color=_COLORS[name], linewidth=0.8)
        axis.set(xscale="log", yscale="log", xlabel="GPUs", ylabel=label)
        axis.set_xticks(GPUS, [str(gpus) for gpus in GPUS])
        axis.minorticks_off()
        if what == "usd":
            amounts = [500, 1000, 2000, 4000, 8000]
            axis.set_yticks(amounts, [f"{each:,}" for each in amounts])
        axis.grid(alpha=0.3)
        axis.legend(fontsize=8)
    axes[0][0].set_title("jobs side by side; dotted: perfect scaling", fontsize=10)
    axes[0][1].set_title("paid until the last job ends", fontsize=10)
    for axis, (name, title) in zip(axes[1], DATASETS.items(), strict=True):
        jobs = _grouped(results["jobs"][name])[::-1]
        for place, job in enumerate(jobs):
            axis.plot([1, job["ceiling"]], [place, place], color="#dddddd", linewidth=4, zorder=1)
            axis.scatter(job["ceiling"], place, color=_LIMIT_COLORS[job["limit"]], s=45, zorder=2)
        axis.set_yticks(
            range(len(jobs)),
            [f"{job['name']} ({_number(job['hours']['1'])} h)" for job in jobs],
            fontsize=7,
        )
        axis.set(xscale="log", xlabel="GPUs to which it scales at half efficiency (H100)")
        axis.set_xticks(GPUS, [str(gpus) for gpus in GPUS])
        axis.minorticks_off()
        axis.grid(axis="x", alpha=0.3)
        axis.set_title(f"{title}: stops on (h on one GPU)", fontsize=10)
        for limit in dict.fromkeys(job["limit"] for job in jobs):
            axis.scatter([], [], color=_LIMIT_COLORS[limit], label=limit or f"beyond {GPUS[-1]}")
        axis.legend(fontsize=8, loc="lower right")
    figure.suptitle("A model: GPU rates are assumptions, no GPU was at hand")
    PICTURE.parent.mkdir(exist_ok=True)
    figure.savefig(PICTURE, dpi=90)


if __name__ == "__main__":
    main()
