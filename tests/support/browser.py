"""A page in a headless Chromium: how wide it is, and what of it sticks out."""

import html
import json
import re
import shutil
import subprocess

import pytest

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


needs_chromium = pytest.mark.skipif(
    CHROMIUM is None, reason="needs Chromium: apt-get install chromium"
)
