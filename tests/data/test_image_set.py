from __future__ import annotations

import hashlib
import pickle
import subprocess
import sys

import pytest
import torch

from cdvae_ray.data import ImageSet
from cdvae_ray.errors import DataError

IMAGES = torch.arange(2 * 3 * 4 * 4).to(torch.uint8).view(2, 3, 4, 4)
LABELS = torch.tensor([1, 0])
NAMES = ("cat", "dog")


def test_the_digest_is_sha256_over_header_pixels_and_labels() -> None:
    header = b'{"class_names": ["cat", "dog"], "shape": [2, 3, 4, 4]}'
    expected = hashlib.sha256(header + IMAGES.numpy().tobytes() + LABELS.numpy().tobytes())
    assert ImageSet.build(IMAGES, LABELS, NAMES, "x").digest == expected.hexdigest()


def test_the_digest_changes_with_any_pixel_label_or_class_name_and_not_with_the_name() -> None:
    digests = {ImageSet.build(IMAGES, LABELS, NAMES, "x").digest}
    assert ImageSet.build(IMAGES.clone(), LABELS.clone(), list(NAMES), "y").digest in digests
    for index in range(IMAGES.numel()):
        changed = IMAGES.clone()
        changed.view(-1)[index] ^= 1
        digests.add(ImageSet.build(changed, LABELS, NAMES, "x").digest)
    for index in range(2):
        changed = LABELS.clone()
        changed[index] ^= 1
        digests.add(ImageSet.build(IMAGES, changed, NAMES, "x").digest)
    digests.add(ImageSet.build(IMAGES, LABELS, ("cat", "Dog"), "x").digest)
    digests.add(ImageSet.build(IMAGES, LABELS, ("catdog", ""), "x").digest)
    digests.add(ImageSet.build(IMAGES, LABELS, (*NAMES, "eel"), "x").digest)
    assert len(digests) == 1 + IMAGES.numel() + 2 + 3


def test_build_makes_any_strides_contiguous() -> None:
    strided = IMAGES.permute(0, 2, 3, 1).contiguous().permute(0, 3, 1, 2)
    built = ImageSet.build(strided, LABELS, NAMES, "x")
    assert built.images.is_contiguous()
    assert built.digest == ImageSet.build(IMAGES, LABELS, NAMES, "x").digest
    with pytest.raises(DataError, match="got a strided tensor on cpu"):
        ImageSet(strided, LABELS, NAMES, "x")


def test_properties_and_pickling() -> None:
    image_set = ImageSet.build(IMAGES, LABELS, NAMES, "x")
    assert (len(image_set), image_set.image_size, image_set.num_classes) == (2, 4, 2)
    copy = pickle.loads(pickle.dumps(image_set))  # noqa: S301
    assert copy.digest == image_set.digest
    assert torch.equal(copy.images, image_set.images)


@pytest.mark.parametrize(
    ("images", "labels", "names", "message"),
    [
        (IMAGES.float(), LABELS, NAMES, "images of x: got torch.float32"),
        (IMAGES[:, :1], LABELS, NAMES, r"got torch.uint8 of shape \(2, 1, 4, 4\)"),
        (IMAGES[:, :, :3], LABELS, NAMES, r"shape \(2, 3, 3, 4\), expected .* \(N, 3, H, H\)"),
        (IMAGES[0], LABELS, NAMES, r"shape \(3, 4, 4\)"),
        (IMAGES[:0], LABELS[:0], NAMES, "at least one image"),
        (IMAGES, LABELS.int(), NAMES, "labels of x: got torch.int32"),
        (IMAGES, LABELS[:1], NAMES, r"shape \(1,\), expected torch.int64 of shape \(2,\)"),
        (IMAGES, LABELS + 1, NAMES, r"label of image 0 of x: got 2, expected a label in \[0, 2\)"),
        (IMAGES, LABELS - 1, NAMES, "label of image 1 of x: got -1"),
        (IMAGES, LABELS, (), "class names of x: got none"),
        (IMAGES, LABELS, ("cat", "cat"), "got cat more than once"),
        (IMAGES.to("meta"), LABELS, NAMES, "got a contiguous tensor on meta"),
    ],
)
def test_construction_verifies_everything(
    images: torch.Tensor, labels: torch.Tensor, names: tuple[str, ...], message: str
) -> None:
    with pytest.raises(DataError, match=message):
        ImageSet.build(images, labels, names, "x")


