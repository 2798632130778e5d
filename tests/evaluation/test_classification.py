"""A classifier's numbers against plain sums, and its table."""

import pytest
import torch

from cdvae_ray.config.classifier import INPUT_KINDS, ClassifierConfig
from cdvae_ray.config.model import ModelConfig
from cdvae_ray.core.cdvae import build_cdvae
from cdvae_ray.core.classifier import build_classifier
from cdvae_ray.data.batches import evaluation_batches
from cdvae_ray.data.images import ImageSet
from cdvae_ray.evaluation.classification import (
    classification_sums,
    evaluate_classifier,
    kinds_of_input,
    top_k_correct,
)
from cdvae_ray.evaluation.results import classifier_table, table_text

CPU = torch.device("cpu")
CLASSES = tuple("abcdefg")


@pytest.fixture(scope="module")
def images():
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (23, 3, 16, 16), generator=generator).to(torch.uint8)
    return ImageSet.build(pixels, torch.arange(23) % 7, CLASSES, "made/test")


def make_cdvae(evaluation_latent="mean"):
    config = ModelConfig(
        vae_width=4,
        latent_size=8,
        classifier_depth=10,
        classifier_widen_factor=1,
        evaluation_latent=evaluation_latent,
    )
    return build_cdvae(config, image_size=16, class_names=CLASSES, seed=0).eval()


@pytest.fixture(scope="module")
def model():
    return build_classifier(
        ClassifierConfig(depth=10, widen_factor=1),
        input_kind="class_redundant",
        image_size=16,
        class_names=CLASSES,
        seed=0,
    ).eval()


def total(model, images, cdvae, batch_size, ranks):
    tallies = [
        evaluate_classifier(
            model,
            evaluation_batches(images, batch_size=batch_size, rank=rank, world_size=ranks),
            CPU,
            cdvae=cdvae,
        )
        for rank in range(ranks)
    ]
    assert sum(tally.count for tally in tallies) == len(images)
    names = tallies[0].sums()
    return {name: sum(tally.sums()[name] for tally in tallies) for name in names}


def test_accuracies_equal_plain_sums_for_any_sharding(model, images):
    cdvae = make_cdvae()
    with torch.no_grad():
        floats = images.images.float() / 255
        parts = cdvae.decompose(floats)
        inputs = (floats, parts.class_redundant, parts.class_essential)
        expected = {}
        std = model.pixel_std
        for kind, shown in zip(INPUT_KINDS, inputs, strict=True):
            # R(x) is a difference: no mean is subtracted from it, by whichever classifier.
            mean = 0 if kind == "class_essential" else model.pixel_mean
            ranked = model.network((shown - mean) / std).argsort(dim=1, descending=True)
            hits = ranked == images.labels.unsqueeze(1)
            expected[f"accuracy_on_{kind}"] = hits[:, 0].sum().item()
            expected[f"top5_accuracy_on_{kind}"] = hits[:, :5].sum().item()
    assert len(set(expected.values())) > 2
    for batch_size, ranks in ((23, 1), (5, 3), (1, 2)):
        assert total(model, images, cdvae, batch_size, ranks) == expected


@pytest.mark.parametrize("trained_on", INPUT_KINDS)
def test_a_classifier_is_shown_every_part_in_normalised_units(trained_on):
    config = ClassifierConfig(depth=10, widen_factor=1)
    model = build_classifier(
        config, input_kind=trained_on, image_size=16, class_names=CLASSES, seed=0
    ).eval()
    inputs = torch.rand(4, 3, 16, 16, generator=torch.Generator().manual_seed(1))
    mean = torch.tensor(config.pixel_mean).view(1, 3, 1, 1)
    std = torch.tensor(config.pixel_std).view(1, 3, 1, 1)
    with torch.no_grad():
        assert torch.equal(model.classify(inputs, trained_on), model(inputs))
        for shown in INPUT_KINDS:
            normalized = (inputs - (0 if shown == "class_essential" else mean)) / std
            torch.testing.assert_close(model.classify(inputs, shown), model.network(normalized))


def test_without_a_cdvae_only_images_are_shown(model, images):
    sums = total(model, images, None, 23, 1)
    assert tuple(sums) == classification_sums(kinds_of_input(None))
    assert set(sums) == {"accuracy_on_images", "top5_accuracy_on_images"}


def test_a_cdvae_that_samples_gives_the_same_numbers_for_any_sharding(model, images):
    sampling = make_cdvae("sample")
    first = total(model, images, sampling, 23, 1)
    torch.rand(7)
    assert total(model, images, sampling, 4, 3) == first


def test_top_k_counts_labels_among_the_k_largest():
    logits = torch.tensor([[3.0, 2.0, 1.0], [3.0, 2.0, 1.0], [3.0, 2.0, 1.0]])
    labels = torch.tensor([0, 1, 2])
    assert [int(top_k_correct(logits, labels, k)) for k in (1, 2, 3, 5)] == [1, 2, 3, 3]


def test_the_table_has_a_row_a_number_its_own_input_first():
    metrics = dict.fromkeys(classification_sums(INPUT_KINDS), 0.5)
    rows = classifier_table(metrics, input_kind="class_redundant", num_classes=3, test_images=360)
    assert [row.quantity for row in rows] == [
        "accuracy on G(x), its own input",
        "top-3 accuracy on G(x), its own input",
        "accuracy on x",
        "top-3 accuracy on x",
        "accuracy on R(x)",
        "top-3 accuracy on R(x)",
    ]
    assert {(row.images, row.threat_model) for row in rows} == {(360, "")}
    assert "n = 360" in table_text(rows)
    alone = dict.fromkeys(classification_sums(("images",)), 0.5)
    assert len(classifier_table(alone, input_kind="images", num_classes=10, test_images=1)) == 2
