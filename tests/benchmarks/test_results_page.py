"""The tables of the results' pages say what the compared seeds say, and go between the marks."""

import pytest

from benchmarks.results_page import all_tables, cell, committed_rows, front_table, read_rows
from cdvae_ray.evaluation.seed_tables import compare_seeds, seed_columns
from cdvae_ray.storage.store import to_json_bytes
from tests.evaluation.test_seed_tables import defences


def detection(area):
    """Table 4's line that the paper has, and the same detector against the other attack."""
    count = 2
    return {
        "detection": {
            "detection": {
                "attacked": ["D(x), a plain classifier", "D(R(x)) through the whole CD-VAE"],
                "attack": ["PGD-Linf"] * count,
                "method": ["MD"] * count,
                "space": ["images"] * count,
                "mode": ["same_attack"] * count,
                "subset": ["successful"] * count,
                "contrast": ["adversarial against clean and noisy"] * count,
                "clean_images": [50, 40],
                "auroc": [area, 0.5],
                "tnr_at_95_tpr": [0.5, 0.1],
                "paper_auroc": [0.9538, None],
                "paper_tnr_at_95_tpr": [0.7723, None],
            }
        }
    }


@pytest.fixture
def rows():
    seeds = [defences(value) | detection(value + 0.5) for value in (0.3, 0.4)]
    found = compare_seeds(seeds)
    assert read_rows(to_json_bytes(seed_columns(found))) == found
    return found


def test_a_cell_is_mean_half_the_interval_and_the_papers(rows):
    area = next(row for row in rows if row.quantity == "auroc")
    assert cell(area) == "85.0 ± 63.5 (95.4)"
    assert cell(area._replace(low=None, high=None, paper=None)) == "85.0"
    assert cell(area._replace(unit="", mean=0.0123, high=None, paper=2.0)) == "0.0123 (2)"


def test_every_number_stands_in_the_line_and_column_of_its_key(rows):
    text = all_tables(rows)
    assert "| MD on x, attacked: D(x) | 85.0 ± 63.5 (95.4) |" in text
    assert (
        "| detector | attacks on D(x), a plain classifier | "
        "attacks on D(R(x)) through the whole CD-VAE |" in text
    )
    assert "| MD on x | 85.0 ± 63.5 (95.4) | 50.0 ± 0.0 |" in text
    assert "n, of each number in the seed that had the fewest images: 40 to 50." in text
    head = "### Table 6, white-box attacks on the whole defence: accuracy in percent"
    assert f"{head}\n\n| defence | worst of all |\n" in text
    assert "which know nothing of the defence" not in text
    assert "| Ours | 45.0 ± 63.5 (50.0) |" in text
    assert "Figure 4" not in text


def test_the_front_table_names_threat_model_and_n(rows):
    text = front_table(rows)
    assert (
        "| AUROC of MD on x | PGD-Linf on D(x), a plain classifier, which knows no detector | "
        "85.0 ± 63.5 | 95.4 | 50 |" in text
    )
    assert (
        "| accuracy of Ours, worst of all | white-box: all of it | 45.0 ± 63.5 | 50.0 | 100 |"
        in text
    )


def test_pages_hold_every_report_that_was_copied_and_no_table_twice(rows, tmp_path):
    areas = [row for row in rows if row.quantity == "auroc"]
    others = [row for row in rows if row.view not in {area.view for area in areas}]
    for name, part in (("three-seeds-defence", others), ("three-seeds", areas)):
        (tmp_path / f"{name}.json").write_bytes(to_json_bytes(seed_columns(part)))
    assert committed_rows(tmp_path) == areas + others
    (tmp_path / "three-seeds-again.json").write_bytes(to_json_bytes(seed_columns(others)))
    with pytest.raises(SystemExit, match="tables that no other report has, got Table"):
        committed_rows(tmp_path)
