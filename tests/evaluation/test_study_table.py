"""Tables 1-3 and Figure 3 as rows: against numpy, with the paper's numbers where they belong."""

import json
import math
import re

import numpy as np
import pytest
import torch
from scipy import stats

from cdvae_ray.config.classifier import INPUT_KINDS
from cdvae_ray.errors import DataError
from cdvae_ray.evaluation.correlation import latent_correlation
from cdvae_ray.evaluation.frechet import feature_moments, frechet_distance
from cdvae_ray.evaluation.intervals import wilson
from cdvae_ray.evaluation.study_columns import NORMS, PARTS
from cdvae_ray.evaluation.study_report import study_page
from cdvae_ray.evaluation.study_statistics import reduce_study
from cdvae_ray.evaluation.study_table import (
    _PAPER_CROSS,
    AttackedRow,
    CrossRow,
    LatentRow,
    NormRow,
    SimilarityRow,
    attacked_row,
    cross_rows,
    latent_row,
    mean_interval,
    norm_rows,
    row_columns,
    similarity_rows,
    study_markdown,
    study_text,
)
from cdvae_ray.storage.row_set import ImageRows
from tests.evaluation.made_rows import (
    ATTACK,
    NOISE,
    cross_columns,
    cut,
    decomposition_rows,
    sums_of,
)

DATASETS = ("none", "cifar10", "restricted-imagenet")
FEATURES = "D(x), before its last layer"
CELL = re.compile(r"\S+(?: \S+)*")


def tables(paper="restricted-imagenet", count=40):
    """All tables, over an attack and noise."""
    attack, noise = sums_of(decomposition_rows(count)), sums_of(decomposition_rows(count, seed=1))
    found = {title: [] for title in ("The attack", "Table 1", "Table 2", "Figure 3")}
    for sums, compared in ((attack, ATTACK), (noise, NOISE)):
        found["The attack"].append(attacked_row(sums, compared, "D(x), a plain classifier"))
        found["Table 1"] += similarity_rows(sums, compared, features=FEATURES, paper=paper)
        found["Table 2"] += norm_rows(sums, compared, units="normalized", paper=paper)
        found["Figure 3"].append(latent_row(latent_correlation(sums.latents), compared))
    found["Table 3"] = cross_rows(cut(cross_columns(1234), 3), INPUT_KINDS, paper=paper)
    return found


def paper_fields(row):
    return {name: getattr(row, name) for name in row._fields if name.startswith("paper_")}


# Rows.


def test_a_row_cannot_leave_out_what_its_numbers_mean():
    for kind in (AttackedRow, SimilarityRow, NormRow, LatentRow, CrossRow):
        assert not kind._field_defaults
    for row in tables()["Table 1"]:
        assert row.features == FEATURES
    for row in tables()["Table 2"]:
        assert row.units == "normalized"


def test_the_attacks_row_holds_shares_of_right_answers():
    rows = decomposition_rows(seed=3)
    found = attacked_row(reduce_study(cut(rows, 4)), ATTACK, "D(x)")
    label = rows["label"]
    shares = [
        float((rows[name] == label).double().mean())
        for name in (
            *("prediction", "prediction_adversarial"),
            *("essential_prediction", "essential_prediction_adversarial"),
        )
    ]
    assert len(set(shares)) == 4
    assert found[:4] == ("PGD-Linf", 8 / 255, "D(x)", 40)
    assert list(found[4:]) == pytest.approx(shares)


