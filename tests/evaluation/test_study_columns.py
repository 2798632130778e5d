"""The study's numbers of each image against numpy on what `CDVAE.decompose` gives.

In float64, where float32's cancellation in small differences would hide a wrong term.
"""

import numpy as np
import pytest
import torch
from torch import nn

from cdvae_ray.config.classifier import INPUT_KINDS
from cdvae_ray.core.random import image_keys, keyed_normal
from cdvae_ray.core.threat_models import attacked_model
from cdvae_ray.core.vq_vae import Quantized
from cdvae_ray.data.batches import evaluation_batches
from cdvae_ray.data.images import ImageSet
from cdvae_ray.evaluation.classification import evaluate_classifier
from cdvae_ray.evaluation.study_columns import (
    COMPARED,
    NORMS,
    PARTS,
    CrossColumns,
    DecompositionColumns,
    as_image,
    latent_vector,
    norms,
)
from tests.evaluation.small_networks import CLASSES, image_pairs, small_cdvae, small_classifier

COUNT = 11
IDS = torch.arange(COUNT) * 3 + 5
LABELS = torch.arange(COUNT) % len(CLASSES)
UNITS = ("normalized", "pixel")


@pytest.fixture(scope="module")
def pairs():
    return image_pairs(COUNT, dtype=torch.float64)


@pytest.fixture(scope="module")
def cdvaes():
    return {latent: small_cdvae(latent, dtype=torch.float64) for latent in ("mean", "sample")}


@pytest.fixture(scope="module")
def attacked():
    return small_classifier(dtype=torch.float64)


def computation(cdvae, attacked, *, units="normalized", seed=0):
    # Features that are the pixels themselves: what the extractor is shown.
    return DecompositionColumns(cdvae, attacked, nn.Flatten(), units=units, seed=seed)


def by_decompose(cdvae, clean, images, units):
    """The nine parts as numpy arrays, in either unit, by `CDVAE.decompose` and nothing else."""
    mean, std = (
        np.array(each).reshape(1, 3, 1, 1)
        for each in (cdvae.config.pixel_mean, cdvae.config.pixel_std)
    )
    if units == "pixel":
        mean, std = 0 * mean, np.ones_like(std)
    parts = {}
    for mark, shown in (("", clean), ("'", images)):
        with torch.no_grad():
            split = cdvae.decompose(shown)
        parts[f"x{mark}"] = (shown.numpy() - mean) / std
        parts[f"G(x{mark})"] = (split.class_redundant.numpy() - mean) / std
        parts[f"R(x{mark})"] = split.class_essential.numpy() / std
    parts["delta"] = parts["x"] - parts["x'"]
    parts["delta_G"] = parts["G(x)"] - parts["G(x')"]
    parts["delta_R"] = parts["R(x)"] - parts["R(x')"]
    return parts


def test_a_column_a_number_a_row_an_image(cdvaes, attacked, pairs):
    columns = computation(cdvaes["mean"], attacked)(*pairs, LABELS, IDS)
    widths = {name: tuple(values.shape[1:]) for name, values in columns.items()}
    assert {len(values) for values in columns.values()} == {COUNT}
    assert widths == {
        "label": (),
        "prediction": (),
        "prediction_adversarial": (),
        "essential_prediction": (),
        "essential_prediction_adversarial": (),
        "l1": (9,),
        "l2": (9,),
        "linf": (9,),
        "cosine": (2,),
        "latent": (8,),
        "latent_adversarial": (8,),
        **{f"features/{part}": (768,) for part in COMPARED},
    }


@pytest.mark.parametrize("units", UNITS)
def test_norms_are_those_of_numpy(cdvaes, attacked, pairs, units):
    columns = computation(cdvaes["mean"], attacked, units=units)(*pairs, LABELS, IDS)
    parts = by_decompose(cdvaes["mean"], *pairs, units)
    assert tuple(parts) == PARTS
    for name, order in (("l1", 1), ("l2", 2), ("linf", np.inf)):
        for place, part in enumerate(PARTS):
            expected = np.linalg.norm(parts[part].reshape(COUNT, -1), ord=order, axis=1)
            assert expected.min() > 1e-3
            np.testing.assert_allclose(
                columns[name][:, place], expected, rtol=1e-6, err_msg=f"{name} of {part}"
            )


