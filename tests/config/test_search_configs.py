"""Search spaces and settings: those of the project read, wrong ones refused with the remedy."""

from dataclasses import replace
from pathlib import Path

import pytest

from cdvae_ray.config.search_job import (
    MARGIN_PRESETS,
    OBJECTIVE_PRESETS,
    MarginSearchConfig,
    ObjectiveSearchConfig,
    beta_preset,
    gamma_preset,
    margin_preset,
)
from cdvae_ray.config.search_space import read_space
from cdvae_ray.errors import ConfigError

SPACES = Path(__file__).parents[2] / "tune_spaces"
GOOD = """
parameter = "gamma"
values = [1.0, 2.0]
low = 0.1
high = 3.0
[metrics]
reconstruction_accuracy = "max"
"""


@pytest.mark.parametrize("name", ["gamma", "beta", "margin"])
def test_the_projects_spaces_are_spaces(name):
    space = read_space(SPACES / f"{name}.toml")
    assert space.parameter == name
    assert space.paper
    assert all(space.low <= value <= space.high for value in space.values)


def test_gamma_has_six_values_and_figure_4s_four_curves():
    space = read_space(SPACES / "gamma.toml")
    assert len(space.values) >= 6
    assert len(space.metrics) == 4


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        (("gamma", "delta"), "parameter: got 'delta', expected one of gamma, beta, margin"),
        (("[1.0, 2.0]", "[]"), "values: got none"),
        (("[1.0, 2.0]", "[1.0, 1.0]"), "each once"),
        (("[1.0, 2.0]", "1.0"), "values that are no list"),
        (("[1.0, 2.0]", '["a"]'), "expected finite numbers"),
        (("[1.0, 2.0]", "[nan]"), "expected finite numbers"),
        (("low = 0.1", "low = 4.0"), "low, high: got 4.0 and 3.0"),
        (("low = 0.1", "low = 0.0\nlog = true"), "both above 0"),
        (("reconstruction_accuracy", "robustness"), "metrics: got robustness"),
        (('"max"', '"most"'), "metrics: got most, expected max or min"),
        (("high", "hi"), "unknown keys ['hi'], missing ['high']"),
        (("values", "value ="), "expected a search space as in tune_spaces/README.md"),
        (("low = 0.1", "low = 0.1\nnum_samples = 0"), "num_samples: got 0"),
    ],
)
def test_a_wrong_space_is_one_line_with_a_remedy(tmp_path, change, complaint):
    path = tmp_path / "space.toml"
    path.write_text(GOOD)
    read_space(path)
    path.write_text(GOOD.replace(*change, 1))
    with pytest.raises(ConfigError) as caught:
        read_space(path)
    assert complaint in str(caught.value)
    assert "\n" not in str(caught.value)


def test_no_file_is_no_space(tmp_path):
    with pytest.raises(ConfigError, match="No such file"):
        read_space(tmp_path / "space.toml")


@pytest.mark.parametrize("name", OBJECTIVE_PRESETS)
def test_a_trials_trainings_are_the_presets_but_for_the_value(name):
    config = replace(gamma_preset(name), classifier="c", storage="/s", epochs=3)
    assert beta_preset(name) == gamma_preset(name)
    train = config.cdvae_job("gamma", 0.7)
    assert (train.objective.gamma, train.training.epochs) == (0.7, 3)
    assert config.cdvae_job("beta", 0.7).objective.beta == 0.7
    assert train.resources.checkpoint_every <= 3
    redundant = config.redundant_job("there")
    assert (redundant.input, redundant.cdvae) == ("class_redundant", "there")
    assert train.data == redundant.data == config.data
    assert train.storage == redundant.storage == "/s"
    if train.training.schedule == "cosine":
        assert train.training.cosine_period_epochs == 3
    detection = config.detection_job("there")
    assert detection.attacks == ("PGD-Linf",)
    assert detection.adaptive.num_images == 0
    assert config.transfer_job().threat_model == "classifier"


@pytest.mark.parametrize("name", MARGIN_PRESETS)
def test_a_margins_training_is_the_presets_but_for_the_margin(name):
    config = replace(margin_preset(name), classifier="c", cdvae="v")
    job = config.finetune_job(0.25)
    assert (job.adversarial.margin, job.cdvae, job.classifier) == (0.25, "v", "c")
    assert job.resume
    with pytest.raises(ConfigError, match=r"adversarial\.margin: got 3"):
        config.finetune_job(3.0)


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"num_samples": -1}, "num_samples"),
        ({"max_concurrent": 0}, "max_concurrent"),
        ({"grace_epochs": 0}, "grace_epochs"),
        ({"epochs": 0}, "epochs"),
        ({"seed": -1}, "seed"),
        ({"storage": ""}, "storage"),
    ],
)
def test_settings_out_of_range_are_refused(changes, complaint):
    with pytest.raises(ConfigError, match=complaint):
        ObjectiveSearchConfig(**changes)


def test_a_search_needs_what_it_starts_from():
    with pytest.raises(ConfigError, match="classifier: got none"):
        ObjectiveSearchConfig().require_parts()
    with pytest.raises(ConfigError, match="cdvae: got none"):
        MarginSearchConfig(classifier="c").require_parts()
    MarginSearchConfig(classifier="c", cdvae="v").require_parts()
