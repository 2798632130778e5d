"""Eqs. (8)-(10) against cases computed by hand, and where their gradients go."""

import math

import pytest
import torch
from torch.nn import functional as F

from cdvae_ray.config.adversarial_objective import AdversarialObjectiveConfig
from cdvae_ray.config.classifier import ClassifierConfig
from cdvae_ray.config.model import ModelConfig
from cdvae_ray.core.adversarial_objective import (
    adversarial_loss,
    adversarial_sums,
    adversarial_terms,
    most_probable_wrong,
    true_class_lead,
)
from cdvae_ray.core.cdvae import CdvaeOutput, build_cdvae
from cdvae_ray.core.classifier import build_classifier
from cdvae_ray.core.vae import Posterior
from cdvae_ray.errors import ConfigError

CLASSES = ("a", "b", "c")


def probabilities(*rows):
    return torch.tensor(rows).log()


def hand_made(count=3):
    """An output whose terms can be computed by hand: 3 latents, images of 12 pixels."""
    images = torch.zeros(count, 3, 2, 2)
    return CdvaeOutput(
        reconstruction=images + 0.5,
        normalized_images=images,
        latent=Posterior(mean=torch.ones(count, 3), log_var=torch.zeros(count, 3)),
        logits=probabilities((0.2, 0.5, 0.3), (0.1, 0.1, 0.8), (0.25, 0.5, 0.25))[:count],
    )


ANSWERS = probabilities((0.7, 0.2, 0.1), (0.3, 0.3, 0.4), (0.05, 0.9, 0.05))
LABELS = torch.tensor([0, 0, 0])
LEADS = (0.5, -0.1, -0.85)


def test_the_lead_of_the_true_class_by_hand():
    torch.testing.assert_close(
        true_class_lead(ANSWERS, LABELS, on="probabilities"), torch.tensor(LEADS)
    )
    logits = torch.tensor([[3.0, 1.0, -2.0], [0.0, 5.0, 4.0]])
    labels = torch.tensor([0, 2])
    torch.testing.assert_close(
        true_class_lead(logits, labels, on="logits"), torch.tensor([2.0, -1.0])
    )


def test_the_most_probable_wrong_class_is_never_the_true_one():
    assert most_probable_wrong(ANSWERS, LABELS).tolist() == [1, 2, 1]
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(200, 5, generator=generator)
    labels = torch.randint(5, (200,), generator=generator)
    wrong = most_probable_wrong(logits, labels)
    assert (wrong != labels).all()
    second = logits.argsort(dim=1, descending=True)[:, :2]
    expected = torch.where(second[:, 0] == labels, second[:, 1], second[:, 0])
    assert torch.equal(wrong, expected)


@pytest.mark.parametrize(
    ("margin", "within"),
    [(-1.0, (False, False, False)), (0.0, (False, True, True)), (1.0, (True, True, True))],
)
def test_the_filter_at_the_ends_and_in_the_middle(margin, within):
    config = AdversarialObjectiveConfig(margin=margin)
    terms = adversarial_terms(hand_made(), ANSWERS, LABELS, config=config)
    assert terms.within_margin.tolist() == list(within)
    assert terms.counted.tolist() == list(within)


def test_a_lead_of_exactly_the_margin_counts():
    logits = torch.tensor([[2.0, 0.0, 0.0], [2.5, 0.0, 0.0]])
    config = AdversarialObjectiveConfig(margin=2.0, margin_on="logits")
    terms = adversarial_terms(hand_made(2), logits, LABELS[:2], config=config)
    assert terms.within_margin.tolist() == [True, False]


def test_the_terms_by_hand():
    config = AdversarialObjectiveConfig()
    terms = adversarial_terms(hand_made(), ANSWERS, LABELS, config=config)
    torch.testing.assert_close(terms.reconstruction, torch.full((3,), 0.25))
    # KL of N(1, 1) from N(0, 1) is 1/2 a latent: 3/2 in all, over 3 channels times 3 latents.
    torch.testing.assert_close(terms.latent, torch.full((3,), 1.5 / 9))
    torch.testing.assert_close(
        terms.redundant, torch.tensor([-math.log(p) for p in (0.7, 0.3, 0.05)])
    )
    # D(R(x')) at the most probable wrong classes 1, 2 and 1.
    torch.testing.assert_close(
        terms.essential, torch.tensor([-math.log(p) for p in (0.5, 0.8, 0.5)])
    )


def test_the_loss_is_the_mean_over_the_examples_within_the_margin():
    config = AdversarialObjectiveConfig(gamma=0.3, beta=0.02)
    terms = adversarial_terms(hand_made(), ANSWERS, LABELS, config=config)
    sums = adversarial_sums(terms, config)
    loss = adversarial_loss(
        sums, num_within=sums.num_within, num_counted=sums.num_counted, num_ranks=1
    )
    expected = sum(
        0.25 + 0.02 * 1.5 / 9 - 0.3 * (math.log(redundant) + math.log(essential))
        for redundant, essential in ((0.3, 0.8), (0.05, 0.5))
    )
    assert loss.item() == pytest.approx(expected / 2, rel=1e-6)


