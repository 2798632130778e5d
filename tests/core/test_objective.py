"""Eqs. (1)-(3) against torch.distributions and hand-written sums."""

import pytest
import torch
from torch.distributions import Normal, kl_divergence

from cdvae_ray.config.objective import ObjectiveConfig
from cdvae_ray.core.cdvae import CdvaeOutput
from cdvae_ray.core.objective import (
    cdvae_loss,
    kl_per_image,
    reconstruction_accuracy_per_image,
)
from cdvae_ray.core.vae import Posterior
from cdvae_ray.errors import ConfigError


@pytest.fixture
def output():
    torch.manual_seed(0)
    shape = (5, 3, 4, 4)
    return CdvaeOutput(
        normalized_images=torch.randn(shape, dtype=torch.float64),
        reconstruction=torch.randn(shape, dtype=torch.float64),
        latent=Posterior(
            mean=torch.randn(5, 7, dtype=torch.float64),
            log_var=torch.randn(5, 7, dtype=torch.float64),
        ),
        logits=torch.randn(5, 10, dtype=torch.float64),
    )


LABELS = torch.tensor([0, 3, 9, 3, 1])


def test_kl_is_that_of_torch_distributions(output):
    posterior = Normal(output.latent.mean, (0.5 * output.latent.log_var).exp())
    prior = Normal(torch.zeros_like(output.latent.mean), torch.ones_like(output.latent.mean))
    expected = kl_divergence(posterior, prior).sum(dim=1)
    torch.testing.assert_close(kl_per_image(output.latent.mean, output.latent.log_var), expected)
    assert torch.equal(kl_per_image(torch.zeros(2, 3), torch.zeros(2, 3)), torch.zeros(2))


def test_released_reductions(output):
    config = ObjectiveConfig(
        gamma=0.7, beta=0.3, reconstruction_weights=((0, 10.0), (2, 5.0), (4, 1.0))
    )
    loss = cdvae_loss(output, LABELS, objective=config, epoch=3)
    difference = (output.reconstruction - output.normalized_images).float()
    mse = (difference**2).mean()
    kl = kl_per_image(output.latent.mean, output.latent.log_var).sum().float() / (5 * 3 * 7)
    log_probabilities = output.logits.float().log_softmax(dim=1)
    ce = -log_probabilities[torch.arange(5), LABELS].mean()
    torch.testing.assert_close(loss.reconstruction, mse)
    torch.testing.assert_close(loss.latent, kl)
    torch.testing.assert_close(loss.classification, ce)
    torch.testing.assert_close(loss.total, 5.0 * mse + 0.3 * kl + 0.7 * ce)


def test_image_sums_are_a_gaussian_log_likelihood_and_nats(output):
    config = ObjectiveConfig(reconstruction_reduction="image_sum", kl_reduction="image_sum")
    loss = cdvae_loss(output, LABELS, objective=config, epoch=0)
    likelihood = Normal(output.reconstruction, 1.0).log_prob(output.normalized_images)
    constant = 0.5 * torch.log(torch.tensor(2 * torch.pi)) * 48
    expected = -likelihood.flatten(1).sum(dim=1).mean().float() - constant
    torch.testing.assert_close(loss.reconstruction, expected, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(
        loss.latent, kl_per_image(output.latent.mean, output.latent.log_var).mean().float()
    )


def test_mixup_blends_the_two_cross_entropies(output):
    partners = torch.tensor([1, 1, 2, 2, 0])
    config = ObjectiveConfig()

    def classification(labels):
        return cdvae_loss(output, labels, objective=config, epoch=0).classification

    mixed = cdvae_loss(
        output, LABELS, objective=config, epoch=0, partner_labels=partners, mixup_weight=0.3
    )
    expected = 0.3 * classification(LABELS) + 0.7 * classification(partners)
    torch.testing.assert_close(mixed.classification, expected)


def test_curriculum_steps_at_its_first_epochs():
    config = ObjectiveConfig(reconstruction_weights=((0, 10.0), (100, 5.0), (200, 1.0)))
    weights = [config.reconstruction_weight(epoch) for epoch in (0, 99, 100, 199, 200, 299)]
    assert weights == [10.0, 10.0, 5.0, 5.0, 1.0, 1.0]


@pytest.mark.parametrize(
    "wrong",
    [
        {"gamma": -1.0},
        {"beta": float("nan")},
        {"reconstruction_weights": ()},
        {"reconstruction_weights": ((5, 1.0),)},
        {"reconstruction_weights": ((0, 1.0), (3, 1.0), (2, 1.0))},
        {"reconstruction_weights": ((0, -1.0),)},
    ],
)
def test_impossible_objectives_are_refused(wrong):
    with pytest.raises(ConfigError, match=r"objective\..*: got .*, expected .*; "):
        ObjectiveConfig(**wrong)


def test_reconstruction_accuracy_is_one_minus_the_ratio_of_norms():
    images = torch.tensor([[[[3.0, 4.0]]], [[[6.0, 8.0]]]])
    half = images.clone()
    half[1] *= 0.5
    accuracy = reconstruction_accuracy_per_image(half, images)
    torch.testing.assert_close(accuracy, torch.tensor([1.0, 0.5]))