@pytest.mark.parametrize("shards", [1, 3])
def test_similarity_is_that_of_numpy(shards):
    rows = decomposition_rows()
    sums = reduce_study(cut(rows, shards))
    found = similarity_rows(sums, ATTACK, features=FEATURES, paper="none")
    assert [row.compared for row in found] == ["G(x), G(x')", "R(x), R(x')"]
    for place, (row, part) in enumerate(zip(found, "GR", strict=True)):
        cosines = rows["cosine"][:, place].numpy()
        assert (row.attack, row.epsilon, row.images) == ("PGD-Linf", 8 / 255, 40)
        assert row.cosine == pytest.approx(cosines.mean(), rel=1e-12)
        assert row.cosine_std == pytest.approx(cosines.std(ddof=1), rel=1e-12)
        low, high = stats.norm.interval(0.95, cosines.mean(), stats.sem(cosines))
        assert (row.cosine_low, row.cosine_high) == pytest.approx((low, high), rel=1e-9)
        clean, other = rows[f"features/{part}(x)"], rows[f"features/{part}(x')"]
        assert row.frechet == pytest.approx(
            frechet_distance(feature_moments(clean), feature_moments(other))
        )
        assert row.frechet_null == pytest.approx(
            frechet_distance(feature_moments(clean[::2]), feature_moments(clean[1::2]))
        )


@pytest.mark.parametrize("shards", [1, 3])
def test_norms_are_means_and_deviations_by_part(shards):
    rows = decomposition_rows()
    found = norm_rows(reduce_study(cut(rows, shards)), NOISE, units="pixel", paper="none")
    assert tuple(row.part for row in found) == PARTS
    for place, row in enumerate(found):
        assert (row.attack, row.epsilon, row.images, row.units) == (*NOISE, 40, "pixel")
        for norm in NORMS:
            values = rows[norm][:, place].double().numpy()
            assert getattr(row, norm) == pytest.approx(values.mean(), rel=1e-12)
            assert getattr(row, f"{norm}_std") == pytest.approx(values.std(ddof=1), rel=1e-12)


def test_figure_3_in_numbers_is_that_of_scipy():
    rows = decomposition_rows(60, latent=30)
    rows.columns["latent"][:, 4] = 0.1
    found = latent_row(latent_correlation(reduce_study(cut(rows, 4)).latents), ATTACK)
    pairs = [
        stats.pearsonr(rows["latent"][:, i].numpy(), rows["latent_adversarial"][:, i].numpy())
        for i in range(30)
        if i != 4
    ]
    r, p = (np.array([pair[place] for pair in pairs], dtype=float) for place in (0, 1))
    assert found[:5] == ("PGD-Linf", 8 / 255, 60, 30, 1)
    expected = (r.min(), np.quantile(r, 0.05), np.median(r), r.max(), (p < 0.05 / 29).mean())
    assert found[5:] == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("shards", [1, 4, 30])
def test_table_3_has_wilsons_intervals_in_every_cell(shards):
    rows = cross_columns(30)
    found = cross_rows(iter(cut(rows, shards)), INPUT_KINDS, paper="none")
    symbols = {"images": "x", "class_redundant": "G(x)", "class_essential": "R(x)"}
    cells = [(kind, tested) for kind in INPUT_KINDS for tested in INPUT_KINDS]
    assert [(row.trained_on, row.tested_on) for row in found] == [
        (symbols[kind], symbols[tested]) for kind, tested in cells
    ]
    for row, (kind, tested) in zip(found, cells, strict=True):
        assert row.images == 30
        for top in ("top1", "top5"):
            right = int(rows[f"{kind}/{tested}/{top}"].sum())
            assert getattr(row, top) == pytest.approx(right / 30)
            interval = getattr(row, f"{top}_low"), getattr(row, f"{top}_high")
            assert interval == wilson(right, 30)
    assert len({(row.top1, row.top5) for row in found}) > 5


def test_table_3_has_a_row_only_for_the_classifiers_there_are():
    kinds = ["class_essential"]
    found = cross_rows([cross_columns(20, kinds)], kinds, paper="cifar10")
    assert {row.trained_on for row in found} == {"R(x)"} and len(found) == 3


def test_the_interval_of_a_mean():
    values = np.random.default_rng(0).normal(3, 2, size=50)
    found = mean_interval(values.mean(), values.std(ddof=1), 50)
    assert found == pytest.approx(stats.norm.interval(0.95, values.mean(), stats.sem(values)))
    assert all(math.isnan(each) for each in mean_interval(0.5, float("nan"), 1))


