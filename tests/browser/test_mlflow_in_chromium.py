"""MLflow's chart view of several runs on a real server and PostgreSQL, in headless Chromium.

PICTURE=<file.png> keeps the picture; docs/images/mlflow-comparison.png was made so.
"""

from __future__ import annotations

import math
import os
import shutil

import pytest

from cdvae_ray.config.tracking import TrackingConfig
from cdvae_ray.tracking import client as tracking_client
from cdvae_ray.tracking import open_writer
from tests.tracking.server import TrackingServer, what_is_missing

pytestmark = [pytest.mark.browser, pytest.mark.timeout(600)]

EXPERIMENT = "synthetic traffic (no trained model)"
NUM_STEPS = 100
DECAYS = {"decay 60": 60, "decay 30": 30, "decay 15": 15}
COLORS = ["#1b6ca8", "#c1440e", "#2e7d32"]


def curves(name, step):
    """Made-up curves that look like training."""
    left, wave = math.exp(-step / DECAYS[name]), 0.02 * math.sin(step / 3)
    return {
        "loss": 0.3 + 2 * left + wave,
        "reconstruction": 0.2 + 1.2 * left + wave,
        "classification": 0.1 + left + wave,
        "kl": 0.9 * (1 - left) + wave,
        "accuracy": 0.95 - 0.85 * left - wave,
        "learning_rate": DECAYS[name] / 600 * (1 - step / NUM_STEPS),
    }


@pytest.fixture(scope="module")
def server():
    if missing := what_is_missing():
        pytest.skip(missing)
    with TrackingServer() as running:
        yield running


def test_the_chart_view_shows_every_run_and_metric(server, tmp_path, monkeypatch):
    from playwright.sync_api import sync_playwright

    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    config = TrackingConfig(experiment=EXPERIMENT, uri=server.uri)
    for name, color in zip(DECAYS, COLORS, strict=True):
        writer = open_writer(
            config,
            embedded_root=tmp_path,
            run_name=f"synthetic, {name}",
            tags={"mlflow.runColor": color},
        )
        writer.log_config({"decay_steps": DECAYS[name]})
        for step in range(NUM_STEPS):
            writer.log_metrics(curves(name, step), step)
        writer.close("FINISHED", timeout_seconds=300)
    experiment = tracking_client.connect(server.uri).get_experiment_by_name(EXPERIMENT)

    found = shutil.which("chromium") or shutil.which("google-chrome")
    assert found, "no chromium on the PATH: install it (apt-get install chromium)"
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=found,
            args=["--no-sandbox", "--disable-background-networking", "--disable-component-update"],
        )
        page = browser.new_page(viewport={"width": 1400, "height": 1000})
        address = f"{server.uri}/#/experiments/{experiment.experiment_id}"
        page.goto(f"{address}/runs?compareRunsMode=CHART")
        for name in DECAYS:
            page.get_by_text(f"synthetic, {name}").first.wait_for(timeout=120_000)
        page.locator(".js-plotly-plot").nth(5).wait_for(timeout=120_000)
        text = page.inner_text("body")
        assert EXPERIMENT in text
        assert all(metric in text for metric in curves(next(iter(DECAYS)), 0))
        # Panels that are beside the point; another version of MLflow may not have them.
        for panel in (".assistant.chat_panel.close", "_header.toggle_sidebar_button"):
            for button in page.locator(f"[data-component-id='mlflow{panel}']").all():
                button.click()
        page.wait_for_timeout(3000)
        page.screenshot(path=os.environ.get("PICTURE") or tmp_path / "page.png")
        browser.close()