def test_the_released_variants():
    config = AdversarialObjectiveConfig(
        reconstruction_target="clean", essential_class="most_probable", essential_examples="all"
    )
    clean = torch.full((3, 3, 2, 2), 0.25)
    terms = adversarial_terms(hand_made(), ANSWERS, LABELS, config=config, clean_images=clean)
    torch.testing.assert_close(terms.reconstruction, torch.full((3,), 0.0625))
    # The most probable classes of D_G are 0, 2 and 1: the first is the true one.
    torch.testing.assert_close(
        terms.essential, torch.tensor([-math.log(p) for p in (0.2, 0.8, 0.5)])
    )
    assert terms.within_margin.tolist() == [False, True, True]
    assert terms.counted.tolist() == [True, True, True]


def test_no_example_within_the_margin_is_a_loss_of_zero_with_gradients_of_zero():
    config = AdversarialObjectiveConfig(margin=-1.0)
    logits = ANSWERS.clone().requires_grad_()
    terms = adversarial_terms(hand_made(), logits, LABELS, config=config)
    sums = adversarial_sums(terms, config)
    loss = adversarial_loss(
        sums, num_within=sums.num_within, num_counted=sums.num_counted, num_ranks=1
    )
    assert loss.item() == 0.0
    (gradient,) = torch.autograd.grad(loss, logits)
    assert torch.equal(gradient, torch.zeros_like(gradient))


def test_two_ranks_average_to_the_loss_of_one():
    config = AdversarialObjectiveConfig(margin=0.0)

    def sums_of(rows):
        made = hand_made()
        latent = Posterior(*(value[rows] for value in made.latent))
        output = CdvaeOutput(
            made.normalized_images[rows], made.reconstruction[rows], latent, made.logits[rows]
        )
        terms = adversarial_terms(output, ANSWERS[rows], LABELS[rows], config=config)
        return adversarial_sums(terms, config)

    whole = sums_of([0, 1, 2])
    counts = {"num_within": whole.num_within, "num_counted": whole.num_counted}
    # One of the ranks has no example within the margin, the other has both.
    parts = [adversarial_loss(sums_of(rows), **counts, num_ranks=2) for rows in ([0], [1, 2])]
    together = adversarial_loss(whole, **counts, num_ranks=1)
    torch.testing.assert_close(sum(parts) / 2, together)


class Networks:
    """A CD-VAE and a classifier of G(x), with the gradient that each term gives to each part."""

    def __init__(self):
        model = ModelConfig(
            vae_width=4, latent_size=8, classifier_depth=10, classifier_widen_factor=1
        )
        self.cdvae = build_cdvae(model, image_size=16, class_names=CLASSES, seed=0).eval()
        self.classifier = build_classifier(
            ClassifierConfig(depth=10, widen_factor=1),
            input_kind="class_redundant",
            image_size=16,
            class_names=CLASSES,
            seed=1,
            cdvae_digest="x",
        ).eval()

    def terms(self):
        images = torch.rand(4, 3, 16, 16, generator=torch.Generator().manual_seed(0))
        output = self.cdvae(images)
        redundant = output.reconstruction * self.cdvae.pixel_std + self.cdvae.pixel_mean
        return adversarial_terms(
            output,
            self.classifier(redundant),
            torch.tensor([0, 1, 2, 0]),
            config=AdversarialObjectiveConfig(margin=1.0),
        )

    def reached(self, term):
        parts = {
            "encoder": self.cdvae.generator.encoder,
            "decoder": self.cdvae.generator.decoder,
            "D": self.cdvae.classifier,
            "D_G": self.classifier,
        }
        found = set()
        for name, part in parts.items():
            parameters = list(part.parameters())
            gradients = torch.autograd.grad(
                term.sum(), parameters, retain_graph=True, allow_unused=True
            )
            if any(each is not None and bool((each != 0).any()) for each in gradients):
                found.add(name)
        return found


def test_gradients_reach_what_the_equations_say_and_nothing_else():
    networks = Networks()
    terms = networks.terms()
    assert networks.reached(terms.reconstruction) == {"encoder", "decoder"}
    assert networks.reached(terms.latent) == {"encoder"}
    assert networks.reached(terms.redundant) == {"encoder", "decoder", "D_G"}
    assert networks.reached(terms.essential) == {"encoder", "decoder", "D"}


def test_the_redundant_term_is_the_cross_entropy_of_the_true_class():
    networks = Networks()
    images = torch.rand(4, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    labels = torch.tensor([0, 1, 2, 0])
    logits = networks.classifier(networks.cdvae.decompose(images).class_redundant)
    torch.testing.assert_close(
        networks.terms().redundant, F.cross_entropy(logits, labels, reduction="none")
    )


@pytest.mark.parametrize(
    ("settings", "complaint"),
    [
        ({"margin": 1.5}, "adversarial.margin: got 1.5, expected a number in [-1, 1]"),
        ({"margin": -2.0}, "adversarial.margin: got -2.0"),
        ({"margin": float("nan"), "margin_on": "logits"}, "adversarial.margin: got nan"),
        ({"gamma": -0.1}, "adversarial.gamma: got -0.1"),
        ({"beta": float("inf")}, "adversarial.beta: got inf"),
    ],
)
def test_settings_outside_their_range(settings, complaint):
    with pytest.raises(ConfigError) as caught:
        AdversarialObjectiveConfig(**settings)
    assert complaint in str(caught.value)