def test_limits_are_nested_seeded_and_change_the_digest(make_set) -> None:
    whole = make_set(20)
    seven, four = whole.limit(7, 0), whole.limit(4, 0)
    assert len(seven) == 7
    assert torch.equal(seven.images[:4], four.images)
    assert torch.equal(seven.labels[:4], four.labels)
    assert seven.digest == whole.limit(7, 0).digest
    assert len({whole.digest, seven.digest, four.digest, whole.limit(7, 1).digest}) == 4
    rows = {image.numpy().tobytes() for image in whole.limit(20, 0).images}
    assert rows == {image.numpy().tobytes() for image in whole.images}


@pytest.mark.parametrize("count", [21, 0, -1])
def test_a_limit_beyond_the_set_is_an_error(make_set, count: int) -> None:
    with pytest.raises(DataError, match=rf"limit on made/train: got {count}, .* \[1, 20\]"):
        make_set(20).limit(count, 0)


def rows(image_set: ImageSet) -> list[tuple[bytes, int]]:
    return [
        (image.numpy().tobytes(), int(label))
        for image, label in zip(image_set.images, image_set.labels, strict=True)
    ]


@pytest.mark.parametrize("count", [1, 7, 19])
def test_held_out_images_and_the_others_are_disjoint_and_all(make_set, count: int) -> None:
    whole = make_set(20)
    others, held = whole.hold_out(count, 0)
    assert (len(others), len(held)) == (20 - count, count)
    assert not set(rows(others)) & set(rows(held))
    # Every image once, with its own label, in the order that it had.
    order = {row: index for index, row in enumerate(rows(whole))}
    assert len(order) == 20
    assert sorted(rows(others) + rows(held)) == sorted(rows(whole))
    for part in (others, held):
        places = [order[row] for row in rows(part)]
        assert places == sorted(places)
        assert (part.class_names, part.image_size) == (whole.class_names, whole.image_size)
    assert (others.name, held.name) == ("made/train", "made/train, held out")


def test_what_is_held_out_depends_on_the_seed_alone(make_set) -> None:
    whole = make_set(20)
    torch.manual_seed(1)
    first = [part.digest for part in whole.hold_out(7, 0)]
    torch.rand(5)
    assert [part.digest for part in make_set(20).hold_out(7, 0)] == first
    assert len({whole.digest, *first, *(part.digest for part in whole.hold_out(7, 1))}) == 5
    # Not simply the first ones or the last ones.
    held = set(rows(whole.hold_out(7, 0)[1]))
    assert held not in (set(rows(whole)[:7]), set(rows(whole)[-7:]))


def test_holding_out_leaves_the_set_as_it_is(make_set) -> None:
    whole = make_set(20)
    digest = whole.digest
    others, held = whole.hold_out(5, 0)
    others.images.zero_()
    held.images.zero_()
    assert ImageSet.build(whole.images, whole.labels, whole.class_names, "x").digest == digest


@pytest.mark.parametrize("count", [20, 21, 0, -1])
def test_holding_out_all_or_none_is_an_error(make_set, count: int) -> None:
    with pytest.raises(DataError, match=rf"held out of made/train: got {count}, .* \[1, 19\]"):
        make_set(20).hold_out(count, 0)


def test_importing_the_data_layer_stays_cheap() -> None:
    program = (
        "import sys, cdvae_ray.data;"
        "heavy = {'PIL', 'sklearn', 'pyarrow', 'torchvision', 'ray', 'mlflow'} & set(sys.modules);"
        "sys.exit(', '.join(heavy) or 0)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
