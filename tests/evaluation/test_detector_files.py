"""A stored detector is the one that was fitted, to the bit; damage of any kind is seen."""

from __future__ import annotations

import hashlib
import json
import pickle
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from torch import Tensor

import cdvae_ray
from cdvae_ray import detectors
from cdvae_ray.config.classifier import ClassifierConfig
from cdvae_ray.config.data import AugmentationConfig
from cdvae_ray.config.model import ModelConfig
from cdvae_ray.config.objective import ObjectiveConfig
from cdvae_ray.config.training import TrainingConfig
from cdvae_ray.core.detectors.image_detector import DetectorMethod, ImageDetector, LayerDetector
from cdvae_ray.core.feature_extractor import FeatureExtractor, feature_extractor
from cdvae_ray.core.features import POOLED_LAYERS
from cdvae_ray.errors import CdvaeError, CheckpointError, StorageError
from cdvae_ray.evaluation.detector_files import DETECTOR_KIND, read_detector, store_detector
from cdvae_ray.loading import checkpoint_at
from cdvae_ray.storage.artifact import read_artifact, write_artifact
from cdvae_ray.storage.store import Store
from cdvae_ray.training.cdvae_task import CdvaeTask
from cdvae_ray.training.checkpoint import Checkpoint, cdvae_of, classifier_of
from cdvae_ray.training.classifier_task import ClassifierTask
from cdvae_ray.training.frozen_cdvae import FrozenCdvae
from cdvae_ray.training.state import TrainState
from cdvae_ray.training.task import Task
from tests.stored_checkpoints import save_checkpoint

CLASSES = ("a", "b", "c")
# No decimal fraction, so that a threshold that is rounded on its way shows.
THRESHOLD = 1 / 3
FACTS = {"report": "r" * 12, "fitted_images": 60}
CASES = [
    *(("KD", "images"), ("LID", "images"), ("MD", "images")),
    *(("KD", "class_essential"), ("LID", "class_essential"), ("MD", "class_essential")),
    ("residual", "class_essential"),
    ("MD", "class_redundant"),
]
SMALL = ClassifierConfig(depth=10, widen_factor=1)


def coloured_images(count: int, seed: int) -> Tensor:
    """Noise of another strength in every channel, so that features vary widely."""
    generator = torch.Generator().manual_seed(seed)
    pixels = torch.rand(count, 3, 16, 16, generator=generator)
    return pixels * torch.rand(count, 3, 1, 1, generator=generator)


@pytest.fixture(scope="module")
def parts(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Checkpoint]]:
    """By space, checkpoints of untrained networks, in the folder `checkpoints`."""
    folder = tmp_path_factory.mktemp("checkpoints")
    settings: dict[str, Any] = {
        "training": TrainingConfig(epochs=1),
        "augmentation": AugmentationConfig(),
        "image_size": 16,
        "class_names": CLASSES,
    }

    def checkpoint(name: str, task: Task) -> Checkpoint:
        state = TrainState(task, torch.device("cpu"))
        # Statistics and settings that are not those of a fresh network.
        for module in state.model.modules():
            if isinstance(module, torch.nn.BatchNorm2d):
                module.running_mean.normal_(std=0.1)  # type: ignore[union-attr]
        store = Store.at(folder / name)
        save_checkpoint(store, state, epochs_done=1, config_digest=name, identity={}, metrics={})
        return checkpoint_at(folder / name / "epoch-0001")

    torch.manual_seed(0)
    model = ModelConfig(vae_width=4, latent_size=8, classifier_depth=10, classifier_widen_factor=1)
    cdvae = checkpoint("cdvae", CdvaeTask(model=model, objective=ObjectiveConfig(), **settings))
    frozen = FrozenCdvae.of(cdvae_of(cdvae), "d" * 64)
    classifiers = {
        kind: checkpoint(
            kind, ClassifierTask(input_kind=kind, cdvae=behind, model=SMALL, **settings)
        )
        for kind, behind in (("images", None), ("class_redundant", frozen))
    }
    return {
        "images": {"classifier": classifiers["images"]},
        "class_essential": {"cdvae": cdvae},
        "class_redundant": {"cdvae": cdvae, "classifier": classifiers["class_redundant"]},
    }


