"""The report in a real browser: nothing sticks out sideways, on a telephone or a desk."""

from pathlib import Path

import pytest
from support.browser import measured, needs_chromium
from support.ledgers import claimed
from support.sweeps import swept

from sordino.server.report import from_json, render_html
from sordino.sim.sweeps.page import render

pytestmark = pytest.mark.slow

REPORT = Path(__file__).parent.parent / "data" / "report.json"


@needs_chromium
@pytest.mark.parametrize("width", [320, 400, 761, 1200])
@pytest.mark.parametrize("opened", [False, True], ids=["closed", "opened"])
def test_nothing_sticks_out(width, opened, tmp_path):
    found = measured(render_html(from_json(REPORT.read_text("utf-8"))), width, opened, tmp_path)
    assert found["out"] == []
    assert found["scroll"] <= found["view"]
    assert found["empty"] == 0
    assert found["height"] > 1000


@needs_chromium
@pytest.mark.parametrize("width", [320, 1200])
def test_a_claim_and_its_curve_fit(width, tmp_path):
    page = render_html(from_json(REPORT.read_text("utf-8")), claimed(tmp_path))
    assert 'aria-labelledby="curve-title curve-desc"' in page
    found = measured(page, width, opened=True, folder=tmp_path)
    assert found["out"] == []
    assert found["scroll"] <= found["view"]
    assert found["empty"] == 0


@needs_chromium
@pytest.mark.parametrize("width", [320, 400, 1200])
def test_a_sweeps_page_fits(width, tmp_path):
    found = measured(render(swept(tmp_path)), width, opened=True, folder=tmp_path)
    assert found["out"] == []
    assert found["scroll"] <= found["view"]
    assert found["empty"] == 0


@needs_chromium
def test_the_measure_sees_what_sticks_out(tmp_path):
    page = render_html(from_json(REPORT.read_text("utf-8")))
    page = page.replace("</main>", '<div style="width:900px">wide</div></main>')
    found = measured(page, 400, opened=False, folder=tmp_path)
    assert found["scroll"] > found["view"]
    assert "DIV.null" in found["out"]
