"""MLflow's UI over a finished sweep, in headless Chromium: what a user sees without settings."""

import shutil
from dataclasses import replace
from itertools import product
from types import SimpleNamespace
from urllib.parse import urlsplit

import pytest

from fedsweep.config import TrackingConfig
from fedsweep.tracking import Tracker
from fedsweep.tracking.read import read_sweep
from fedsweep.tracking.ui import charts
from tests.tracking.conftest import mlflow_server
from tests.tracking.test_report_store import cell
from tests.unit.test_tracking import record, result, started

CHROMIUM = (
    shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
)
FLAGS = [
    "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync",
]  # fmt: skip
pytestmark = [
    pytest.mark.skipif(CHROMIUM is None, reason="no Chromium is installed (Debian: chromium)")
]
playwright = pytest.importorskip(
    "playwright.sync_api", reason="Playwright is not installed (dependency group dev)"
)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """The address of a server over a finished sweep of two cells and two seeds, and the sweep."""
    folder = tmp_path_factory.mktemp("ui")
    cfg = TrackingConfig(output=str(folder), uri=f"sqlite:///{folder}/mlflow.db")
    with Tracker(cfg) as tracker:
        axes = {"strategy.num_clusters": "2,4", "seed": "0,1"}
        trials = {
            cell(int(k), int(seed)).key: dict(zip(axes, (k, seed), strict=True))
            for k, seed in product("24", "01")
        }
        sweep = tracker.start_sweep("grid", "key", "why", axes, "make sweep", trials=trials)
        for clusters, seed in product("24", "01"):
            config = cell(int(clusters), int(seed))
            trial = sweep.start_trial(config, trials[config.key], f"fedsweep run seed={seed}")
            trial.started(started())
            for number in range(4):
                trial.round(record(number))
            done = (
                result()
            )  # of 2 clusters the seeds reach 0.25 and 0.35, of 4 clusters 0.45 and 0.55
            trial.finish(
                replace(
                    done,
                    summary={**done.summary, "acc": int(clusters) / 10 + int(seed) / 10 + 0.05},
                )
            )
        sweep.finish("| a table |")
    with mlflow_server(folder, cfg.uri) as address:
        yield address, read_sweep(tracker.store, "grid")


@pytest.fixture(scope="module")
def page():
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        made = browser.new_page(viewport={"width": 1500, "height": 1000})
        made.set_default_timeout(60_000)
        yield made
        browser.close()


def test_the_run_table_has_the_trials_and_their_data_set(page, finished):
    address, sweep = finished
    experiment = sweep.trials[0].run.info.experiment_id
    page.goto(f"{address}/#/experiments/{experiment}/runs")
    page.get_by_text("grid", exact=True).first.wait_for()
    page.locator("div[role=row]", has_text="grid").first.locator(
        "button"
    ).first.click()  # opens its trials
    page.get_by_text("digits iid rotation").first.wait_for()


def test_the_printed_address_shows_the_trials_charts_at_once(page, finished):
    """In the workflow that has charts, each way in its colour: without a click."""
    address, sweep = finished
    store = SimpleNamespace(experiment_id=sweep.trials[0].run.info.experiment_id)
    page.goto(charts(store, "127.0.0.1", urlsplit(address).port))
    page.get_by_text("num_clusters=4 seed=1").first.wait_for()
    page.locator(".js-plotly-plot .bartext", has_text="0.55").first.wait_for()
    colours = {
        trial.params["strategy.num_clusters"]: trial.run.data.tags["mlflow.runColor"]
        for trial in sweep.trials
    }
    assert len(set(colours.values())) == 2
    for colour in colours.values():
        red, green, blue = (int(colour[at : at + 2], 16) for at in (1, 3, 5))
        bar = f".js-plotly-plot .bars path[style*='rgb({red}, {green}, {blue})']"
        page.locator(bar).first.wait_for(state="attached")


def test_group_by_averages_over_the_seeds(page, finished):
    address, sweep = finished
    experiment = sweep.trials[0].run.info.experiment_id
    page.goto(f"{address}/#/experiments/{experiment}/runs?compareRunsMode=CHART")
    page.get_by_role("button", name="Group by").first.click()
    page.get_by_placeholder("Search").last.fill("strategy.num_clusters")
    page.get_by_text("strategy.num_clusters", exact=True).last.click()
    page.keyboard.press("Escape")
    page.get_by_text("Group: 4").first.wait_for()
    page.get_by_placeholder("Search metric charts").fill("0_final/acc")
    for mean in ("0.30", "0.50"):
        page.locator(".js-plotly-plot .bartext", has_text=mean).first.wait_for()


def test_the_charts_of_a_trial_stand_in_their_sections(page, finished):
    address, sweep = finished
    trial = sweep.trials[0]
    page.goto(
        f"{address}/#/experiments/{trial.run.info.experiment_id}/runs/{trial.run_id}/model-metrics"
    )
    for section in ("0_final", "1_global", "2_clusters"):
        page.get_by_text(section).first.wait_for()
    page.locator(".js-plotly-plot .main-svg").first.wait_for()


def test_the_picture_of_the_clusters_appears_with_its_steps(page, finished):
    address, sweep = finished
    trial = sweep.trials[0]
    page.goto(
        f"{address}/#/experiments/{trial.run.info.experiment_id}/runs/{trial.run_id}/model-metrics"
    )
    page.get_by_placeholder("Search metric charts").fill(
        "mage"
    )  # of all charts only an image's key holds it
    page.get_by_role("slider").first.wait_for()
    picture = page.locator(
        "img[src*='clusters'], img[src*='get-artifact'], img[src^='blob:']"
    ).first
    picture.wait_for()
    assert picture.evaluate("image => image.complete && image.naturalWidth") > 0


def test_the_note_of_a_trial_says_how_to_run_it_again(page, finished):
    address, sweep = finished
    trial = sweep.trials[0]
    page.goto(f"{address}/#/experiments/{trial.run.info.experiment_id}/runs/{trial.run_id}")
    page.get_by_text("fedsweep run seed=").first.wait_for()