# The paper's numbers.


@pytest.mark.parametrize("paper", DATASETS)
def test_tables_1_and_2_are_of_imagenet_alone(paper):
    found = tables(paper)
    for title in ("Table 1", "Table 2"):
        for row in found[title]:
            given = [value is not None for value in paper_fields(row).values()]
            assert given == [paper == "restricted-imagenet"] * len(given)


@pytest.mark.parametrize("paper", DATASETS)
def test_table_3_is_of_both_datasets(paper):
    for row in tables(paper)["Table 3"]:
        given = [value is not None for value in paper_fields(row).values()]
        assert given == [paper != "none"] * 2


def test_table_1_as_printed():
    redundant, essential = tables()["Table 1"][:2]
    assert paper_fields(redundant) == {
        "paper_cosine": 0.9997,
        "paper_cosine_std": 0.0003,
        "paper_frechet": 0.90,
    }
    assert paper_fields(essential) == {
        "paper_cosine": 0.9460,
        "paper_cosine_std": 0.0260,
        "paper_frechet": 22.31,
    }


def test_table_2_as_printed_with_l1_in_the_units_of_ours():
    rows = {row.part: row for row in tables()["Table 2"][:9]}
    for part, printed in (
        ("x", (142_830, 37_020, 427.99, 92.59, 2.49, 0.20)),
        ("G(x')", (133_520, 36_960, 397.26, 91.85, 2.08, 0.11)),
        ("delta", (13_650, 880, 39.09, 1.40, 0.14, 0.00)),
        ("delta_G", (4_150, 650, 16.56, 2.47, 0.39, 0.17)),
        ("delta_R", (13_780, 920, 40.97, 1.87, 0.48, 0.16)),
    ):
        assert tuple(paper_fields(rows[part]).values()) == pytest.approx(printed), part


def test_the_papers_norms_are_possible():
    # Of 3 x 224 x 224 pixels: |v|_2^2 <= |v|_1 |v|_inf, |v|_1 <= sqrt(d) |v|_2 (means: about).
    size = math.sqrt(3 * 224 * 224)
    for row in tables()["Table 2"][:9]:
        assert row.paper_l2**2 <= 1.1 * row.paper_l1 * row.paper_linf
        assert row.paper_l1 <= size * row.paper_l2
        assert row.paper_linf <= row.paper_l2


@pytest.mark.parametrize(
    ("paper", "cell", "printed"),
    [
        ("cifar10", ("x", "x"), (0.9601, 0.9984)),
        ("cifar10", ("x", "G(x)"), (0.1886, 0.6793)),
        ("cifar10", ("R(x)", "x"), (0.9581, 0.9981)),
        ("cifar10", ("G(x)", "R(x)"), (0.2567, 0.6898)),
        ("restricted-imagenet", ("x", "R(x)"), (0.1117, 0.2561)),
        ("restricted-imagenet", ("R(x)", "x"), (0.6333, 0.8214)),
        ("restricted-imagenet", ("G(x)", "x"), (0.4446, 0.6913)),
        ("restricted-imagenet", ("G(x)", "G(x)"), (0.7408, 0.9337)),
    ],
)
def test_table_3_as_printed(paper, cell, printed):
    (row,) = [row for row in tables(paper)["Table 3"] if (row.trained_on, row.tested_on) == cell]
    assert (row.paper_top1, row.paper_top5) == pytest.approx(printed)


def test_table_3_so_read_says_what_the_papers_text_says():
    for cells in _PAPER_CROSS.values():
        for kind in INPUT_KINDS:
            # Each classifier is best on what it was trained on; top-5 is never below top-1.
            best = max(cells[other][kind][0] for other in INPUT_KINDS)
            assert cells[kind][kind][0] >= best - 0.4
            assert all(top1 < top5 for top1, top5 in cells[kind].values())
        # "trained on R(x) is highly effective on x"; poor on G(x), and the other way round.
        assert cells["class_essential"]["images"][0] > 60
        assert cells["class_essential"]["class_redundant"][0] < 20
        assert cells["class_redundant"]["class_essential"][0] < 30
        # "trained on G(x) has some classification accuracy".
        assert cells["class_redundant"]["images"][0] > 40
    # "trained on x performs poorly on G(x)".
    assert _PAPER_CROSS["cifar10"]["images"]["class_redundant"][0] < 20