def extractor_of(space: Any, parts: dict[str, Checkpoint]) -> FeatureExtractor:
    return feature_extractor(
        space,
        cdvae=cdvae_of(parts["cdvae"]) if "cdvae" in parts else None,
        classifier=classifier_of(parts["classifier"]) if "classifier" in parts else None,
    )


def fitted_layers(method: str, features: dict[str, Tensor]) -> dict[str, LayerDetector]:
    labels, ids = torch.arange(60) % 3, torch.arange(60) * 7
    if method == "KD":
        return {
            "penultimate": detectors.fit_kernel_density(
                features["penultimate"], labels, 3, bandwidth=0.1 + 0.2
            )
        }
    if method == "LID":
        return {name: detectors.fit_lid(features[name], ids) for name in POOLED_LAYERS}
    moments = {name: detectors.class_moments(features[name], labels, 3) for name in POOLED_LAYERS}
    return {name: detectors.fit_mahalanobis(each) for name, each in moments.items()}


def fit(method: DetectorMethod, space: str, parts: dict[str, Checkpoint]) -> ImageDetector:
    extractor = extractor_of(space, parts)
    with torch.no_grad():
        features = extractor.features(coloured_images(60, seed=0))
        layers = {} if method == "residual" else fitted_layers(method, features)
        names = tuple(layers) or ("residual_l2", "residual_linf")
        settings: dict[str, Any] = {
            "method": method,
            "layers": layers,
            "threshold": THRESHOLD,
            "num_neighbours": 5 if method == "LID" else 0,
        }
        unit = detectors.Standardizer(
            names=names, mean=torch.zeros(len(names)), std=torch.ones(len(names))
        )
        clean = ImageDetector(extractor, combination=unit, **settings).layer_scores(
            coloured_images(40, seed=1)
        )
    return ImageDetector(extractor, combination=detectors.fit_standardizer(clean), **settings)


def store(folder: Path, method: DetectorMethod, space: str, parts: Any) -> ImageDetector:
    """Fits a detector and stores it as the folder."""
    detector = fit(method, space, parts[space])
    store_detector(Store.at(folder.parent), folder.name, detector, parts=parts[space], facts=FACTS)
    return detector


@pytest.fixture(scope="module", params=CASES, ids=" in ".join)
def stored(
    request: pytest.FixtureRequest, parts: Any, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, ImageDetector]:
    """A stored detector and the one that it was made of; not to be changed."""
    folder = tmp_path_factory.mktemp("detectors") / "one"
    return folder, store(folder, *request.param, parts)


def refused(run: Callable[[], object], match: str, kind: type[CdvaeError] = StorageError) -> None:
    """Asserts an error of one line."""
    with pytest.raises(kind, match=match) as caught:
        run()
    assert "\n" not in str(caught.value)


# --- what is stored comes back ------------------------------------------------------------------


def test_a_loaded_detector_scores_bit_for_bit_the_same(stored: tuple[Path, ImageDetector]) -> None:
    folder, detector = stored
    loaded, images = cdvae_ray.load_detector(folder), coloured_images(20, seed=2)
    with torch.no_grad():
        scores = detector.score(images)
        assert len(scores.unique()) == 20
        assert torch.equal(loaded.score(images), scores)
        assert torch.equal(loaded.classify(images), detector.classify(images))
    assert torch.equal(loaded.flags(images), detector.flags(images))
    assert 0 < int(loaded.flags(images).sum()) < 20


def test_its_gradients_are_the_same(stored: tuple[Path, ImageDetector]) -> None:
    folder, detector = stored
    images = coloured_images(4, seed=2).requires_grad_()
    first, second = (
        torch.autograd.grad(each.score(images).sum(), images)[0]
        for each in (detector, cdvae_ray.load_detector(str(folder)))
    )
    assert torch.equal(first, second) and (first != 0).any()


