"""The report in a real headless Chromium: it loads whole, says nothing on the console, and fits.

Run by `make browser`; `make browser REPORT=<file>` looks at that page besides.
"""

import os
import shutil
from pathlib import Path

import pytest

from cdvae_ray.evaluation.headlines import Headline
from cdvae_ray.evaluation.html_report import ReportLink, ReportSection, ReportStep, report_html
from cdvae_ray.evaluation.layout import markdown_table, png_bytes

pytestmark = pytest.mark.browser


@pytest.fixture(scope="module")
def chromium():
    found = shutil.which("chromium") or shutil.which("google-chrome")
    assert found, "no chromium on the PATH: install it (apt-get install chromium)"
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=found,
            args=["--no-sandbox", "--disable-background-networking", "--disable-component-update"],
        )
        yield browser
        browser.close()


def picture():
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6, 3))
    figure.subplots().plot([0, 1, 4, 9])
    return png_bytes(figure)


def made_up_page():
    """All that a page can hold: wide tables, long words, pictures shown and not, no-link runs."""
    header = [f"column number {number}" for number in range(24)]
    page = "\n\n".join(
        [
            "# A report",
            "- digest: " + 64 * "0f",
            "## A wide table",
            markdown_table(header, [["12.34 [10.00, 15.00] (99.99)"] * 24] * 3),
            "## A picture",
            "![what it shows](shown.png)",
            "<script>document.title = 'taken over'</script>",
        ]
    )
    shared = {"threat_model": "white-box", "images": 1000, "is_share": True}
    return report_html(
        title="A page",
        facts={"images": "digits", "MLflow run": 32 * "0f"},
        remarks=["Small networks."],
        headlines=[
            Headline("Table 4", "AUROC", value=0.9, low=0.8, high=1.0, paper=0.99, **shared),
            Headline("Table 7", "accuracy", value=0.0, low=0.0, high=0.1, paper=None, **shared),
        ],
        sections=[
            ReportSection(
                key=f"part-{number}",
                title=f"A section of number {number}",
                results=["Table 1"],
                page=page,
                pictures={"shown.png": picture(), "beside.png": picture()},
                run=ReportLink(
                    text="abc", address="http://127.0.0.1:5000/#/experiments/1/runs/abc"
                ),
                checks={"pass": 3, "fail": 1},
            )
            for number in range(5)
        ],
        steps=[
            ReportStep(
                name="CD-VAE",
                settings="train smoke",
                digest=64 * "a",
                was_stored=True,
                run=ReportLink(text="not tracked"),
            )
        ],
    )


@pytest.fixture(scope="module", params=["made up", "given"])
def file(request, tmp_path_factory):
    if request.param == "given":
        given = os.environ.get("REPORT", "")
        if not given:
            pytest.skip("no REPORT was given")
        return Path(given).resolve()
    path = tmp_path_factory.mktemp("report") / "report.html"
    path.write_text(made_up_page())
    return path


@pytest.mark.parametrize("width", [1280, 390])
def test_the_page_loads_whole_and_says_nothing_on_the_console(chromium, file, width):
    said, asked = [], []
    page = chromium.new_page(viewport={"width": width, "height": 900})
    page.on("console", lambda message: said.append(message.text))
    page.on("pageerror", lambda error: said.append(str(error)))
    page.on("request", lambda request: asked.append(request.url))
    page.goto(file.as_uri(), wait_until="networkidle")
    assert said == []
    assert [each for each in asked if not each.startswith("data:")] == [file.as_uri()]
    widths = page.eval_on_selector_all("img", "all => all.map(each => each.naturalWidth)")
    assert widths
    assert min(widths) > 0
    # Tables scroll by themselves; the page does not.
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    assert page.eval_on_selector_all("script", "all => all.length") == 0
    targets = page.eval_on_selector_all(
        "a[href^='#']", "all => all.map(each => each.getAttribute('href').slice(1))"
    )
    assert len(targets) >= 3
    for target in targets:
        assert page.evaluate("id => document.getElementById(id) !== null", target), target
    page.close()


def test_markdown_cannot_run_anything(chromium, tmp_path):
    path = tmp_path / "report.html"
    path.write_text(made_up_page())
    page = chromium.new_page()
    page.goto(path.as_uri())
    assert page.title() == "A page"
    assert "taken over" in page.inner_text("body")
    page.close()
