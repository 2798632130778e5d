"""scikit-learn's embedded handwritten digits: no files, no network."""

from __future__ import annotations

import torch

from cdvae_ray.data.images import ImageSet, Splits
from cdvae_ray.data.resize import resize_bilinear

NUM_TEST_IMAGES = 360
CLASS_NAMES = tuple(str(digit) for digit in range(10))


def load_digits(image_size: int) -> Splits:
    """1437 training and 360 test images of scikit-learn's 8x8 digits, enlarged bilinearly.

    Grey values 0..16 become bytes by round(value * 255 / 16) and three equal channels. The split
    is stratified by class and the same every time.

    Args:
        image_size: side of the images, in pixels.
    """
    import sklearn.datasets
    from sklearn.model_selection import train_test_split

    digits = sklearn.datasets.load_digits()
    grey = torch.from_numpy(digits.images).mul(255 / 16).round().to(torch.uint8).unsqueeze(1)
    images = resize_bilinear(grey, image_size, antialias=False).expand(-1, 3, -1, -1)
    labels = torch.from_numpy(digits.target).to(torch.int64)
    train, test = (
        torch.from_numpy(indices)
        for indices in train_test_split(
            torch.arange(len(labels)).numpy(),
            test_size=NUM_TEST_IMAGES,
            stratify=digits.target,
            random_state=0,
        )
    )
    return Splits(
        train=ImageSet.build(images[train], labels[train], CLASS_NAMES, "digits/train"),
        test=ImageSet.build(images[test], labels[test], CLASS_NAMES, "digits/test"),
    )