def test_threshold_and_settings_are_kept(stored: tuple[Path, ImageDetector]) -> None:
    folder, detector = stored
    loaded = cdvae_ray.load_detector(folder)
    assert loaded.threshold == detector.threshold == THRESHOLD
    for name in ("method", "num_neighbours"):
        assert getattr(loaded, name) == getattr(detector, name)
    for name in ("space", "class_names", "image_size"):
        assert getattr(loaded.extractor, name) == getattr(detector.extractor, name)
    assert loaded.combination.names == detector.combination.names
    assert list(loaded.layers) == list(detector.layers)
    assert not any(module.training for module in loaded.modules())


def test_networks_and_fitted_layers_are_the_same_numbers(
    stored: tuple[Path, ImageDetector],
) -> None:
    folder, detector = stored
    loaded = cdvae_ray.load_detector(folder)
    theirs = loaded.state_dict()
    assert theirs.keys() == detector.state_dict().keys()
    for name, values in detector.state_dict().items():
        assert torch.equal(theirs[name], values), name
    found, expected = (dict(_values(each)) for each in (loaded, detector))
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        if isinstance(value, Tensor):
            assert found[name].dtype == value.dtype and torch.equal(found[name], value), name
        else:
            assert found[name] == value, name


def _values(detector: ImageDetector) -> Iterator[tuple[str, Any]]:
    """All that is fitted, by a path."""
    yield "mean", detector.combination.mean
    yield "std", detector.combination.std
    for layer, each in detector.layers.items():
        yield f"{layer} is", type(each)
        holder = each.index if isinstance(each, detectors.LocalDimensionality) else each
        for name in holder.__slots__:
            yield f"{layer}.{name}", getattr(holder, name)


def test_what_made_it_is_kept_beside_it(stored: tuple[Path, ImageDetector]) -> None:
    folder, detector = stored
    manifest = json.loads((folder / "manifest.json").read_text())
    assert manifest["kind"] == DETECTOR_KIND
    facts = manifest["facts"]
    assert {name: facts[name] for name in FACTS} == FACTS
    assert facts["space"] == detector.extractor.space and facts["class_names"] == list(CLASSES)


# --- nothing is unpickled -----------------------------------------------------------------------


def test_files_are_safetensors_and_json_alone(stored: tuple[Path, ImageDetector]) -> None:
    folder, detector = stored
    names = {path.name for path in folder.rglob("*")}
    needs = {
        "images": {"classifier"},
        "class_essential": {"cdvae"},
        "class_redundant": {"cdvae", "classifier"},
    }[detector.extractor.space]
    assert names == {"manifest.json", *(f"{name}.safetensors" for name in {"detector", *needs})}
    for name in names - {"manifest.json"}:
        assert safetensors.torch.load((folder / name).read_bytes())


def test_loading_unpickles_nothing(
    stored: tuple[Path, ImageDetector], monkeypatch: pytest.MonkeyPatch
) -> None:
    def forbidden(*_: object, **__: object) -> None:
        raise AssertionError("something was unpickled")

    for module, name in (
        *((pickle, name) for name in ("load", "loads", "Unpickler", "_Unpickler")),
        (torch, "load"),
    ):
        monkeypatch.setattr(module, name, forbidden)
    with pytest.raises(AssertionError, match="unpickled"):
        pickle.loads(b"")  # noqa: S301 - to see that it is forbidden
    folder, _ = stored
    cdvae_ray.load_detector(folder).flags(coloured_images(2, seed=2))


# --- damage -------------------------------------------------------------------------------------


@pytest.fixture
def folder(parts: Any, tmp_path: Path) -> Path:
    """A stored detector to be damaged."""
    store(tmp_path / "detector", "KD", "class_essential", parts)
    cdvae_ray.load_detector(tmp_path / "detector")
    return tmp_path / "detector"


