"""Text goes between a page's marks and nowhere else."""

import pytest

from benchmarks.marks import fill

COMMAND = "python benchmarks/results_page.py"


def test_text_goes_between_the_marks_and_nowhere_else(tmp_path):
    page = tmp_path / "page.md"
    first, last = f"<!-- front: {COMMAND} -->", "<!-- end of front -->"
    page.write_text(f"before\n{first}\nold\n{last}\nafter\n")
    fill(page, "front", COMMAND, "new")
    fill(page, "front", COMMAND, "newer")
    assert page.read_text() == f"before\n{first}\n\nnewer\n\n{last}\nafter\n"
    for which, command in (("tables", COMMAND), ("front", "python other.py")):
        with pytest.raises(SystemExit, match="one pair of the marks"):
            fill(page, which, command, "new")
