"""PGD against a closed form, inside its ball and box, and independent of the batch."""

import torch

from cdvae_ray.core.attacks.pgd import pgd_linf

EPSILON = 8 / 255


def linear(weights):
    return lambda images: torch.stack(
        [images.flatten(1) @ weights, torch.zeros(len(images))], dim=1
    )


def attack(classify, images, labels, ids, steps=20):
    return pgd_linf(
        classify,
        images,
        labels,
        epsilon=EPSILON,
        num_steps=steps,
        seed=0,
        image_ids=ids,
    )


def test_a_linear_model_is_met_at_its_optimum():
    torch.manual_seed(0)
    weights = torch.randn(48)
    images = 0.3 + 0.4 * torch.rand(6, 3, 4, 4)
    labels = torch.zeros(6, dtype=torch.int64)
    adversarial = attack(linear(weights), images, labels, torch.arange(6))
    best = images - EPSILON * weights.sign().view(1, 3, 4, 4)
    torch.testing.assert_close(adversarial, best, rtol=0, atol=1e-6)


def test_it_stays_in_the_ball_and_the_box_and_leaves_the_model_alone():
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(48, 5))
    images, labels = torch.rand(7, 3, 4, 4).round(), torch.randint(5, (7,))
    adversarial = attack(model, images, labels, torch.arange(7), steps=3)
    assert (adversarial - images).abs().max() <= EPSILON + 1e-6
    assert adversarial.min() >= 0
    assert adversarial.max() <= 1
    assert not adversarial.requires_grad
    assert all(parameter.grad is None for parameter in model.parameters())


def test_an_image_is_attacked_alike_in_any_batch():
    torch.manual_seed(0)
    weights = torch.randn(48)
    images, labels = torch.rand(6, 3, 4, 4), torch.zeros(6, dtype=torch.int64)
    whole = attack(linear(weights), images, labels, torch.arange(6), steps=1)
    tail = attack(linear(weights), images[4:], labels[4:], torch.arange(4, 6), steps=1)
    assert torch.equal(whole[4:], tail)
