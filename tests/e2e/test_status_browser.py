"""The status page in a real browser: nothing sticks out sideways, and its style is applied."""

import subprocess

import pytest
from support.browser import CHROMIUM, FLAGS, measured, needs_chromium
from support.central import make_central
from support.federation import make_plan
from support.operators import operated
from support.statuses import shown

from sordino.server import fleet_rounds as fr

pytestmark = pytest.mark.slow

LONG = "run-with-a-name-as-long-as-a-name-may-be-" + "x" * 60


@pytest.fixture
def page(tmp_path):
    """A page with all that there can be: alarms, two trust models, long names."""
    with operated(tmp_path / "fleet") as at, shown(at) as made:
        at.start(make_plan(run_id=LONG), run_id=LONG)
        at.finish_round("d2", run_id=LONG)
        at.finish_round(run_id=LONG)
        with at.fleet.store.write("test") as tx:
            fr.context.tell(at.fleet, tx, "ledger-rolled-back", device_id="d1", entry=7)
        yield at, made


@needs_chromium
@pytest.mark.parametrize("width", [320, 400, 761, 1200])
@pytest.mark.parametrize("trust", ["local", "central"])
def test_nothing_sticks_out(page, width, trust, tmp_path):
    at, made = page
    if trust == "central":
        at.start(make_central(run_id="secret"), run_id="secret", cohort=4, min_updates=1)
        at.finish_round(run_id="secret")
    found = measured(made.ask()[1], width, opened=False, folder=tmp_path)
    assert found["out"] == []
    assert found["scroll"] <= found["view"]
    assert found["height"] > 600


def complaints(address, folder):
    """What Chromium refuses of the page by its policy."""
    ran = subprocess.run(
        [CHROMIUM, *FLAGS, f"--user-data-dir={folder / 'profile'}", "--enable-logging=stderr",
         "--dump-dom", f"http://{address}/"],
        capture_output=True, text=True, timeout=120, check=True,
    )  # fmt: skip
    assert "The coordinator's state" in ran.stdout
    return [line for line in ran.stderr.splitlines() if "Content Security Policy" in line]


@needs_chromium
def test_the_style_is_within_the_policy(page, tmp_path):
    assert complaints(page[1].server.address, tmp_path) == []


@needs_chromium
def test_a_style_that_is_not_would_be_seen(tmp_path, monkeypatch):
    monkeypatch.setattr("sordino.server.status.page.content_policy", lambda: "default-src 'none'")
    with operated(tmp_path / "fleet") as at, shown(at) as made:
        assert complaints(made.server.address, tmp_path)
