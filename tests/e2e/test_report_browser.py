"""The report in a real browser: nothing sticks out sideways, on a telephone or a desk."""

import html
import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest
from support.ledgers import claimed

from sordino.server.report import from_json, render_html

pytestmark = pytest.mark.slow

REPORT = Path(__file__).parent.parent / "data" / "report.json"
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser"))), None)
FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--disable-sync",
    "--disable-background-networking",
    "--disable-component-update",
    "--no-first-run",
    "--virtual-time-budget=4000",
)

# The report stays as it is and in a frame; the page around it, of the same origin, measures it.
PROBE = """<!doctype html><meta charset="utf-8">
<iframe width="{width}" height="900" style="border:0" srcdoc="{page}"></iframe>
<pre id="found"></pre>
<script>
addEventListener("load", () => {{
  const page = document.querySelector("iframe").contentDocument;
  for (const one of page.querySelectorAll("details")) one.open = {opened};
  const out = [...page.querySelectorAll("body *")].filter(one =>
    !one.closest(".scroll") && one.getBoundingClientRect().right > {width} + 0.5);
  document.querySelector("#found").textContent = JSON.stringify({{
    scroll: page.documentElement.scrollWidth,
    view: page.documentElement.clientWidth,
    height: page.documentElement.scrollHeight,
    out: out.map(one => one.tagName + "." + one.getAttribute("class")),
    empty: [...page.querySelectorAll("svg")].filter(one => !one.getBBox().width).length,
  }});
}});
</script>"""


def measured(page, width, opened, folder):
    probe = folder / "probe.html"
    probe.write_text(
        PROBE.format(width=width, page=html.escape(page), opened=json.dumps(opened)),
        encoding="utf-8",
    )
    done = subprocess.run(
        [CHROMIUM, *FLAGS, f"--user-data-dir={folder / 'profile'}", "--window-size=1400,1000",
         "--dump-dom", probe.as_uri()],
        capture_output=True, text=True, timeout=120, check=True,
    )  # fmt: skip
    return json.loads(html.unescape(re.search(r'<pre id="found">([^<]+)</pre>', done.stdout)[1]))


@pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium: apt-get install chromium")
@pytest.mark.parametrize("width", [320, 400, 761, 1200])
@pytest.mark.parametrize("opened", [False, True], ids=["closed", "opened"])
def test_nothing_sticks_out(width, opened, tmp_path):
    found = measured(render_html(from_json(REPORT.read_text("utf-8"))), width, opened, tmp_path)
    assert found["out"] == []
    assert found["scroll"] <= found["view"]
    assert found["empty"] == 0
    assert found["height"] > 1000


@pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium: apt-get install chromium")
@pytest.mark.parametrize("width", [320, 1200])
def test_a_claim_and_its_curve_fit(width, tmp_path):
    page = render_html(from_json(REPORT.read_text("utf-8")), claimed(tmp_path))
    assert 'aria-labelledby="curve-title curve-desc"' in page
    found = measured(page, width, opened=True, folder=tmp_path)
    assert found["out"] == []
    assert found["scroll"] <= found["view"]
    assert found["empty"] == 0


@pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium: apt-get install chromium")
def test_the_measure_sees_what_sticks_out(tmp_path):
    page = render_html(from_json(REPORT.read_text("utf-8")))
    page = page.replace("</main>", '<div style="width:900px">wide</div></main>')
    found = measured(page, 400, opened=False, folder=tmp_path)
    assert found["scroll"] > found["view"]
    assert "DIV.null" in found["out"]
