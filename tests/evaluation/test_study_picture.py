"""The study's pictures: that they are drawn, of what, and the same for the same numbers."""

import io

import numpy as np
import pytest
import torch
from matplotlib.axes import Axes
from PIL import Image

from cdvae_ray.core.cdvae import CDVAE
from cdvae_ray.evaluation.correlation import NUM_BINS, LatentCorrelation, p_values
from cdvae_ray.evaluation.study_picture import latent_picture, parts_picture, radius_picture
from cdvae_ray.evaluation.study_table import NormRow
from tests.evaluation.small_networks import CLASSES, image_pairs, small_cdvae

CAPTION = "PGD-Linf. x' against D(x), a plain classifier; made/test"
LABELS = torch.arange(8) % len(CLASSES)


def pixels(content):
    assert content.startswith(b"\x89PNG\r\n\x1a\n")
    with Image.open(io.BytesIO(content)) as image:
        return np.asarray(image.convert("RGB")).astype(int)


@pytest.fixture
def drawn(monkeypatch):
    """What the axes of all figures were told to draw, by the name of the method."""
    calls = {}

    def record(name):
        draw = getattr(Axes, name)
        calls[name] = []

        def recording(axis, *arguments, **settings):
            calls[name].append((arguments, settings))
            return draw(axis, *arguments, **settings)

        monkeypatch.setattr(Axes, name, recording)

    for name in ("imshow", "set_title", "set_ylabel", "set_xlabel", "stairs", "set_xlim", "plot"):
        record(name)
    return calls


# Figure 2.


@pytest.fixture(scope="module")
def cdvae():
    return small_cdvae()


def parts(cdvae, clean, images, *, answers=None, caption=CAPTION):
    labels = LABELS[: len(clean)]
    answers = (labels, labels) if answers is None else answers
    return parts_picture(cdvae, clean, images, labels, answers, caption=caption)


def test_figure_2_is_a_png_of_its_images_alone(cdvae):
    clean, images = image_pairs(2)
    content = parts(cdvae, clean, images)
    torch.rand(5)
    assert parts(cdvae, clean, images) == content
    picture = pixels(content)
    assert len(np.unique(picture.reshape(-1, 3), axis=0)) > 500
    changed = pixels(parts(cdvae, clean, clean))
    assert changed.shape == picture.shape
    assert (np.abs(changed - picture).max(axis=2) > 30).mean() > 0.01


def test_figure_2_has_nine_rows_and_a_column_an_image(cdvae, drawn):
    clean, images = image_pairs(3)
    parts(cdvae, clean, images)
    with torch.no_grad():
        first, second = cdvae.decompose(clean), cdvae.decompose(images)
    differences = [
        clean - images,
        first.class_redundant - second.class_redundant,
        first.class_essential - second.class_essential,
    ]
    # One gain for all three, by which the largest difference just fits.
    gain = 0.5 / max(float(each.abs().max()) for each in differences)
    expected = [
        *(clean, first.class_redundant, 0.5 + first.class_essential),
        *(images, second.class_redundant, 0.5 + second.class_essential),
        *(0.5 + gain * each for each in differences),
    ]
    shown = [arguments[0] for arguments, _ in drawn["imshow"]]
    assert len(shown) == 9 * 3
    for place, picture in enumerate(torch.cat(expected).clamp(0, 1)):
        np.testing.assert_allclose(shown[place], picture.permute(1, 2, 0), atol=1e-6)
    assert np.abs(np.array(shown[18:]) - 0.5).max() == pytest.approx(0.5, abs=1e-6)
    names = [arguments[0] for arguments, _ in drawn["set_ylabel"]]
    folds = f"\n({gain:.3g} fold)"
    assert names == [
        *("$x$", "$G(x)$", "$R(x)$", "$x'$", "$G(x')$", "$R(x')$"),
        *(f"${name}${folds}" for name in ("\\delta", "\\delta_G", "\\delta_R")),
    ]


def test_figure_2_says_what_was_answered_and_where_it_was_wrong(cdvae, drawn):
    clean, images = image_pairs(3)
    answers = torch.tensor([0, 2, 2]), torch.tensor([5, 1, 6])
    parts(cdvae, clean, images, answers=answers)
    with torch.no_grad():
        essential = [cdvae.decompose(each).logits.argmax(dim=1) for each in (clean, images)]
    told = torch.cat([answers[0], essential[0], answers[1], essential[1]]).tolist()
    found = [(arguments[0], settings["color"]) for arguments, settings in drawn["set_title"]]
    colors = {True: "black", False: "crimson"}
    assert found == [
        (CLASSES[answer], colors[answer == truth])
        for answer, truth in zip(told, 4 * [0, 1, 2], strict=True)
    ]
    assert (
        {color for _, color in found[:3]}
        == {color for _, color in found[6:9]}
        == {
            "black",
            "crimson",
        }
    )


def test_figure_2_of_one_image_and_of_many(cdvae):
    clean, images = image_pairs(8)
    sizes = [pixels(parts(cdvae, clean[:n], images[:n])).shape for n in (1, 8)]
    assert sizes[0][0] == sizes[1][0] and sizes[1][1] > 3 * sizes[0][1]


def test_figure_2_of_identical_images_has_grey_differences(cdvae, drawn):
    clean, _ = image_pairs(1)
    content = parts(cdvae, clean, clean.clone())
    assert content == parts(cdvae, clean, clean.clone())
    shown = [arguments[0] for arguments, _ in drawn["imshow"]][6:9]
    assert np.array_equal(np.array(shown), np.full((3, 16, 16, 3), 0.5, dtype=np.float32))


