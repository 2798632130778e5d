"""The VQ-VAE against brute force, its loss written literally, and a quantiser that is an offset."""

import pytest
import torch
from torch.distributions import Categorical
from torch.nn import functional as F

from cdvae_ray.config.model import ModelConfig
from cdvae_ray.config.objective import ObjectiveConfig
from cdvae_ray.core.attacks.pgd import pgd
from cdvae_ray.core.cdvae import CDVAE, build_cdvae
from cdvae_ray.core.objective import cdvae_loss
from cdvae_ray.core.vq_vae import (
    CodeBook,
    VqVae,
    code_counts,
    codebook_loss_per_image,
    perplexity,
)
from cdvae_ray.errors import ConfigError

CLASSES = ("a", "b", "c")


def some_images(count=5, size=18):
    return torch.randn(count, 3, size, size, generator=torch.Generator().manual_seed(1))


@pytest.fixture
def generator():
    """In train mode, with the running statistics of some images."""
    torch.manual_seed(0)
    model = VqVae(width=6, codebook_size=11)
    with torch.no_grad():
        for _ in range(20):
            model(some_images(16, 16))
    return model


def model_config(**changes):
    settings = {
        "generator": "vq_vae",
        "vae_width": 6,
        "codebook_size": 11,
        "classifier_depth": 10,
        "classifier_widen_factor": 1,
    }
    return ModelConfig(**(settings | changes))


def settled_cdvae(size):
    """In eval mode, with the running statistics of some images."""
    model = build_cdvae(model_config(), image_size=size, class_names=CLASSES, seed=0)
    with torch.no_grad():
        for _ in range(20):
            model(torch.rand(16, 3, size, size))
    return model.eval()


def count(module):
    return sum(parameter.numel() for parameter in module.parameters())


def literal_loss(encoded, quantized, commitment):
    """|sg(z_e) - e|^2 + c |z_e - sg(e)|^2 of one image."""
    book = ((encoded.detach() - quantized) ** 2).sum()
    return book + commitment * ((encoded - quantized.detach()) ** 2).sum()


# --- codes --------------------------------------------------------------------------------------


@pytest.mark.parametrize(("width", "size"), [(1, 2), (5, 2), (8, 300)])
def test_the_code_is_the_nearest_one(width, size):
    torch.manual_seed(0)
    book = CodeBook(width=width, size=size)
    encoded = torch.randn(4, width, 5, 3)
    latent = book(encoded)
    codes = book.weight.t().detach()
    places = encoded.permute(0, 2, 3, 1).reshape(-1, width)
    nearest = torch.cdist(places.double(), codes.double()).argmin(dim=1)
    assert len(nearest.unique()) > 1
    assert latent.codes.dtype == torch.int64
    assert torch.equal(latent.codes, nearest.view(4, 5, 3))
    assert torch.equal(latent.quantized, codes[nearest].view(4, 5, 3, width).permute(0, 3, 1, 2))
    assert torch.equal(latent.vector, latent.quantized.flatten(1))


def test_autocast_picks_the_codes_of_float32():
    torch.manual_seed(0)
    book = CodeBook(width=8, size=64)
    with torch.no_grad():
        book.weight.mul_(0.01).add_(3)  # near each other, far from zero
    encoded = book.weight.t().detach()[torch.randint(64, (6, 7, 7))].permute(0, 3, 1, 2)
    encoded = encoded + 0.01 * torch.randn(encoded.shape)
    expected = book(encoded).codes
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(book(encoded).codes, expected)
        # What is avoided: a product in bfloat16 tells these codes apart by rounding.
        products = encoded.movedim(1, -1) @ book.weight
    rounded = (book.weight.square().sum(dim=0) - 2 * products).argmin(dim=-1)
    assert (rounded != expected).float().mean() > 0.5


def test_the_loss_is_in_float32_under_autocast(generator):
    with torch.autocast("cpu", dtype=torch.bfloat16):
        latent = generator.encode(some_images())
        loss = codebook_loss_per_image(latent, commitment=0.25)
    assert (latent.encoded.dtype, loss.dtype) == (torch.bfloat16, torch.float32)
    expected = [
        literal_loss(encoded.float(), quantized.float(), 0.25)
        for encoded, quantized in zip(latent.encoded, latent.quantized, strict=True)
    ]
    torch.testing.assert_close(loss, torch.stack(expected))