@pytest.mark.parametrize("units", UNITS)
def test_cosines_are_those_of_numpy(cdvaes, attacked, pairs, units):
    columns = computation(cdvaes["mean"], attacked, units=units)(*pairs, LABELS, IDS)
    parts = {
        name: values.reshape(COUNT, -1)
        for name, values in by_decompose(cdvaes["mean"], *pairs, units).items()
    }
    for place, (first, second) in enumerate((("G(x)", "G(x')"), ("R(x)", "R(x')"))):
        a, b = parts[first], parts[second]
        expected = (a * b).sum(axis=1) / np.sqrt((a**2).sum(axis=1) * (b**2).sum(axis=1))
        assert expected.max() < 1 - 1e-5
        np.testing.assert_allclose(columns["cosine"][:, place], expected, rtol=1e-7)


def test_the_perturbation_is_the_sum_of_its_parts(cdvaes, attacked, pairs):
    # delta = delta_G + delta_R, so its norms obey the triangle inequality, both ways.
    columns = computation(cdvaes["mean"], attacked)(*pairs, LABELS, IDS)
    parts = by_decompose(cdvaes["mean"], *pairs, "normalized")
    np.testing.assert_allclose(parts["delta"], parts["delta_G"] + parts["delta_R"], atol=1e-12)
    for name in NORMS:
        whole, redundant, essential = columns[name][:, 6:].T
        assert bool((whole <= redundant + essential).all())
        assert bool((whole >= (redundant - essential).abs()).all())


def test_both_units_measure_the_same_parts(cdvaes, attacked, pairs):
    pixel, normalized = (
        computation(cdvaes["mean"], attacked, units=units)(*pairs, LABELS, IDS) for units in UNITS
    )
    assert {name for name in pixel if not torch.equal(pixel[name], normalized[name])} == {
        *NORMS,
        "cosine",
    }


def test_answers_and_latents_are_those_of_the_networks(cdvaes, attacked, pairs):
    cdvae = cdvaes["mean"]
    columns = computation(cdvae, attacked)(*pairs, LABELS, IDS)
    assert torch.equal(columns["label"], LABELS)
    for shown, suffix in zip(pairs, ("", "_adversarial"), strict=True):
        with torch.no_grad():
            split, answers = cdvae.decompose(shown), attacked(shown).argmax(dim=1)
        assert torch.equal(columns[f"prediction{suffix}"], answers)
        assert torch.equal(columns[f"essential_prediction{suffix}"], split.logits.argmax(dim=1))
        torch.testing.assert_close(columns[f"latent{suffix}"], split.latent.mean)
    answers = {
        tuple(columns[name].tolist()) for name in columns if "prediction" in name or name == "label"
    }
    assert len(answers) == 5


def test_an_attack_through_the_cdvae_is_answered_by_its_own_d(cdvaes, pairs):
    cdvae = cdvaes["mean"]
    through = attacked_model("class-essential", cdvae=cdvae, classifier=None)
    columns = computation(cdvae, through)(*pairs, LABELS, IDS)
    for suffix in ("", "_adversarial"):
        assert torch.equal(columns[f"prediction{suffix}"], columns[f"essential_prediction{suffix}"])


@pytest.mark.parametrize("units", UNITS)
def test_features_are_of_the_parts_as_pictures_show_them(cdvaes, attacked, pairs, units):
    columns = computation(cdvaes["mean"], attacked, units=units)(*pairs, LABELS, IDS)
    parts = by_decompose(cdvaes["mean"], *pairs, "pixel")
    for part in COMPARED:
        shown = parts[part] + (0.5 if part.startswith("R") else 0)
        expected = np.clip(shown, 0, 1).reshape(COUNT, -1)
        np.testing.assert_allclose(columns[f"features/{part}"], expected, atol=1e-7)


def test_an_image_is_clamped_and_r_is_shifted_to_mid_grey():
    part = torch.tensor([-0.7, -0.5, -0.2, 0.0, 0.3, 0.5, 1.0, 1.2])
    assert as_image(part, "G(x)").tolist() == pytest.approx([0, 0, 0, 0, 0.3, 0.5, 1, 1])
    for name in ("R(x)", "R(x')"):
        assert as_image(part, name).tolist() == pytest.approx([0, 0, 0.3, 0.5, 0.8, 1, 1, 1])
    assert as_image(part, "x'").tolist() == as_image(part, "G(x')").tolist()


def test_norms_of_an_image_are_over_channels_and_pixels():
    part = torch.zeros(2, 3, 4, 4)
    part[0, 0, 1, 2], part[0, 2, 3, 3] = -3.0, 4.0
    found = norms([part, -2 * part])
    assert found["l1"].tolist() == [[7, 14], [0, 0]]
    assert found["l2"].tolist() == [[5, 10], [0, 0]]
    assert found["linf"].tolist() == [[4, 8], [0, 0]]