FILES = ("detector.safetensors", "cdvae.safetensors", "manifest.json")


@pytest.mark.parametrize("file", FILES)
@pytest.mark.parametrize("kept", [0.0, 0.5, 1.0])
def test_a_truncated_file_is_refused(folder: Path, file: str, kept: float) -> None:
    content = (folder / file).read_bytes()
    # The end of the manifest is a line break, without which it says the same.
    whole = len(content.rstrip(b"\n")) if file == "manifest.json" else len(content)
    (folder / file).write_bytes(content[: int(kept * (whole - 1))])
    refused(lambda: cdvae_ray.load_detector(folder), file)


@pytest.mark.parametrize("file", FILES)
@pytest.mark.parametrize("mask", [0x01, 0x40, 0x80])
def test_one_changed_byte_is_refused(folder: Path, file: str, mask: int) -> None:
    content = (folder / file).read_bytes()
    for place in range(0, len(content), len(content) // 30):
        changed = bytearray(content)
        changed[place] ^= mask
        (folder / file).write_bytes(bytes(changed))
        refused(lambda: cdvae_ray.load_detector(folder), file)


@pytest.mark.parametrize("file", FILES)
def test_a_missing_file_is_refused(folder: Path, file: str) -> None:
    (folder / file).unlink()
    refused(lambda: cdvae_ray.load_detector(folder), str(folder))


def test_a_file_of_another_detector_is_refused(parts: Any, folder: Path, tmp_path: Path) -> None:
    store(tmp_path / "other", "MD", "class_essential", parts)
    other = (tmp_path / "other" / "detector.safetensors").read_bytes()
    (folder / "detector.safetensors").write_bytes(other)
    refused(lambda: cdvae_ray.load_detector(folder), "detector.safetensors")


def test_a_file_that_is_no_safetensors_is_refused(folder: Path) -> None:
    place, name = Store.at(folder.parent), folder.name
    artifact = read_artifact(place, name, kind=DETECTOR_KIND)
    files = {**artifact.files, "detector.safetensors": pickle.dumps({"mean": [0.0]})}
    write_artifact(place, name, kind=DETECTOR_KIND, files=files, facts=artifact.facts)
    refused(lambda: read_detector(place, name), "expected a safetensors file")


def test_a_folder_that_is_none_or_empty_is_refused(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").write_text("no folder")
    for name in ("absent", "empty", "file"):
        refused(lambda name=name: cdvae_ray.load_detector(tmp_path / name), f"{name}: got ")  # type: ignore[misc]


def test_a_folder_of_another_kind_is_refused(parts: Any, folder: Path, tmp_path: Path) -> None:
    checkpoint = parts["class_essential"]["cdvae"].uri
    refused(
        lambda: cdvae_ray.load_detector(checkpoint),
        f"got cdvae-checkpoint in format 1, expected {DETECTOR_KIND} in format 1",
    )
    refused(lambda: cdvae_ray.load(folder), "expected cdvae-checkpoint", CheckpointError)
    write_artifact(Store.at(tmp_path), "set", kind="score-set", files={}, facts={})
    refused(lambda: cdvae_ray.load_detector(tmp_path / "set"), "got score-set in format 1")


def test_storing_again_replaces_the_detector(parts: Any, folder: Path) -> None:
    before = hashlib.sha256((folder / "detector.safetensors").read_bytes()).hexdigest()
    (folder / "left over").write_text("of an earlier one")
    detector = store(folder, "MD", "images", parts)
    assert {path.name for path in folder.iterdir()} == {
        "manifest.json",
        "detector.safetensors",
        "classifier.safetensors",
    }
    after = hashlib.sha256((folder / "detector.safetensors").read_bytes()).hexdigest()
    assert after != before
    images = coloured_images(5, seed=2)
    with torch.no_grad():
        loaded = cdvae_ray.load_detector(folder)
        assert torch.equal(loaded.score(images), detector.score(images))