def test_perplexity_is_the_exponential_of_the_entropy():
    assert perplexity(code_counts(torch.full((3, 4, 4), 2), 9)) == pytest.approx(1)
    assert perplexity(code_counts(torch.arange(36).view(4, 3, 3) % 9, 9)) == pytest.approx(9)
    counts = torch.tensor([7.0, 0, 1, 12, 3])
    assert perplexity(counts) == pytest.approx(Categorical(probs=counts).entropy().exp().item())


def test_counts_of_shards_add_up():
    codes = torch.randint(20, (10, 4, 4), generator=torch.Generator().manual_seed(0))
    counts = code_counts(codes, 24)
    assert counts.dtype == torch.float64
    assert counts.tolist() == [(codes == code).sum() for code in range(24)]
    assert torch.equal(sum(code_counts(part, 24) for part in codes.split([1, 6, 3])), counts)


# --- gradients ----------------------------------------------------------------------------------


def test_gradients_pass_the_choice_of_codes_straight_through(generator):
    generator.eval().double()
    weights = torch.randn(5, 3, 18, 18, dtype=torch.float64)
    images = some_images().double().requires_grad_()
    reconstruction, latent = generator(images)
    found = torch.autograd.grad((weights * reconstruction).sum(), images)[0]
    offset = (latent.quantized - latent.encoded).detach()
    assert (offset != 0).any()
    padded = F.pad(images, (0, 2, 0, 2), mode="replicate")
    decoded = generator.decode(generator.encoder(padded) + offset)[..., :18, :18]
    torch.testing.assert_close(reconstruction, decoded)
    expected = torch.autograd.grad((weights * decoded).sum(), images)[0]
    assert (found != 0).any()
    torch.testing.assert_close(found, expected)


def test_the_reconstruction_moves_no_code(generator):
    reconstruction, _ = generator(some_images())
    book, first = torch.autograd.grad(
        reconstruction.square().sum(),
        [generator.emb.weight, generator.encoder[0].weight],
        allow_unused=True,
    )
    assert book is None
    assert (first != 0).any()


def gradients(loss, model):
    names, parameters = zip(*model.named_parameters(), strict=True)
    found = torch.autograd.grad(loss, parameters, retain_graph=True, allow_unused=True)
    return dict(zip(names, found, strict=True))


@pytest.mark.parametrize("commitment", [0.0, 0.25, 2.0])
def test_the_loss_and_its_gradients_are_those_of_its_formula(generator, commitment):
    latent = generator.encode(some_images())
    loss = codebook_loss_per_image(latent, commitment=commitment)
    codes = generator.emb.weight.t()[latent.codes].permute(0, 3, 1, 2)
    expected = torch.stack(
        [
            literal_loss(encoded, code, commitment)
            for encoded, code in zip(latent.encoded, codes, strict=True)
        ]
    )
    assert loss.shape == (5,)
    torch.testing.assert_close(loss, expected)
    found, wanted = (gradients(each.sum(), generator) for each in (loss, expected))
    for name, gradient in found.items():
        if gradient is None:
            assert name.startswith(("decoder.", "L_bn.")), name
        else:
            torch.testing.assert_close(gradient, wanted[name], rtol=1e-4, atol=1e-4)


def test_the_commitment_weighs_the_encoders_gradient_and_not_the_code_books(generator):
    latent = generator.encode(some_images())
    none, one, two = (
        gradients(codebook_loss_per_image(latent, commitment=weight).sum(), generator)
        for weight in (0.0, 1.0, 2.0)
    )
    assert (one["emb.weight"] != 0).any()
    assert torch.equal(one["emb.weight"], none["emb.weight"])
    assert torch.equal(one["emb.weight"], two["emb.weight"])
    first = "encoder.0.weight"
    assert (one[first] != 0).any() and not none[first].any()
    torch.testing.assert_close(2 * one[first], two[first])


