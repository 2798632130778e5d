"""Metrics have the same names whichever job logs them."""

import re

import pytest

from cdvae_ray.config.attack import SUITES
from cdvae_ray.tracking import metric_name


@pytest.mark.parametrize(
    ("parts", "name"),
    [
        (("PGD-Linf", "accuracy"), "pgd-linf.accuracy"),
        (("C&W-L2", "mean_l2"), "cw-l2.mean_l2"),
        (("AT PGD-Linf (Table 7)", "white_box"), "at_pgd-linf_table_7.white_box"),
        (("PGD-Linf, eps 2/255", "cosine"), "pgd-linf_eps_2_255.cosine"),
        (("Figure 4", "accuracy, gamma = 0.002", "none"), "figure_4.accuracy_gamma_0.002.none"),
        (("R(x)", "Größe"), "r_x.gr_e"),
    ],
)
def test_a_name_has_characters_that_any_tracker_takes(parts, name):
    assert metric_name(*parts) == name
    assert re.fullmatch(r"[a-z0-9._-]+", metric_name(*parts))


def test_attacks_of_a_suite_keep_names_of_their_own():
    for suite in SUITES.values():
        labels = suite.labels()
        assert len({metric_name(each) for each in labels}) == len(set(labels))
