"""Settings of jobs/prepare_data.py: what they refuse, and what names an output."""

from dataclasses import fields, replace
from pathlib import Path

import pytest

from cdvae_ray.config.prepare_job import (
    PREPARE_PRESETS,
    PrepareConfig,
    prepare_preset,
    prepared_identity,
)
from cdvae_ray.config.serialize import digest_of, from_dict, to_dict
from cdvae_ray.errors import ConfigError

ONE_LINE = r"^[^\n]*: got [^\n]*, expected [^\n]*; [^\n]*$"
ELSEWHERE = {
    "path": "there",
    "out": "elsewhere",
    "num_threads": 3,
    "overwrite": True,
    "summary": Path("summary.json"),
}
"""Paths and resources: the digest of the listing stands for what lies at the path."""
OTHER = {
    "source": "parquet",
    "classes": "all",
    "labels": "super",
    "images_per_shard": 7,
    "max_corrupt_fraction": 0.5,
    "min_side": 9,
    "seed": 1,
}


@pytest.mark.parametrize(
    ("wrong", "complaint"),
    [
        ({"source": "zip"}, "source: got 'zip', expected one of folder, parquet"),
        ({"classes": "dogs"}, "classes: got 'dogs', expected one of all, restricted-imagenet"),
        ({"labels": "coarse"}, "labels: got 'coarse', expected one of fine, super"),
        ({"labels": "super", "classes": "all"}, "labels: got super with classes all"),
        ({"images_per_shard": 0}, "images_per_shard: got 0"),
        ({"max_corrupt_fraction": -0.1}, "max_corrupt_fraction: got -0.1"),
        ({"max_corrupt_fraction": 1.1}, "max_corrupt_fraction: got 1.1"),
        ({"max_corrupt_fraction": float("nan")}, "max_corrupt_fraction: got nan"),
        ({"min_side": 0}, "min_side: got 0"),
        ({"seed": -1}, "seed: got -1"),
        ({"num_threads": 0}, "num_threads: got 0"),
        ({"num_threads": 257}, "num_threads: got 257"),
    ],
)
def test_wrong_settings_are_one_line_errors(wrong, complaint):
    with pytest.raises(ConfigError, match=ONE_LINE) as refused:
        PrepareConfig(**wrong)
    assert str(refused.value).startswith(complaint)


def test_the_ends_of_the_ranges_are_taken():
    PrepareConfig(images_per_shard=1, max_corrupt_fraction=0.0, min_side=1, seed=0, num_threads=1)
    PrepareConfig(max_corrupt_fraction=1.0, num_threads=256)


@pytest.mark.parametrize(
    ("places", "complaint"),
    [
        ({}, "path: got nothing"),
        ({"out": "b"}, "path: got nothing"),
        ({"path": "a"}, "out: got nothing"),
        ({"path": "a", "out": "a/"}, "out: got the source's own a"),
    ],
)
def test_places_are_asked_for_before_work_begins(places, complaint):
    with pytest.raises(ConfigError, match=ONE_LINE) as refused:
        PrepareConfig(**places).require_places()
    assert str(refused.value).startswith(complaint)
    PrepareConfig(path="a", out="b").require_places()


@pytest.mark.parametrize("name", PREPARE_PRESETS)
def test_every_preset_names_no_place_and_comes_back_from_json(name):
    config = prepare_preset(name)
    assert config is PREPARE_PRESETS[name].config and PREPARE_PRESETS[name].summary
    assert not (config.path or config.out or config.overwrite)
    assert config.max_corrupt_fraction == 0.0
    assert from_dict(PrepareConfig, to_dict(config)) == config


def test_presets_are_restricted_imagenet_and_all_of_parquet():
    restricted, parquet = prepare_preset("restricted-imagenet"), prepare_preset("parquet")
    assert (restricted.source, restricted.classes, restricted.labels) == (
        *("folder", "restricted-imagenet", "fine"),
    )
    assert restricted.images_per_shard == 2000
    assert (parquet.source, parquet.classes) == ("parquet", "all")
    with pytest.raises(ConfigError, match="preset: got 'imagenet', expected one of restricted-"):
        prepare_preset("imagenet")


def test_the_identity_is_of_all_settings_but_places_and_resources():
    assert {field.name for field in fields(PrepareConfig)} == set(ELSEWHERE) | set(OTHER)
    base = PrepareConfig()
    digest = digest_of(prepared_identity(base, "listing"))
    assert digest_of(prepared_identity(replace(base, **ELSEWHERE), "listing")) == digest
    digests = {digest, digest_of(prepared_identity(base, "another listing"))}
    for name, value in OTHER.items():
        digests.add(digest_of(prepared_identity(replace(base, **{name: value}), "listing")))
    assert len(digests) == 2 + len(OTHER)