def test_the_objective_averages_or_sums_it_over_the_grid():
    model = settled_cdvae(18)
    output = model(torch.rand(4, 3, 18, 18))
    per_image = codebook_loss_per_image(output.latent, commitment=0.7)
    terms = {
        reduction: cdvae_loss(
            output,
            torch.zeros(4, dtype=torch.int64),
            objective=ObjectiveConfig(kl_reduction=reduction, beta=3.0),
            epoch=0,
            commitment=0.7,
        )
        for reduction in ("channel_latent_mean", "image_sum")
    }
    torch.testing.assert_close(terms["image_sum"].latent, per_image.mean())
    # 18 pixels are padded to 20: a grid of 5 x 5 codes of 6 numbers.
    torch.testing.assert_close(terms["channel_latent_mean"].latent, per_image.mean() / (6 * 5 * 5))
    for loss in terms.values():
        total = loss.reconstruction + 3.0 * loss.latent + 2.0 * loss.classification
        torch.testing.assert_close(loss.total, total)


# --- images -------------------------------------------------------------------------------------


def test_the_papers_generator_has_the_parameters_of_its_description():
    d, codes = 128, 512
    block = d * d * 9 + d + 2 * d + d * d + d
    encoder = 3 * d * 16 + d + 2 * d + d * d * 16 + d + 2 * d + 2 * (block + 2 * d)
    decoder = 2 * block + 2 * d + d * d * 16 + d + 2 * d + d * 3 * 16 + 3
    model = VqVae(width=d, codebook_size=codes)
    assert count(model) == encoder + d * codes + decoder + 6 == 1_261_449


@pytest.mark.parametrize("size", [33, 34, 35, 36])
def test_sides_that_4_does_not_divide_are_padded_by_their_last_pixels(generator, size):
    generator.eval()
    images = some_images(2, size)
    places = torch.arange(36).clamp(max=size - 1)
    padded = images[:, :, places][:, :, :, places]
    with torch.no_grad():
        reconstruction, latent = generator(images)
        whole, expected = generator(padded)
    assert reconstruction.shape == images.shape
    assert latent.codes.shape == (2, 9, 9)
    assert torch.equal(latent.codes, expected.codes)
    assert torch.equal(reconstruction, whole[..., :size, :size])


def test_in_eval_mode_an_image_is_described_by_itself(generator):
    generator.eval()
    images = some_images()
    with torch.no_grad():
        whole, latent = generator(images)
        assert torch.equal(generator(images)[0], whole)
        for place in range(5):
            alone, own = generator(images[place : place + 1])
            assert torch.equal(own.codes[0], latent.codes[place])
            torch.testing.assert_close(alone[0], whole[place])
    assert len(latent.codes.unique()) > 2


def test_no_noise_is_drawn(generator):
    images = some_images()
    before = torch.random.get_rng_state()
    first, latent = generator(images)
    again, _ = generator(images, torch.zeros(5, 0), sample=True)
    assert torch.equal(before, torch.random.get_rng_state())
    assert torch.equal(first, again)
    assert torch.equal(latent.codes, generator(images, sample=True)[1].codes)


def test_the_parts_add_up_at_any_size():
    model = settled_cdvae(19)
    images = torch.rand(4, 3, 19, 19)
    with torch.no_grad():
        parts = model.decompose(images)
        logits = model.classifier(parts.class_essential / model.pixel_std)
    torch.testing.assert_close(
        parts.class_redundant + parts.class_essential, images, rtol=0, atol=1e-6
    )
    torch.testing.assert_close(parts.logits, logits, rtol=1e-4, atol=1e-4)
    assert parts.latent.vector.shape == (4, 6 * 5 * 5)
    for name in ("mean", "log_var"):
        with pytest.raises(ConfigError, match=r"got the codes of a VQ-VAE, expected the Gaussian"):
            getattr(parts, name)
    assert parts.latent.codes.shape == (4, 5, 5)
    assert parts.latent.codes.min() >= 0 and parts.latent.codes.max() < 11


def test_an_attacker_climbs_through_the_codes():
    model = settled_cdvae(16)
    images = torch.rand(12, 3, 16, 16, generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        clean = model.classify_essential(images)
    labels = clean.argmax(dim=1)
    found = pgd(model.classify_essential, images, labels, epsilon=8 / 255, num_steps=5, keep="last")
    assert not found.zero_gradient.any() and not found.nonfinite_gradient.any()
    assert (found.loss > F.cross_entropy(clean, labels, reduction="none")).all()


def test_only_the_convolutional_vae_asks_for_multiples_of_4():
    assert CDVAE(model_config(), image_size=30, class_names=CLASSES).image_size == 30
    with pytest.raises(ConfigError, match="at least 8"):
        CDVAE(model_config(), image_size=7, class_names=CLASSES)
