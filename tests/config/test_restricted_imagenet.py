"""The 203 classes of restricted ImageNet, against their published ranges and known synsets."""

import json
import os
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cdvae_ray.config.restricted_imagenet import (
    RESTRICTED_IMAGENET,
    SUPER_CLASSES,
    restrict_classes,
)
from cdvae_ray.errors import CdvaeError, ConfigError, DataError

ONE_LINE = r"^[^\n]*: got [^\n]*, expected [^\n]*; [^\n]*$"
RANGES = {
    "dog": (151, 268),
    "cat": (281, 285),
    "frog": (30, 32),
    "turtle": (33, 37),
    "bird": (80, 100),
    "primate": (365, 382),
    "fish": (389, 397),
    "crab": (118, 121),
    "insect": (300, 319),
}
"""First and last ILSVRC2012 index of each super-class, both inclusive."""
KNOWN = {
    "n01641577": (30, "frog"),  # bullfrog
    "n01644900": (32, "frog"),  # tailed frog
    "n01664065": (33, "turtle"),  # loggerhead
    "n01795545": (80, "bird"),  # black grouse
    "n01860187": (100, "bird"),  # black swan
    "n01978287": (118, "crab"),  # Dungeness crab
    "n02085620": (151, "dog"),  # Chihuahua
    "n02099601": (207, "dog"),  # golden retriever
    "n02113978": (268, "dog"),  # Mexican hairless
    "n02123045": (281, "cat"),  # tabby
    "n02124075": (285, "cat"),  # Egyptian cat
    "n02165105": (300, "insect"),  # tiger beetle
    "n02268443": (319, "insect"),  # dragonfly
    "n02480495": (365, "primate"),  # orangutan
    "n02494079": (382, "primate"),  # squirrel monkey
    "n02514041": (389, "fish"),  # barracouta
    "n02655020": (397, "fish"),  # puffer
}
IDS = [each.wordnet_id for each in RESTRICTED_IMAGENET]
OTHERS = ["n01440764", "n04285008", "n15075141", "cat"]
"""Tench, sports car, toilet tissue, and no WordNet id at all."""


def test_the_indices_are_those_of_the_nine_ranges():
    found = {each.index: each.super_class for each in RESTRICTED_IMAGENET}
    expected = {
        index: name for name, (first, last) in RANGES.items() for index in range(first, last + 1)
    }
    assert found == expected
    assert len(RESTRICTED_IMAGENET) == len(expected) == 203


def test_ids_are_different_wordnet_ids_in_the_order_of_the_index():
    assert len(set(IDS)) == 203
    assert sorted(IDS) == IDS
    assert sorted(RESTRICTED_IMAGENET, key=lambda each: each.index) == list(RESTRICTED_IMAGENET)
    assert all(len(each) == 9 and each[0] == "n" and each[1:].isdigit() for each in IDS)


@pytest.mark.parametrize("wordnet_id", KNOWN)
def test_known_synsets_have_their_published_index(wordnet_id):
    (found,) = [each for each in RESTRICTED_IMAGENET if each.wordnet_id == wordnet_id]
    assert (found.index, found.super_class) == KNOWN[wordnet_id]


def test_super_classes_have_a_fixed_order_and_their_sizes():
    assert tuple(RANGES) == SUPER_CLASSES
    sizes = Counter(each.super_class for each in RESTRICTED_IMAGENET)
    assert sizes == {name: last - first + 1 for name, (first, last) in RANGES.items()}


def test_all_classes_get_their_place_as_fine_label():
    chosen = restrict_classes(IDS, "fine")
    assert chosen.class_names == tuple(IDS)
    assert chosen.new_labels == tuple(range(203))


def test_super_labels_of_all_classes_are_places_in_super_classes():
    chosen = restrict_classes(IDS, "super")
    assert chosen.class_names == SUPER_CLASSES
    assert [SUPER_CLASSES[label] for label in chosen.new_labels] == [
        each.super_class for each in RESTRICTED_IMAGENET
    ]


@given(
    names=st.lists(st.sampled_from(IDS + OTHERS), unique=True, min_size=1),
    labelling=st.sampled_from(["fine", "super"]),
)
def test_any_classes_in_any_order_keep_just_the_restricted_ones(names, labelling):
    if not set(names) & set(IDS):
        with pytest.raises(DataError, match=ONE_LINE):
            restrict_classes(names, labelling)
        return
    chosen = restrict_classes(names, labelling)
    super_class = {each.wordnet_id: each.super_class for each in RESTRICTED_IMAGENET}
    assert len(chosen.new_labels) == len(names)
    for name, label in zip(names, chosen.new_labels, strict=True):
        if name in IDS:
            expected = name if labelling == "fine" else super_class[name]
            assert chosen.class_names[label] == expected
        else:
            assert label is None
    used = {label for label in chosen.new_labels if label is not None}
    assert used == set(range(len(chosen.class_names)))
    assert restrict_classes(names[::-1], labelling).class_names == chosen.class_names
    order = IDS if labelling == "fine" else list(SUPER_CLASSES)
    assert list(chosen.class_names) == sorted(chosen.class_names, key=order.index)


@pytest.mark.parametrize(
    ("names", "labelling", "kind", "complaint"),
    [
        ([], "fine", DataError, "class names: got none"),
        (OTHERS, "fine", DataError, "class names: got 4: n01440764, n04285008"),
        (["tench, Tinca tinca"] * 1, "super", DataError, "class names: got 1: tench"),
        ([IDS[0], IDS[1], IDS[0]], "fine", DataError, "class names: got n01641577 more than"),
        (IDS, "coarse", ConfigError, "labels: got 'coarse', expected one of fine, super"),
    ],
)
def test_what_cannot_be_mapped_is_a_one_line_error(names, labelling, kind, complaint):
    with pytest.raises(CdvaeError, match=ONE_LINE) as refused:
        restrict_classes(names, labelling)
    assert isinstance(refused.value, kind)
    assert str(refused.value).startswith(complaint)


@pytest.mark.skipif(
    "CDVAE_IMAGENET_SAMPLE" not in os.environ,
    reason="CDVAE_IMAGENET_SAMPLE is not set to a folder with restricted ImageNet in Parquet",
)
def test_a_real_files_class_names_are_the_ids():
    import pyarrow.parquet as pq

    (file, *_) = sorted(Path(os.environ["CDVAE_IMAGENET_SAMPLE"]).glob("test*.parquet"))
    metadata = json.loads(pq.read_schema(file).metadata[b"huggingface"])
    assert metadata["info"]["features"]["label"]["names"] == IDS
