"""What every detector promises, and the null controls: clean against clean is a coin toss."""

import pytest
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score

from cdvae_ray import detectors
from tests.core.detectors.synthetic import NUM_CLASSES, gaussian_classes

WIDTH = 12


def auroc(negative, positive):
    truth = torch.cat([torch.zeros(len(negative)), torch.ones(len(positive))])
    return roc_auc_score(truth.numpy(), torch.cat([negative, positive]).numpy())


def nearest_mean(features, means):
    return torch.cdist(features, means).argmin(dim=1)


@pytest.fixture(scope="module")
def scorers():
    """By name: features (N, WIDTH) to scores (N,), fitted to clean Gaussian classes."""
    features, labels = gaussian_classes(1500, WIDTH)
    moments = detectors.class_moments(features, labels, NUM_CLASSES)
    distance = detectors.fit_mahalanobis(moments)
    density = detectors.fit_kernel_density(features, labels, NUM_CLASSES, bandwidth=0.6)
    lid = detectors.fit_lid(features, torch.arange(len(features)))

    def predict(queries):
        return nearest_mean(queries, moments.means)

    def layers(queries):
        return {
            "mahalanobis": distance.score(queries),
            "density": density.score(queries, predict(queries)),
            "dimensionality": lid.score(queries, 20),
        }

    standardizer = detectors.fit_standardizer(layers(gaussian_classes(300, WIDTH, seed=7)[0]))
    return {
        "mahalanobis": distance.score,
        "density": lambda queries: density.score(queries, predict(queries)),
        "dimensionality": lambda queries: lid.score(queries, 20),
        "residual_l2": lambda queries: detectors.residual_l2(queries, torch.zeros_like(queries)),
        "residual_linf": lambda queries: detectors.residual_linf(
            queries, torch.zeros_like(queries)
        ),
        "disagreement": lambda queries: detectors.disagreement(queries, queries.roll(1, dims=1)),
        "combined": lambda queries: standardizer.score(layers(queries)),
    }


DETECTORS = (
    *("mahalanobis", "density", "dimensionality"),
    *("residual_l2", "residual_linf", "disagreement", "combined"),
)
STATISTICAL = ("mahalanobis", "density", "dimensionality", "combined")


@pytest.mark.parametrize("name", DETECTORS)
def test_scores_are_one_finite_number_an_image_whatever_its_neighbours(name, scorers):
    queries, _ = gaussian_classes(101, WIDTH, seed=1)
    scores = scorers[name](queries)
    assert scores.shape == (101,) and torch.isfinite(scores).all()
    order = torch.randperm(101, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(scorers[name](queries[order]), scores[order], rtol=1e-10, atol=1e-10)
    parts = torch.cat([scorers[name](part) for part in queries.split(17)])
    torch.testing.assert_close(parts, scores, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("name", DETECTORS)
def test_inputs_and_their_gradients_are_left_alone(name, scorers):
    queries, _ = gaussian_classes(20, WIDTH, seed=1)
    before = queries.clone()
    variable = queries.clone().requires_grad_()
    plain, differentiable = scorers[name](queries), scorers[name](variable)
    assert torch.equal(queries, before) and not plain.requires_grad
    torch.testing.assert_close(differentiable.detach(), plain, rtol=1e-12, atol=1e-12)
    (gradient,) = torch.autograd.grad(differentiable.sum(), variable)
    assert torch.isfinite(gradient).all() and (gradient != 0).any()


@pytest.mark.parametrize("name", STATISTICAL)
def test_shifted_images_score_higher(name, scorers):
    clean, _ = gaussian_classes(400, WIDTH, seed=1)
    generator = torch.Generator().manual_seed(2)
    noise = torch.randn(clean.shape, generator=generator, dtype=torch.float64)
    assert auroc(scorers[name](clean), scorers[name](clean + noise)) > 0.8


@pytest.mark.parametrize("name", STATISTICAL)
def test_fresh_clean_against_clean_is_a_coin_toss(name, scorers):
    first, _ = gaussian_classes(3000, WIDTH, seed=1)
    second, _ = gaussian_classes(3000, WIDTH, seed=2)
    # The deviation of this AUROC is 0.0075.
    assert 0.47 < auroc(scorers[name](first), scorers[name](second)) < 0.53


def four_layers(seed):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(1000, width, generator=generator) for width in (16, 32, 64, 128)]


def regression_auroc(clean, fresh):
    """AUROC on one half of a logistic regression fitted to the other, layers as columns."""
    scores = torch.cat([clean, fresh]).numpy()
    truth = torch.cat([torch.zeros(len(clean)), torch.ones(len(fresh))]).numpy()
    trained = torch.arange(len(truth)).numpy() % 2 == 0
    model = LogisticRegression().fit(scores[trained], truth[trained])
    return roc_auc_score(truth[~trained], model.decision_function(scores[~trained]))


def test_the_reference_dimensionality_tells_fresh_clean_images_from_clean_ones():
    clean, fresh = four_layers(1), four_layers(2)

    def columns(queries):
        pairs = zip(queries, clean, strict=True)
        return torch.cat([detectors.reference_lid(each, own, (20,)) for each, own in pairs], dim=1)

    # The batch's nearest is dropped for both, but only for clean images is it the image itself.
    assert regression_auroc(columns(clean), columns(fresh)) > 0.65


def test_the_fixed_references_do_not():
    clean, fresh = four_layers(1), four_layers(2)
    references = [detectors.fit_lid(each, torch.arange(1000)) for each in four_layers(3)]

    def columns(queries):
        pairs = zip(references, queries, strict=True)
        return torch.stack([lid.score(each, 20) for lid, each in pairs], dim=1)

    # 1,000 test scores: the deviation of this AUROC is 0.018.
    assert 0.45 < regression_auroc(columns(clean), columns(fresh)) < 0.55


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_devices_agree():
    features, labels = gaussian_classes(500, WIDTH)
    queries, predictions = gaussian_classes(50, WIDTH, seed=1)
    scores = []
    for device in ("cpu", "cuda"):
        here, own, ids = features.to(device), labels.to(device), torch.arange(500, device=device)
        moments = detectors.class_moments(here, own, NUM_CLASSES)
        density = detectors.fit_kernel_density(here, own, NUM_CLASSES, bandwidth=0.6)
        asked = queries.to(device)
        columns = (
            detectors.fit_mahalanobis(moments).score(asked),
            density.score(asked, predictions.to(device)),
            detectors.fit_lid(here, ids).score(asked, 20, query_ids=ids[:50]),
        )
        scores.append(torch.stack(columns).cpu())
    torch.testing.assert_close(scores[0], scores[1], rtol=1e-8, atol=1e-8)
