"""Test numbers against plain sums, and the picture and the table as a person gets them."""

import io

import pytest
import torch
from PIL import Image

from cdvae_ray.config.model import ModelConfig
from cdvae_ray.config.training import EvaluationConfig
from cdvae_ray.core.cdvae import build_cdvae
from cdvae_ray.data.batches import evaluation_batches
from cdvae_ray.data.images import ImageSet
from cdvae_ray.evaluation.decomposition import (
    ATTACK_SUMS,
    CLEAN_SUMS,
    evaluate_clean,
    look_at_perturbations,
)
from cdvae_ray.evaluation.picture import decomposition_picture
from cdvae_ray.evaluation.results import table_columns, table_text, training_table

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def model():
    config = ModelConfig(vae_width=4, latent_size=8, classifier_depth=10, classifier_widen_factor=1)
    return build_cdvae(config, image_size=16, class_names=("a", "b", "c"), seed=0).eval()


@pytest.fixture(scope="module")
def images():
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (23, 3, 16, 16), generator=generator).to(torch.uint8)
    return ImageSet.build(pixels, torch.arange(23) % 3, ("a", "b", "c"), "made/test")


def shards(images, batch_size, ranks, limit=None):
    for rank in range(ranks):
        yield evaluation_batches(
            images, batch_size=batch_size, rank=rank, world_size=ranks, limit=limit
        )


def test_clean_numbers_equal_plain_sums_for_any_sharding(model, images):
    with torch.no_grad():
        floats = images.images.float() / 255
        parts = model.decompose(floats)
        normalized = (floats - model.pixel_mean) / model.pixel_std
        essential = parts.class_essential / model.pixel_std
    correct = (parts.logits.argmax(1) == images.labels).sum().item()
    ratio = essential.flatten(1).norm(dim=1) / normalized.flatten(1).norm(dim=1)
    kl = 0.5 * (parts.mean**2 + parts.log_var.exp() - parts.log_var - 1).sum(1)
    expected = {
        "class_essential_accuracy": correct,
        "reconstruction_accuracy": (1 - ratio).sum().item(),
        "kl_nats": kl.sum().item(),
    }
    for batch_size, ranks in ((23, 1), (5, 3), (1, 2)):
        tallies = [evaluate_clean(model, s, CPU) for s in shards(images, batch_size, ranks)]
        assert sum(tally.count for tally in tallies) == 23
        for name in CLEAN_SUMS:
            total = sum(tally.sums()[name] for tally in tallies)
            assert total == pytest.approx(expected[name], rel=1e-4), name


def test_the_perturbation_splits_into_its_parts(model, images):
    config = EvaluationConfig(attack_images=10, attack_num_steps=3)
    (shard,) = shards(images, 4, 1, limit=10)
    tally = look_at_perturbations(model, shard, config, CPU)
    means = tally.means()
    assert tuple(means) == ATTACK_SUMS
    assert tally.count == 10
    # delta = delta_G + delta_R, so no norm exceeds the sum of the other two.
    parts = [means["delta_l2"], means["delta_redundant_l2"], means["delta_essential_l2"]]
    assert 0 < means["delta_l2"] <= 8 / 255 * (3 * 16 * 16) ** 0.5 + 1e-6
    assert all(2 * part <= sum(parts) + 1e-6 for part in parts)
    split = [look_at_perturbations(model, s, config, CPU) for s in shards(images, 3, 2, limit=10)]
    for name in ATTACK_SUMS:
        total = sum(each.sums()[name] for each in split)
        assert total == pytest.approx(tally.sums()[name], rel=1e-3), name


def test_the_picture_is_a_png_with_a_column_an_image(model, images):
    narrow = decomposition_picture(model, images.images[:2], images.labels[:2], caption="c")
    wide = decomposition_picture(model, images.images[:6], images.labels[:6], caption="c")
    sizes = [Image.open(io.BytesIO(png)).size for png in (narrow, wide)]
    assert sizes[0][1] == sizes[1][1]
    assert sizes[1][0] > 2 * sizes[0][0]


def test_every_attacked_number_in_the_table_names_its_threat_model():
    metrics = dict.fromkeys((*CLEAN_SUMS, *ATTACK_SUMS), 0.5)
    rows = training_table(metrics, EvaluationConfig(), test_images=360, attacked=256)
    attacked = [row for row in rows if row.images == 256]
    assert len(attacked) == 4
    assert all("white-box on D(R(x)): PGD L-inf, eps 8/255" in row.threat_model for row in attacked)
    text = table_text(rows)
    assert text.count("[1]") == 5
    assert "n = 360" in text
    assert table_columns(rows)["value"] == [0.5] * 7
