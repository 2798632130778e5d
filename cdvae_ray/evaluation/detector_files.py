"""Stored detectors: networks, fitted layers, combination and threshold, as safetensors and JSON."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load as tensors_from_bytes
from safetensors.torch import save as tensors_to_bytes
from torch import Tensor

from cdvae_ray.core.detectors.combine import Standardizer
from cdvae_ray.core.detectors.image_detector import METHOD_KINDS, ImageDetector, LayerDetector
from cdvae_ray.core.detectors.kernel_density import KernelDensity
from cdvae_ray.core.detectors.local_dimensionality import LocalDimensionality
from cdvae_ray.core.detectors.neighbours import NeighbourIndex
from cdvae_ray.core.feature_extractor import feature_extractor
from cdvae_ray.errors import StorageError
from cdvae_ray.storage.artifact import read_artifact, write_artifact
from cdvae_ray.storage.store import Store
from cdvae_ray.training.checkpoint import (
    MODEL_FILE,
    Checkpoint,
    cdvae_of,
    classifier_of,
    network_facts,
)

DETECTOR_KIND = "image-detector"
_DETECTOR_FILE = "detector.safetensors"


def store_detector(
    store: Store,
    name: str,
    detector: ImageDetector,
    *,
    parts: Mapping[str, Checkpoint],
    facts: Mapping[str, Any],
) -> None:
    """Writes a detector with all that it needs as the folder `name`, whole or not at all.

    Args:
        store: the folder that holds detectors.
        name: the detector's own.
        detector: to store.
        parts: the checkpoints of its extractor, "cdvae" and "classifier", with their model files.
        facts: what made it, JSON values.
    """
    tensors = {"mean": detector.combination.mean, "std": detector.combination.std}
    values: dict[str, Any] = {}
    for layer, fitted in detector.layers.items():
        tensors |= {f"{layer}/{key}": value for key, value in _tensors(fitted).items()}
        if isinstance(fitted, KernelDensity):
            values[layer] = {"counts": list(fitted.counts), "bandwidth": fitted.bandwidth}
    write_artifact(
        store,
        name,
        kind=DETECTOR_KIND,
        files={
            _DETECTOR_FILE: tensors_to_bytes(
                # Layers share their references' ids, and safetensors refuses shared memory.
                {key: value.contiguous().clone() for key, value in tensors.items()}
            ),
            **{f"{part}.safetensors": each.files[MODEL_FILE] for part, each in parts.items()},
        },
        facts={
            **facts,
            "method": detector.method,
            "space": detector.extractor.space,
            "layers": list(detector.combination.names or ()),
            "values": values,
            "num_neighbours": detector.num_neighbours,
            "threshold": detector.threshold,
            "class_names": list(detector.extractor.class_names),
            "parts": {
                part: {"kind": each.kind, "facts": network_facts(each)}
                for part, each in parts.items()
            },
        },
    )


def read_detector(store: Store, name: str) -> ImageDetector:
    """A stored detector, verified, in eval mode on the CPU.

    Args:
        store: the folder that holds it.
        name: its own folder.

    Raises:
        StorageError: it is absent, damaged or no detector.
        CheckpointError: its networks are not what they say.
    """
    artifact = read_artifact(store, name, kind=DETECTOR_KIND)
    facts, uri = artifact.facts, store.child(name).uri
    try:
        tensors = tensors_from_bytes(artifact.files[_DETECTOR_FILE])
    except SafetensorError as error:
        raise StorageError(
            store.child(name).location(_DETECTOR_FILE),
            got=str(error),
            expected="a safetensors file",
            remedy="detect again",
        ) from error
    parts = {
        part: Checkpoint(
            uri,
            name,
            saved["kind"],
            saved["facts"],
            {MODEL_FILE: artifact.files[f"{part}.safetensors"]},
        )
        for part, saved in facts["parts"].items()
    }
    layers = tuple(facts["layers"])
    return ImageDetector(
        feature_extractor(
            facts["space"],
            cdvae=cdvae_of(parts["cdvae"]) if "cdvae" in parts else None,
            classifier=classifier_of(parts["classifier"]) if "classifier" in parts else None,
        ),
        method=facts["method"],
        layers={
            layer: _fitted(facts["method"], layer, tensors, facts["values"])
            for layer in (layers if facts["method"] in METHOD_KINDS else ())
        },
        combination=Standardizer(names=layers, mean=tensors["mean"], std=tensors["std"]),
        threshold=float(facts["threshold"]),
        num_neighbours=int(facts["num_neighbours"]),
    ).eval()


def _tensors(fitted: LayerDetector) -> dict[str, Tensor]:
    holder = fitted.index if isinstance(fitted, LocalDimensionality) else fitted
    return {
        field.name: value
        for field in dataclasses.fields(holder)
        if isinstance(value := getattr(holder, field.name), Tensor)
    }


def _fitted(
    method: str, layer: str, tensors: Mapping[str, Tensor], values: Mapping[str, Any]
) -> LayerDetector:
    own = {
        key.removeprefix(f"{layer}/"): value
        for key, value in tensors.items()
        if key.startswith(f"{layer}/")
    }
    if method == "LID":
        return LocalDimensionality(index=NeighbourIndex(**own))
    if method == "KD":
        return KernelDensity(
            **own,
            counts=tuple(values[layer]["counts"]),
            bandwidth=float(values[layer]["bandwidth"]),
        )
    return METHOD_KINDS["MD"](**own)  # type: ignore[arg-type]
