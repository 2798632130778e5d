"""Test numbers against plain sums, and the picture and the table as a person gets them."""

import io

import pytest
import torch
from PIL import Image

from cdvae_ray.config.data import AugmentationConfig
from cdvae_ray.config.model import ModelConfig
from cdvae_ray.config.objective import ObjectiveConfig
from cdvae_ray.config.training import EvaluationConfig, TrainingConfig
from cdvae_ray.core.cdvae import build_cdvae
from cdvae_ray.data.batches import evaluation_batches
from cdvae_ray.data.images import ImageSet
from cdvae_ray.evaluation.after_training import evaluate_cdvae_task
from cdvae_ray.evaluation.decomposition import (
    ATTACK_SUMS,
    clean_sums,
    count_codes,
    evaluate_clean,
    look_at_perturbations,
)
from cdvae_ray.evaluation.picture import decomposition_picture
from cdvae_ray.evaluation.results import table_columns, table_text, training_table
from cdvae_ray.training.cdvae_task import CdvaeTask
from cdvae_ray.training.state import TrainState

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def model():
    config = ModelConfig(vae_width=4, latent_size=8, classifier_depth=10, classifier_widen_factor=1)
    return build_cdvae(config, image_size=16, class_names=("a", "b", "c"), seed=0).eval()


VQ = ModelConfig(
    generator="vq_vae",
    vae_width=4,
    codebook_size=13,
    classifier_depth=10,
    classifier_widen_factor=1,
)


@pytest.fixture(scope="module")
def vq_model():
    return build_cdvae(VQ, image_size=16, class_names=("a", "b", "c"), seed=0).eval()


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
    kl = 0.5 * (parts.latent.mean**2 + parts.latent.log_var.exp() - parts.latent.log_var - 1).sum(1)
    expected = {
        "class_essential_accuracy": correct,
        "reconstruction_accuracy": (1 - ratio).sum().item(),
        "kl_nats": kl.sum().item(),
    }
    for batch_size, ranks in ((23, 1), (5, 3), (1, 2)):
        tallies = [evaluate_clean(model, s, CPU) for s in shards(images, batch_size, ranks)]
        assert sum(tally.count for tally in tallies) == 23
        for name in clean_sums(model):
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


def test_every_attacked_number_in_the_table_names_its_threat_model(model):
    metrics = dict.fromkeys((*clean_sums(model), *ATTACK_SUMS), 0.5)
    rows = training_table(metrics, EvaluationConfig(), test_images=360, attacked=256)
    attacked = [row for row in rows if row.images == 256]
    assert len(attacked) == 4
    assert all("white-box on D(R(x)): PGD L-inf, eps 8/255" in row.threat_model for row in attacked)
    text = table_text(rows)
    assert text.count("[1]") == 5
    assert "n = 360" in text
    assert table_columns(rows)["value"] == [0.5] * 7


# --- a VQ-VAE -----------------------------------------------------------------------------------


def code_uses(model, images):
    """How often each code is used, by hand."""
    with torch.no_grad():
        codes = model.decompose(images.images.float() / 255).latent.codes
    return torch.tensor([(codes == code).sum().item() for code in range(13)])


def test_codes_are_counted_for_any_sharding(vq_model, images):
    expected = code_uses(vq_model, images)
    assert 1 < (expected > 0).sum() < expected.sum() == 23 * 16
    for batch_size, ranks in ((23, 1), (5, 3), (1, 2)):
        counts = [
            count_codes(vq_model, vq_model.generator, shard, CPU)
            for shard in shards(images, batch_size, ranks)
        ]
        assert sum(counts).tolist() == expected.tolist()
        assert counts[0].dtype == torch.float64
    nothing = count_codes(vq_model, vq_model.generator, [], CPU)
    assert nothing.tolist() == [0] * 13


def test_clean_numbers_of_a_vq_vae_have_no_divergence(vq_model, images):
    with torch.no_grad():
        floats = images.images.float() / 255
        parts = vq_model.decompose(floats)
        normalized = (floats - vq_model.pixel_mean) / vq_model.pixel_std
        essential = parts.class_essential / vq_model.pixel_std
    ratio = essential.flatten(1).norm(dim=1) / normalized.flatten(1).norm(dim=1)
    (shard,) = shards(images, 5, 1)
    tally = evaluate_clean(vq_model, shard, CPU)
    assert tuple(tally.sums()) == clean_sums(vq_model)
    assert tally.sums() == pytest.approx(
        {
            "class_essential_accuracy": (parts.logits.argmax(1) == images.labels).sum().item(),
            "reconstruction_accuracy": (1 - ratio).sum().item(),
        },
        rel=1e-4,
    )


def test_final_numbers_of_a_vq_vae_have_its_codes_in_the_place_of_the_divergence(images):
    task = CdvaeTask(
        model=VQ,
        objective=ObjectiveConfig(),
        training=TrainingConfig(),
        augmentation=AugmentationConfig(),
        image_size=16,
        class_names=("a", "b", "c"),
    )
    config = EvaluationConfig(batch_size=10, attack_images=6, attack_num_steps=2)
    numbers = evaluate_cdvae_task(TrainState(task, CPU), images, config)
    assert (numbers.test_images, numbers.attacked_images) == (23, 6)
    model = task.build_model().eval()
    assert set(numbers.metrics) == {
        *clean_sums(model),
        *ATTACK_SUMS,
        *("codebook_perplexity", "codes_used"),
    }
    uses = code_uses(model, images)
    entropy = torch.distributions.Categorical(probs=uses.double()).entropy()
    assert numbers.metrics["codebook_perplexity"] == pytest.approx(entropy.exp().item())
    assert numbers.metrics["codes_used"] == (uses > 0).sum()
    rows = training_table(numbers.metrics, config, test_images=23, attacked=6)
    values = {row.quantity: (row.value, row.images) for row in rows}
    assert values["perplexity of the code book"] == (numbers.metrics["codebook_perplexity"], 23)
    assert values["codes used"] == (numbers.metrics["codes_used"], 23)
    assert len(rows) == 8 and not any(quantity.startswith("KL") for quantity in values)