def assert_equal_columns(first, second):
    assert set(first) == set(second)
    for name, values in first.items():
        torch.testing.assert_close(second[name], values, rtol=1e-9, atol=1e-11, msg=name)


@pytest.mark.parametrize("latent", ["mean", "sample"])
def test_columns_do_not_depend_on_the_batch(cdvaes, attacked, pairs, latent):
    compute = computation(cdvaes[latent], attacked)
    whole = compute(*pairs, LABELS, IDS)
    for batch_size in (1, 4):
        places = torch.arange(COUNT).split(batch_size)
        batches = [compute(*(each[at] for each in (*pairs, LABELS, IDS))) for at in places]
        assert_equal_columns(
            whole, {name: torch.cat([batch[name] for batch in batches]) for name in whole}
        )
    torch.rand(3)
    back = compute(*(each.flip(0) for each in (*pairs, LABELS, IDS)))
    assert_equal_columns(whole, {name: values.flip(0) for name, values in back.items()})


def test_a_sampling_cdvae_decodes_noise_keyed_by_ids(cdvaes, attacked, pairs):
    cdvae, (clean, _) = cdvaes["sample"], pairs
    columns = computation(cdvae, attacked, units="pixel", seed=7)(clean, clean, LABELS, IDS)
    noise = keyed_normal(image_keys(7, "analyze.latent", 0, IDS), cdvae.config.latent_size)
    with torch.no_grad():
        output = cdvae(clean, noise)
    redundant = output.reconstruction * cdvae.pixel_std + cdvae.pixel_mean
    for part, expected in (("G(x)", redundant), ("R(x)", clean - redundant)):
        for name, found in norms([expected]).items():
            place = PARTS.index(part)
            torch.testing.assert_close(columns[name][:, place], found[:, 0], rtol=1e-9, atol=0)
    # The means, not the samples.
    assert torch.equal(columns["latent"], output.latent.mean)


def test_codes_are_compared_as_means_over_a_coarse_grid():
    encoded = torch.zeros(2, 3, 18, 18)
    quantized = torch.rand(2, 3, 18, 18)
    fine = Quantized(encoded, quantized, torch.zeros(2, 18, 18, dtype=torch.int64))
    found = latent_vector(fine)
    assert found.shape == (2, 3 * 64)
    torch.testing.assert_close(
        found.view(2, 3, 8, 8)[..., 0, 0], quantized[..., :3, :3].mean(dim=(2, 3))
    )
    coarse = Quantized(*(each[..., :4, :4] for each in fine))
    assert torch.equal(latent_vector(coarse), coarse.quantized.flatten(1))


@pytest.mark.parametrize("latent", ["mean", "sample"])
def test_equal_images_have_equal_parts(cdvaes, attacked, pairs, latent):
    clean, _ = pairs
    columns = computation(cdvaes[latent], attacked)(clean, clean.clone(), LABELS, IDS)
    for name in NORMS:
        assert torch.equal(columns[name][:, 6:], torch.zeros(COUNT, 3, dtype=torch.float64))
    torch.testing.assert_close(columns["cosine"], torch.ones(COUNT, 2, dtype=torch.float64))
    assert torch.equal(columns["latent"], columns["latent_adversarial"])
    assert torch.equal(columns["features/R(x)"], columns["features/R(x')"])


def test_ids_and_seed_matter_to_a_sampling_cdvae_alone(cdvaes, attacked, pairs):
    for latent, differs in (("mean", False), ("sample", True)):
        base = computation(cdvaes[latent], attacked)(*pairs, LABELS, IDS)
        others = [
            computation(cdvaes[latent], attacked)(*pairs, LABELS, IDS + 1),
            computation(cdvaes[latent], attacked, seed=1)(*pairs, LABELS, IDS),
        ]
        for other in others:
            redundant = PARTS.index("G(x)")
            assert bool((base["l2"] != other["l2"])[:, redundant].all()) == differs
            assert torch.equal(base["prediction"], other["prediction"])


def test_answers_of_a_sampling_cdvae_that_is_attacked_do_not_change(cdvaes, pairs):
    cdvae = cdvaes["sample"]
    through = attacked_model("class-essential", cdvae=cdvae, classifier=None)
    compute = computation(cdvae, through)
    torch.manual_seed(0)
    first = compute(*pairs, LABELS, IDS)
    assert torch.equal(first["prediction"], first["essential_prediction"])


