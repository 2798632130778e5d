"""What a search comes to: the Pareto front by its definition, tables that lose nothing."""

import json

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from cdvae_ray.config.model import ModelConfig
from cdvae_ray.config.search_space import SearchSpace
from cdvae_ray.core.cdvae import build_cdvae
from cdvae_ray.errors import DataError
from cdvae_ray.evaluation.search_picture import parts_by_value, search_picture
from cdvae_ray.evaluation.search_table import (
    Measured,
    Trial,
    pareto_front,
    search_columns,
    search_markdown,
    search_page,
    search_text,
)

SPACE = SearchSpace(
    parameter="gamma",
    values=(0.1, 1.0, 10.0),
    low=0.01,
    high=10.0,
    log=True,
    metrics={"class_essential_accuracy": "max", "reconstruction_accuracy": "min"},
    paper="what it says",
)
MODES = dict(SPACE.metrics)


def trial(value, essential, reconstruction, state="finished", reason=""):
    metrics = {
        "class_essential_accuracy": Measured(essential, essential - 0.01, essential + 0.02, 50),
        "reconstruction_accuracy": Measured(reconstruction, images=50),
    }
    return Trial(
        value=value,
        state=state,
        metrics=metrics if state == "finished" else {},
        artifacts={},
        reason=reason,
    )


FAILED = trial(10.0, 0, 0, "failed", "the loss is not finite")
SOME = [trial(0.1, 0.3, 0.2), trial(1.0, 0.5, 0.4), FAILED]


@given(st.lists(st.tuples(st.integers(0, 4), st.integers(0, 4)), min_size=1, max_size=12))
def test_the_front_is_whom_nobody_beats(points):
    trials = [trial(float(place), a / 4, b / 4) for place, (a, b) in enumerate(points)]
    front = {each.value for each in pareto_front(trials, MODES)}
    for place, (a, b) in enumerate(points):
        # The second is wanted small.
        beaten = any((c >= a and d <= b) and (c > a or d < b) for c, d in points)
        assert (float(place) in front) == (not beaten)


def test_unfinished_trials_are_on_no_front_but_in_the_table():
    assert [each.value for each in pareto_front(SOME, MODES)] == [0.1, 1.0]
    columns = search_columns(SOME, SPACE)
    assert columns["gamma"] == [0.1, 1.0, 10.0]
    assert columns["state"] == ["finished", "finished", "failed"]
    assert columns["on_pareto_front"] == [True, True, False]
    assert columns["class_essential_accuracy"] == [0.3, 0.5, None]
    assert columns["class_essential_accuracy_low"] == [0.29, 0.49, None]
    assert columns["reconstruction_accuracy_high"] == [None, None, None]
    assert columns["reason"][2] == "the loss is not finite"
    json.dumps(columns, allow_nan=False)


def test_a_number_that_could_not_be_measured_is_no_reason_to_stop():
    partly = trial(1.0, 0.9, 0.1)
    del partly.metrics["reconstruction_accuracy"]
    trials = [trial(0.1, 0.5, 0.5), partly, trial(10.0, 0.4, 0.6)]
    # It beats the others in what it has; without the rest, nobody can tell.
    assert pareto_front(trials, MODES) == [trials[0]]
    columns = search_columns(trials, SPACE)
    assert columns["reconstruction_accuracy"] == [0.5, None, 0.6]
    assert columns["on_pareto_front"] == [True, False, False]
    assert "| 1 | finished | 90.00" in search_markdown(trials, SPACE)
    assert search_picture(trials, SPACE, caption="") != search_picture(
        [trials[0], trials[2]], SPACE, caption=""
    )
    assert search_picture([partly, *trials[:1]], SPACE, caption="").startswith(b"\x89PNG")


def test_texts_hold_every_trial_its_interval_and_the_reason():
    for text in (search_text(SOME, SPACE), search_markdown(SOME, SPACE)):
        assert "30.00 [29.00, 32.00]" in text
        assert "0.1 *" in text
        assert "failed" in text
    page = search_page(SOME, SPACE, title="T", facts={"seed": "0"}, pictures={"f": "f.png"})
    for part in (
        "# T",
        "seed: 0",
        "gamma = 10 failed: the loss",
        "The paper: what it says",
        "f.png",
    ):
        assert part in page


def test_pictures_are_pngs_and_the_same_each_time():
    first = search_picture(SOME, SPACE, caption="c")
    assert first.startswith(b"\x89PNG")
    assert first == search_picture(list(reversed(SOME)), SPACE, caption="c")
    with pytest.raises(DataError, match="none finished"):
        search_picture([FAILED], SPACE, caption="c")
    config = ModelConfig(vae_width=4, latent_size=8, classifier_depth=10, classifier_widen_factor=1)
    models = {
        value: build_cdvae(config, image_size=16, class_names=("a", "b"), seed=seed).eval()
        for seed, value in enumerate((0.1, 1.0))
    }
    images = torch.zeros(2, 3, 16, 16, dtype=torch.uint8)
    picture = parts_by_value(models, images, parameter="gamma", caption="c")
    assert picture.startswith(b"\x89PNG")
