"""What dropout in front of batch normalisation costs in evaluation, and what recalibration returns.

python benchmarks/dropout.py --data FOLDER [--images N] [--epochs N] [--widen-factor N]

Trains classifiers of x of the paper's depth, WRN-28, on CIFAR-10 with dropout 0.3 as released and
without, and tells what each has right in evaluation: on the images that it was trained on, and on
test images, with the statistics as trained and taken anew by training.recalibration_steps.
FOLDER holds Parquet files, torchvision's, or what `paper_scale.py prepare` wrote.
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from paper_scale_parts.device_batches import DeviceBatches
from paper_scale_parts.prepared import INDEX, load_source, read_prepared, source_of
from record import write_record
from torch import nn

from cdvae_ray.config.classifier_presets import classifier_preset
from cdvae_ray.data.images import ImageSet
from cdvae_ray.evaluation.intervals import wilson
from cdvae_ray.training.classifier_task import ClassifierTask
from cdvae_ray.training.epoch import train_epoch
from cdvae_ray.training.recalibration import recalibrate
from cdvae_ray.training.state import TrainState

ROOT = Path(__file__).parents[1]
STEPS = 40
EVALUATED = 2000
PASS = 250


def main() -> None:
    """Trains both and writes the record."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--images", type=int, default=5000)
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--widen-factor", type=int, default=1)
    arguments = parser.parse_args()
    folder = arguments.data
    if (folder / INDEX).is_file():
        splits = read_prepared(folder)[0]
    else:
        splits = load_source(source_of(folder), folder, 32)
    train = splits.train.first(min(arguments.images, len(splits.train)))
    test = splits.test.first(min(EVALUATED, len(splits.test)))
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    results: dict[str, Any] = {
        "what": "share right in evaluation [share, 95 % interval's ends], of the first "
        f"{EVALUATED} training images (not augmented) and test images",
        **{name: value for name, value in vars(arguments).items() if name != "data"},
        "recalibration_steps": STEPS,
        "device": device.type,
    }
    for dropout in (0.3, 0.0):
        results[f"dropout {dropout}"] = found = trained(
            train, test, dropout, arguments.epochs, arguments.widen_factor, device
        )
        print(f"dropout {dropout}: {found}", flush=True)
    print(f"record: {write_record('dropout', results).relative_to(ROOT)}")


def trained(
    train: ImageSet,
    test: ImageSet,
    dropout: float,
    epochs: int,
    widen_factor: int,
    device: torch.device,
) -> dict[str, Any]:
    """One classifier: training's own accuracy in its last epoch, and evaluation's, twice."""
    paper = classifier_preset("cifar10")
    training = replace(
        paper.training, epochs=epochs, cosine_period_epochs=epochs, recalibration_steps=0
    )
    task = ClassifierTask(
        input_kind="images",
        cdvae=None,
        model=replace(paper.model, widen_factor=widen_factor, dropout=dropout),
        training=training,
        augmentation=paper.augmentation,
        image_size=train.image_size,
        class_names=train.class_names,
    )
    state = TrainState(task, device)
    source = DeviceBatches(
        train, global_batch_size=training.global_batch_size, seed=training.seed, device=device
    )
    for epoch in range(epochs):
        report = train_epoch(state, source, epoch, on_progress=lambda progress: None)
    found: dict[str, Any] = {"in training, last epoch": report.metrics["train_accuracy"]}
    found["as trained"] = evaluated(state.model, train, test, device)
    recalibrate(state, source, epoch=epochs - 1, steps=STEPS)
    found["recalibrated"] = evaluated(state.model, train, test, device)
    return found


def evaluated(
    model: nn.Module, train: ImageSet, test: ImageSet, device: torch.device
) -> dict[str, list[float]]:
    """What it has right in evaluation mode, without dropout and with running statistics."""
    model.eval()
    found = {}
    seen = train.first(min(EVALUATED, len(train)))
    for name, images in {"training images": seen, "test images": test}.items():
        right = 0
        with torch.no_grad():
            for start in range(0, len(images), PASS):
                rows = slice(start, start + PASS)
                logits = model(images.images[rows].to(device).float() / 255)
                right += int((logits.argmax(dim=1).cpu() == images.labels[rows]).sum())
        found[name] = [right / len(images), *wilson(right, len(images))]
    model.train()
    return found


if __name__ == "__main__":
    main()
