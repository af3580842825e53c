"""The report in a real browser, at the width of a desk and of a phone: run by hand with ``-m slow``."""

import functools
import http.server
import json
import re
import shutil
import subprocess
import threading
from pathlib import Path

import pytest
from drawn_runs import two_runs

from anomalib_cxr.pipelines.report.evaluation import Bootstrap
from anomalib_cxr.pipelines.report.pipeline import make_report

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)

# The page may run nothing itself, so another one of the same origin looks into it.
LOOK = """<!DOCTYPE html><iframe id="page" src="report.html" width="{width}" height="844"></iframe>
<pre id="seen"></pre><script>
document.getElementById("page").onload = event => {{
  const page = event.target.contentDocument, root = page.documentElement;
  document.getElementById("seen").textContent = JSON.stringify({{
    width: root.clientWidth, needed: root.scrollWidth, runs: page.querySelectorAll("h2[id^=run-]").length,
    images: page.images.length, broken: [...page.images].filter(image => !image.naturalWidth).length,
    small: [...page.querySelectorAll("td, p, dd")].filter(e => parseFloat(getComputedStyle(e).fontSize) < 12).length,
  }});
}};
</script>"""


@pytest.mark.slow
@pytest.mark.skipif(BROWSER is None, reason="no chromium here")
@pytest.mark.parametrize("width", [390, 1280])
def test_a_browser_shows_it_whole_fetches_nothing_and_complains_of_nothing(tmp_path: Path, width: int) -> None:
    make_report([two_runs(tmp_path / "results")], tmp_path / "report.html", bootstrap=Bootstrap(draws=60))
    (tmp_path / "look.html").write_text(LOOK.format(width=width))
    asked: list[str] = []

    class Handler(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *_: object) -> None:
            asked.append(self.path)

    with http.server.ThreadingHTTPServer(
        ("127.0.0.1", 0), functools.partial(Handler, directory=str(tmp_path))
    ) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        options = ["--headless", "--no-sandbox", "--disable-gpu", "--enable-logging=stderr", "--dump-dom"]
        done = subprocess.run(
            [str(BROWSER), *options, "--virtual-time-budget=5000", f"--user-data-dir={tmp_path / 'profile'}",
             f"http://127.0.0.1:{server.server_address[1]}/look.html"],
            capture_output=True, text=True, timeout=120, check=True,
        )  # fmt: skip
        server.shutdown()
    seen = json.loads(re.search(r'<pre id="seen">(.*?)</pre>', done.stdout)[1])
    assert seen["runs"] == 2
    assert seen["images"] > 6
    assert seen["broken"] == 0
    assert seen["small"] == 0
    assert width - 20 <= seen["width"] <= width
    assert seen["needed"] == seen["width"], "the page is wider than the window"
    assert "CONSOLE" not in done.stderr, done.stderr
    assert set(asked) <= {"/look.html", "/report.html", "/favicon.ico"}
