"""The status page in a real browser, at the width of a desk and of a phone: run by hand with ``-m slow``.

``CXR_PICTURES=folder`` keeps pictures of it.
"""

import http.server
import json
import os
import re
import shutil
import subprocess
import threading
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np
import pytest
from archive import Archive, send, until
from drawn_films import write_dicom, write_png
from nodes import configuration, drawn_settings

from anomalib_cxr.deploy import ExportedDetector, commission
from anomalib_cxr.node.node import Node

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
pytestmark = [pytest.mark.slow, pytest.mark.skipif(BROWSER is None, reason="no chromium here")]

# The page lets no other frame it and runs nothing but its own: what stands between takes that rule away, to look.
LOOK = """<!DOCTYPE html><iframe id="page" src="{path}" width="{width}" height="844"></iframe>
<pre id="seen"></pre><script>
document.getElementById("page").onload = event => {{
  const page = event.target.contentDocument, root = page.documentElement;
  const slider = page.getElementById("strength"), map = page.getElementById("map");
  if (slider) {{ slider.value = 25; slider.dispatchEvent(new Event("input")); }}
  document.getElementById("seen").textContent = JSON.stringify({{
    width: root.clientWidth, needed: root.scrollWidth, images: page.images.length,
    broken: [...page.images].filter(image => !image.naturalWidth).length,
    small: [...page.querySelectorAll("td, p, th, a")].filter(e => parseFloat(getComputedStyle(e).fontSize) < 12).length,
    opacity: map && map.style.opacity, scripts: page.scripts.length,
    over: map && JSON.stringify(map.getBoundingClientRect()) ===
      JSON.stringify(page.querySelector(".film img").getBoundingClientRect()),
  }});
}};
</script>"""


@pytest.fixture(scope="module")
def node(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Node]:
    """Twelve films with bright spots, at a site of forty."""
    folder = tmp_path_factory.mktemp("browser")
    settings = drawn_settings(folder)
    rng = np.random.default_rng(0)
    y, x = np.mgrid[-1:1:500j, -1:1:420j]
    chest = (0.62 - 0.45 * (np.exp(-(((np.abs(x) - 0.42) / 0.25) ** 2) - (y / 0.6) ** 2))).astype(np.float32)

    def film(spot: float) -> np.ndarray:
        at = rng.uniform(-0.5, 0.5, 2)
        bright = spot * np.exp(-(((x - at[0]) / 0.15) ** 2) - ((y - at[1]) / 0.15) ** 2)
        return np.clip(chest * rng.uniform(0.85, 1.0) + bright, 0, 1).astype(np.float32)

    for number in range(40):
        write_png(folder / "normal" / f"{number}.png", film(0))
    model = folder / "model" / "model.onnx"
    commission(ExportedDetector(model), folder / "normal", progress=False).save(folder / "site.json")
    names = ["Müller^Jürgen", '<script>alert("x")</script>', "Ωmega^Anna", "Wolfeschlegelsteinhausenbergerdorff^Hubert"]
    films = [
        write_dicom(
            folder / f"{number}.dcm", film(0.04 * number), PatientName=names[number % 4], PatientID=f"77{number:03d}",
            SpecificCharacterSet="ISO_IR 192",
        )
        for number in range(12)
    ]  # fmt: skip
    films.append(write_dicom(folder / "broken.dcm", film(0), Rows=65535, Columns=65535))
    models = [settings["models"][0] | {"site": "site.json"}]
    with Archive() as archive:
        changes = {"page": {"port": 0}, "models": models, "destinations": [archive.settings()]}
        node = Node(configuration(folder, settings | changes))
        send(node.receiver.port, *films)
        until(lambda: node.journal.counts()["sent"] == 12 and node.journal.counts()["failed"] == 1, 60)
        yield node
        node.stop()


def browse(url: str, folder: Path, *options: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [str(BROWSER), "--headless", "--no-sandbox", "--disable-gpu", "--enable-logging=stderr", "--hide-scrollbars",
         "--virtual-time-budget=5000", f"--user-data-dir={folder / 'profile'}", *options, url],
        capture_output=True, text=True, timeout=120, check=True,
    )  # fmt: skip


@pytest.mark.parametrize("path", ["/", "/worklist", "/film/12"])
@pytest.mark.parametrize("width", [390, 1280])
def test_a_browser_shows_it_whole(node: Node, tmp_path: Path, width: int, path: str) -> None:
    assert node.page is not None
    port = node.page.port

    class Between(http.server.BaseHTTPRequestHandler):
        def log_message(self, *_: object) -> None:
            pass

        def do_GET(self) -> None:
            if self.path == "/look":
                kind, content = "text/html", LOOK.format(width=width, path=path).encode()
            else:
                with urllib.request.urlopen(f"http://127.0.0.1:{port}{self.path}") as answer:
                    kind, content = answer.headers["Content-Type"], answer.read()
            self.send_response(200)
            self.send_header("Content-Type", kind)
            self.end_headers()
            self.wfile.write(content)

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Between) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        done = browse(f"http://127.0.0.1:{server.server_address[1]}/look", tmp_path, "--dump-dom")
        server.shutdown()
    seen = json.loads(re.search(r'<pre id="seen">(.*?)</pre>', done.stdout)[1])  # type: ignore[index]
    assert seen["needed"] <= seen["width"] <= width
    assert seen["broken"] == 0
    assert seen["small"] == 0
    assert seen["images"] == {"/": 0, "/worklist": 12, "/film/12": 2}[path]
    assert seen["scripts"] == (path == "/film/12")
    if path == "/film/12":
        assert seen["opacity"] == "0.25"
        assert seen["over"]


@pytest.mark.parametrize("path", ["/", "/worklist", "/film/12"])
def test_its_own_rules_allow_what_it_needs(node: Node, tmp_path: Path, path: str) -> None:
    assert node.page is not None
    picture = tmp_path / "page.png"
    for width in (1280, 500):  # a window is no narrower
        done = browse(
            f"http://127.0.0.1:{node.page.port}{path}", tmp_path, f"--window-size={width},1000",
            f"--screenshot={picture}",
        )  # fmt: skip
        complaints = [line for line in done.stderr.splitlines() if "CONSOLE" in line and "favicon" not in line]
        assert not complaints
        shown = cv2.imread(str(picture))
        assert shown.std() > 5
        if folder := os.environ.get("CXR_PICTURES"):
            name = path.strip("/").replace("/", "-") or "overview"
            shutil.copy(picture, Path(folder) / f"{name}-{width}.png")