# Columns and text.


def test_columns_are_json_of_one_length():
    for rows in tables().values():
        columns = row_columns(rows)
        assert tuple(columns) == rows[0]._fields
        assert {len(values) for values in columns.values()} == {len(rows)}
        assert json.loads(json.dumps(columns, allow_nan=False)) == columns
    assert row_columns([]) == {}


def test_nan_and_infinity_become_none():
    one = sums_of(decomposition_rows(1))
    columns = row_columns(norm_rows(one, ATTACK, units="pixel", paper="none"))
    assert columns["l2_std"] == [None] * 9
    assert all(isinstance(value, float) for value in columns["l2"])
    (row,) = tables()["Table 1"][:1]
    found = row_columns([row._replace(frechet=float("inf"), frechet_null=None), row])
    assert found["frechet"] == [None, row.frechet]
    assert found["frechet_null"] == [None, row.frechet_null]
    assert found["cosine"] == [row.cosine] * 2


def cells_of(page):
    """The cells of a page's tables by their headings, in Markdown."""
    found = {}
    for part in page.split("## ")[1:]:
        title, *lines = part.splitlines()
        rows = [line for line in lines if line.startswith("|")]
        found[title] = [[cell.strip() for cell in row.strip("|").split("|")] for row in rows]
    return found


def test_markdown_holds_every_row_and_every_n():
    given = tables(count=40)
    found = cells_of(study_markdown(given))
    assert list(found) == list(given)
    for title, rows in given.items():
        header, rule, *lines = found[title]
        assert set(rule) == {"---"} and len(lines) == len(rows)
        assert {len(line) for line in (header, rule, *lines)} == {len(header)}
        counts = [line[header.index("n")] for line in lines]
        assert counts == [f"{row.images:,}" for row in rows]
        names = [line[0] for line in lines]
        assert names == [getattr(row, "attack", None) or row.trained_on for row in rows]
    assert {row[2] for row in found["Table 3"][2:]} == {"1,234"}


def test_text_holds_every_row_and_every_n():
    given = tables(count=40)
    blocks = study_text(given).split("\n\n")
    assert len(blocks) == len(given)
    markdown = cells_of(study_markdown(given))
    for block, (title, rows) in zip(blocks, given.items(), strict=True):
        first, header, *lines = block.splitlines()
        assert first == title and len(lines) == len(rows)
        # The cells of the page, each below its heading.
        names, *expected = (found for found in markdown[title] if found[0] != "---")
        starts = [match.start() for match in CELL.finditer(header)]
        assert CELL.findall(header) == names
        for line, cells in zip(lines, expected, strict=True):
            assert line == line.rstrip() and CELL.findall(line) == cells
            assert [match.start() for match in CELL.finditer(line)] == starts