def test_figure_2_of_a_sampling_cdvae_is_that_of_the_tables(drawn):
    clean, _ = image_pairs(1)
    parts(small_cdvae("sample"), clean, clean.clone())
    redundant, again = (drawn["imshow"][place][0][0] for place in (1, 4))
    np.testing.assert_allclose(again, redundant, atol=1e-6)


def test_figure_2_leaves_the_cdvae_as_it_was(cdvae):
    assert isinstance(cdvae, CDVAE)
    before = {name: values.clone() for name, values in cdvae.state_dict().items()}
    parts(cdvae, *image_pairs(1))
    assert not cdvae.training
    for name, values in cdvae.state_dict().items():
        assert torch.equal(values, before[name])


# Figure 3.


def correlation(low=0.4, high=1.0, *, count=200, constant=0, seed=0):
    r = np.random.default_rng(seed).uniform(low, high, size=count)
    r[:constant] = np.nan
    p = p_values(torch.from_numpy(r), 50)
    return LatentCorrelation(images=50, correlations=r, p_values=p)


def test_figure_3_is_a_png_of_its_correlations_alone():
    given = {"PGD-Linf": correlation(), "noise": correlation(seed=1)}
    content = latent_picture(given, caption=CAPTION)
    assert latent_picture(given, caption=CAPTION) == content
    picture = pixels(content)
    assert len(np.unique(picture.reshape(-1, 3), axis=0)) > 20
    other = pixels(latent_picture({**given, "noise": correlation(0.9)}, caption=CAPTION))
    assert other.shape == picture.shape
    assert (np.abs(other - picture).max(axis=2) > 60).mean() > 0.01


@pytest.mark.parametrize("count", [1, 3, 4])
def test_figure_3_has_a_panel_an_attack(drawn, count):
    given = {f"attack {n}": correlation(seed=n, constant=n) for n in range(count)}
    latent_picture(given, caption=CAPTION)
    titles = [arguments[0] for arguments, _ in drawn["set_title"]]
    assert titles == [
        f"{name}: median r = {np.nanmedian(each.correlations):.3f}" for name, each in given.items()
    ]
    below = [arguments[0] for arguments, _ in drawn["set_xlabel"]]
    for n, label in enumerate(below):
        assert f"{200 - n} dimensions, n = 50; p < 0.05 / {200 - n} in " in label


def test_figure_3_shares_one_axis_that_leaves_nothing_out(drawn):
    given = {"a": correlation(0.2), "b": correlation(-0.37), "c": correlation(0.9, constant=11)}
    latent_picture(given, caption=CAPTION)
    limits = {arguments for arguments, _ in drawn["set_xlim"] if len(arguments) == 2}
    assert len(limits) == 1
    ((low, high),) = limits
    smallest = min(each.defined.min() for each in given.values())
    assert -1 <= low <= smallest and high == 1
    for (arguments, _), each in zip(drawn["stairs"], given.values(), strict=True):
        counts, edges = arguments
        assert (len(counts), edges[0], edges[-1]) == (NUM_BINS, low, 1)
        assert sum(counts) == len(each.defined)
        expected, _ = np.histogram(each.defined, bins=edges)
        assert np.abs(np.array(counts) - expected).sum() <= 2


@pytest.mark.parametrize("value", [1.0, -1.0, 0.3])
def test_figure_3_of_equal_correlations(drawn, value):
    r = np.full(5, value)
    same = LatentCorrelation(images=9, correlations=r, p_values=p_values(torch.from_numpy(r), 9))
    assert pixels(latent_picture({"none": same}, caption=CAPTION)).std() > 0
    assert sum(drawn["stairs"][0][0][0]) == 5


# By radius.


def norm_row(part, epsilon, l2, *, l2_std=0.5, attack="PGD-Linf"):
    return NormRow(attack, epsilon, part, 9, "pixel", 1, 1, l2, l2_std, 1, 1, *([None] * 6))


def norms_by_radius(factor=1.0):
    rows = []
    for epsilon in (0.06, 0.01, 0.03):
        for place, part in enumerate(("x", "delta", "delta_G", "delta_R")):
            rows.append(norm_row(part, epsilon, factor * epsilon * (1 + place) + place))
    # Noise has no radius.
    rows.append(norm_row("delta", None, 99.0, attack="noise as long as PGD-Linf's"))
    return rows


def test_the_picture_by_radius_is_a_png_of_its_rows_alone():
    content = radius_picture(norms_by_radius(), measure="L-inf, pixels", caption=CAPTION)
    assert content == radius_picture(norms_by_radius(), measure="L-inf, pixels", caption=CAPTION)
    picture = pixels(content)
    other = pixels(radius_picture(norms_by_radius(90), measure="L-inf, pixels", caption=CAPTION))
    assert (np.abs(other - picture).max(axis=2) > 60).mean() > 0.003


def test_the_picture_by_radius_has_three_lines_of_rising_radii(drawn):
    radius_picture(norms_by_radius(), measure="L-inf, pixels", caption=CAPTION)
    assert [settings["label"] for _, settings in drawn["plot"]] == [
        "$\\delta$",
        "$\\delta_G$",
        "$\\delta_R$",
    ]
    for place, ((radii, means), _) in enumerate(drawn["plot"], start=1):
        assert radii == [0.01, 0.03, 0.06]
        np.testing.assert_allclose(means, [each * (1 + place) + place for each in radii])
    assert drawn["set_xlabel"][0][0] == ("epsilon (L-inf, pixels)",)
    assert drawn["set_ylabel"][0][0] == ("L2, pixel units",)


def test_one_radius_can_be_drawn():
    rows = [norm_row(part, 0.03, 1.0) for part in ("delta", "delta_G", "delta_R")]
    assert pixels(radius_picture(rows, measure="L2, pixels", caption=CAPTION)).std() > 0
