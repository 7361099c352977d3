"""The report as a real browser shows it: nothing cut at 360 px, dark where the reader's system is, looks as approved.

Needs Chromium (`apt install chromium`). REPORT_PICTURES=write in the environment takes what the page looks like now
for right.
"""

import html
import json
import os
import pathlib
import re
import shutil
import subprocess

import numpy as np
import pytest
from PIL import Image
from test_report import results  # noqa: F401

from jaxalign.quickstart.report import write_report

BROWSER = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(BROWSER is None, reason="there is no Chromium here"),
]
PICTURES = pathlib.Path(__file__).parent / "pictures"
SCHEMES = {"light": [], "dark": ["--force-dark-mode"]}
# Elements that stand out of the window, or hold more than they show, and whose chart text is too small to read.
MEASURE = """<script>addEventListener("load", () => {
  const cut = [], width = document.documentElement.clientWidth;
  for (const e of document.querySelectorAll("body *")) {
    const box = e.getBoundingClientRect();
    if (box.right > width + 1 || box.left < -1) cut.push(e.tagName + " " + e.textContent.slice(0, 40));
    const hides = getComputedStyle(e).overflowX != "visible" && e.scrollWidth > e.clientWidth + 1;
    if (hides) cut.push("hidden " + e.tagName);
  }
  const sizes = [...document.querySelectorAll("svg text")].map(e => e.getBoundingClientRect().height);
  parent.postMessage({cut, width, sizes}, "*");
})</script>"""
FRAME = """<!DOCTYPE html><body style="margin:0"><iframe src="measured.html" width="{width}" height="9000"
style="border:0"></iframe><pre id="said"></pre><script>
onmessage = message => document.getElementById("said").textContent = JSON.stringify(message.data)</script>"""


def browse(folder: pathlib.Path, *arguments: str) -> str:
    command = [BROWSER, "--headless=new", "--no-sandbox", "--disable-gpu", "--hide-scrollbars"]
    command += ["--allow-file-access-from-files", f"--user-data-dir={folder / 'profile'}", *arguments]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=120, check=True).stdout


@pytest.fixture
def page(results, tmp_path):  # noqa: F811
    write_report(results, tmp_path / "report.html")
    return tmp_path


@pytest.mark.parametrize("width", [360, 800, 1280])
def test_nothing_is_cut(page, width):
    text = (page / "report.html").read_text("utf-8")
    text = re.sub(r'<meta http-equiv="Content-Security-Policy"[^>]*>', "", text)
    (page / "measured.html").write_text(text.replace("</body>", MEASURE + "</body>"), "utf-8")
    (page / "frame.html").write_text(FRAME.format(width=width), "utf-8")
    shown = browse(page, "--virtual-time-budget=5000", "--dump-dom", "frame.html")
    said = json.loads(html.unescape(re.search(r'<pre id="said">(.*?)</pre>', shown, re.DOTALL)[1]))
    assert said["width"] == width
    assert said["cut"] == []
    assert min(said["sizes"]) >= 10  # pixels


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("width", [360, 1280])
def test_it_looks_as_approved(page, width, scheme):
    (page / "measured.html").write_bytes((page / "report.html").read_bytes())
    (page / "frame.html").write_text(FRAME.format(width=width), "utf-8")
    browse(
        page, *SCHEMES[scheme], f"--window-size={max(width, 600)},4000", "--screenshot=now.png", "frame.html"
    )
    with Image.open(page / "now.png") as shot:
        # Small, so that fonts and versions of the browser do not matter, but what stands where does.
        now = shot.convert("RGB").crop((0, 0, width, 4000)).resize((width // 8, 500), Image.Resampling.BOX)
    path = PICTURES / f"report_{width}_{scheme}.png"
    if os.environ.get("REPORT_PICTURES") == "write":
        PICTURES.mkdir(exist_ok=True)
        now.save(path)
    with Image.open(path) as picture:
        before = np.asarray(picture.convert("RGB"), np.float64)
    after = np.asarray(now, np.float64)
    ground = np.median(after.reshape(-1, 3), axis=0).mean()
    assert ground > 240 if scheme == "light" else ground < 50
    # The first screen, where a change of fonts has not yet moved the lines far.
    assert np.abs(after - before)[:120].mean() < 12
    assert abs(after.mean() - before.mean()) < 6