def test_numbers_are_printed_with_their_intervals_and_the_papers():
    rows = {
        "Table 1": [
            SimilarityRow(
                *("PGD", 0.03, "R(x), R(x')", 2000, 0.91234, 0.05, 0.9001, 0.9245),
                *(17.1234, 0.5678, FEATURES, 0.946, 0.026, 22.31),
            )
        ],
        "Table 2": [
            NormRow(
                *("PGD", 0.03, "delta", 2000, "normalized"),
                *(13_456.7, 880.0, 39.123, 1.4, 0.14, 0.01),
                *(13_650.0, 880.0, 39.09, 1.4, 0.14, 0.0),
            )
        ],
        "Figure 3": [LatentRow("PGD", 0.03, 2000, 256, 6, 0.51, 0.62, 0.91, 0.99, 0.996)],
        "Table 3": [CrossRow("x", "G(x)", 2000, 0.2, 0.18, 0.22, 0.7, 0.68, 0.72, 0.1886, 0.6793)],
        "The attack": [AttackedRow("PGD", 0.03, "D(x)", 2000, 0.9012, 0.0, 0.88, 0.7)],
    }
    found = cells_of(study_markdown(rows))
    assert found["Table 1"][2][3:6] == [
        "0.9123 [0.9001, 0.9245] ± 0.0500 (0.9460 ± 0.0260)",
        "17.12 (22.31)",
        "0.5678",
    ]
    assert found["Table 2"][2][3:6] == [
        "13.46 ± 0.88 (13.65 ± 0.88)",
        "39.12 ± 1.4 (39.09 ± 1.40)",
        "0.14 ± 0.01 (0.14 ± 0.00)",
    ]
    assert found["Figure 3"][2][1:] == [
        *("2,000", "256, 6 constant", "0.5100", "0.6200", "0.9100", "0.9900"),
        "99.6 % of 250",
    ]
    assert found["Table 3"][2][3:] == [
        "20.00 [18.00, 22.00] (18.86)",
        "70.00 [68.00, 72.00] (67.93)",
    ]
    assert found["The attack"][2] == ["PGD", "D(x)", "2,000", "90.1", "0.0", "88.0", "70.0"]


def test_without_the_paper_nothing_stands_in_parentheses():
    alone = {
        title: [row for row in rows if not isinstance(row, AttackedRow)]
        for title, rows in tables("none").items()
    }
    for rows in cells_of(study_markdown(alone)).values():
        header, _, *lines = rows
        for line in lines:
            for name, cell in zip(header, line, strict=True):
                if name in ("cosine", "Frechet", "L1 / 1000", "L2", "L-inf", "top-1", "top-5"):
                    assert "(" not in cell


def test_chance_is_left_blank_where_it_is_unknown():
    (row,) = tables("none")["Table 1"][:1]
    text = {"Table 1": [row._replace(frechet_null=None)]}
    header, _, line = cells_of(study_markdown(text))["Table 1"]
    assert line[header.index("chance")] == ""
    assert "None" not in study_text(text)


def test_empty_tables_are_left_out():
    given = {**tables(), "Table 2": [], "Table 3": []}
    assert list(cells_of(study_markdown(given))) == ["The attack", "Table 1", "Figure 3"]
    assert "Table 2" not in study_text(given) and "Table 3" not in study_text(given)
    assert study_markdown({"Table 3": []}) == study_text({"Table 3": []}) == ""


# The page.


def test_the_page_holds_facts_remarks_tables_and_pictures_in_order():
    page = study_page(
        tables(),
        title="Parts",
        facts={"seed": "7", "CD-VAE": "abc"},
        pictures={"figure-2": "figure-2.png", "figure-3": "figure-3.png"},
        remarks=["Mind this.", "And that."],
    )
    pieces = [
        *("# Parts\n", "- seed: 7\n- CD-VAE: abc\n", "Mind this.", "And that.", "## The attack"),
        *("## Table 3", "![figure-2](figure-2.png)", "![figure-3](figure-3.png)"),
    ]
    places = [page.index(piece) for piece in pieces]
    assert places == sorted(places)
    assert study_markdown(tables()) in page
    assert page.endswith("(figure-3.png)\n") and "\n\n\n" not in page
    assert "Mind this.\n\nAnd that." in page


def test_a_page_without_pictures_or_remarks_has_no_holes():
    page = study_page({}, title="Parts", facts={"seed": "7"}, pictures={}, remarks=[])
    assert page == "# Parts\n\n- seed: 7\n"


def test_rows_that_lack_an_answer_are_refused():
    rows = cross_columns(5)
    missing = ImageRows(
        torch.arange(5), {name: values for name, values in rows.columns.items() if "top1" in name}
    )
    with pytest.raises(DataError, match="columns of rows by image"):
        cross_rows([missing], INPUT_KINDS, paper="none")