def test_float32_gives_the_same_numbers(cdvaes, attacked, pairs):
    exact = computation(cdvaes["mean"], attacked)(*pairs, LABELS, IDS)
    single = computation(small_cdvae(), small_classifier())(
        *(each.float() for each in pairs), LABELS, IDS
    )
    for name in (*NORMS, "cosine", "latent", "features/G(x)", "features/R(x')"):
        torch.testing.assert_close(single[name].double(), exact[name], rtol=1e-3, atol=1e-4)


def test_nothing_takes_a_gradient(cdvaes, attacked, pairs):
    columns = computation(cdvaes["mean"], attacked)(*pairs, LABELS, IDS)
    assert not any(values.requires_grad for values in columns.values())


# Table 3.


@pytest.fixture(scope="module")
def classifiers():
    return {kind: small_classifier(kind, seed=place) for place, kind in enumerate(INPUT_KINDS)}


def by_top_k(classifiers, cdvae, images, labels, noise=None):
    """Each cell by sorting all answers to the normalised part."""
    with torch.no_grad():
        output = cdvae(images, noise)
    redundant = output.reconstruction * cdvae.pixel_std + cdvae.pixel_mean
    shown = {
        "images": images,
        "class_redundant": redundant,
        "class_essential": images - redundant,
    }
    expected = {}
    for trained_on, classifier in classifiers.items():
        mean = torch.tensor(classifier.config.pixel_mean).view(1, 3, 1, 1)
        std = torch.tensor(classifier.config.pixel_std).view(1, 3, 1, 1)
        for kind, part in shown.items():
            centre = 0 if kind == "class_essential" else mean
            with torch.no_grad():
                ranked = classifier.network((part - centre) / std).argsort(dim=1, descending=True)
            hits = ranked == labels[:, None]
            expected[f"{trained_on}/{kind}/top1"] = hits[:, 0]
            expected[f"{trained_on}/{kind}/top5"] = hits[:, :5].any(dim=1)
    return expected


@pytest.mark.parametrize("latent", ["mean", "sample"])
def test_every_cell_of_table_3_is_a_direct_top_k(classifiers, latent):
    cdvae, (images, _) = small_cdvae(latent), image_pairs(40)
    labels, ids = torch.arange(40) % len(CLASSES), torch.arange(40) + 100
    noise = None
    if latent == "sample":
        noise = keyed_normal(image_keys(3, "analyze.latent", 0, ids), cdvae.config.latent_size)
    expected = by_top_k(classifiers, cdvae, images, labels, noise)
    compute = CrossColumns(cdvae, classifiers, seed=3)
    found = compute(images, labels, ids)
    assert set(found) == set(expected) and len(found) == 18
    assert len({tuple(values.tolist()) for values in found.values()}) > 12
    for name, hits in expected.items():
        assert found[name].dtype == torch.bool
        assert torch.equal(found[name], hits), name
    batches = [
        compute(*(each[at] for each in (images, labels, ids))) for at in torch.arange(40).split(13)
    ]
    for name, hits in expected.items():
        assert torch.equal(torch.cat([batch[name] for batch in batches]), hits), name


def test_table_3_agrees_with_the_classifiers_own_evaluation(classifiers):
    cdvae, (images, _) = small_cdvae(), image_pairs(29)
    stored = ImageSet.build(
        (255 * images).round().to(torch.uint8), torch.arange(29) % len(CLASSES), CLASSES, "made"
    )
    found = CrossColumns(cdvae, classifiers, seed=0)(
        stored.images.float() / 255, stored.labels, torch.arange(29)
    )
    for trained_on, classifier in classifiers.items():
        sums = evaluate_classifier(
            classifier,
            evaluation_batches(stored, batch_size=8, rank=0, world_size=1),
            torch.device("cpu"),
            cdvae=cdvae,
        ).sums()
        for kind in INPUT_KINDS:
            cell = f"{trained_on}/{kind}"
            assert int(found[f"{cell}/top1"].sum()) == sums[f"accuracy_on_{kind}"]
            assert int(found[f"{cell}/top5"].sum()) == sums[f"top5_accuracy_on_{kind}"]


def test_of_few_classes_all_are_among_the_first_five():
    few = small_classifier(classes=("a", "b", "c"))
    columns = CrossColumns(small_cdvae(), {"images": few}, seed=0)(
        image_pairs(9)[0], torch.arange(9) % 3, torch.arange(9)
    )
    assert set(columns) == {
        f"images/{kind}/{top}" for kind in INPUT_KINDS for top in ("top1", "top5")
    }
    for kind in INPUT_KINDS:
        assert bool(columns[f"images/{kind}/top5"].all())
    assert not bool(columns["images/images/top1"].all())
