"""Orthanc, a real archive, as a process of its own on loopback."""

import json
import shutil
import subprocess
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

from archive import free_port

_PLUGINS = ("/usr/share/orthanc/plugins", "/usr/lib/orthanc", "/usr/local/share/orthanc/plugins")
#: Sends each image that is no result to the node, as an archive routes.
_ROUTE = """
function OnStoredInstance(id, tags, metadata, origin)
  if tags["Modality"] == "DX" then SendToModality(id, "node") end
end
"""


def dicomweb_plugin() -> Path | None:
    """Orthanc's DICOMweb plugin, if it is installed."""
    found = [path for folder in _PLUGINS for path in Path(folder).glob("libOrthancDicomWeb*.so*")]
    return found[0] if found else None


def is_installed() -> bool:
    return shutil.which("Orthanc") is not None


class Orthanc:
    """A running archive.

    Args:
        folder: Where it keeps what it has.
        node_port: Port of the node.
        route: Whether it sends films to the node.
    """

    def __init__(self, folder: Path, node_port: int, route: bool = False) -> None:
        self.http, self.dicom = free_port(), free_port()
        folder.mkdir()
        (folder / "route.lua").write_text(_ROUTE)
        plugin = dicomweb_plugin()
        settings = {
            "Name": "test", "StorageDirectory": str(folder / "db"), "IndexDirectory": str(folder / "db"),
            "HttpPort": self.http, "DicomPort": self.dicom, "DicomAet": "ORTHANC", "RemoteAccessAllowed": False,
            "DicomAlwaysAllowFind": True,
            "DicomModalities": {"node": ["NODE", "127.0.0.1", node_port]},
            "LuaScripts": [str(folder / "route.lua")] if route else [],
            "Plugins": [str(plugin)] if plugin else [], "DicomWeb": {"Enable": True, "Root": "/dicom-web/"},
        }  # fmt: skip
        self._settings = folder / "orthanc.json"
        self._settings.write_text(json.dumps(settings))
        self._log = folder / "log"
        self.start()

    def start(self) -> None:
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(["Orthanc", str(self._settings)], stdout=log, stderr=log)
        end = time.monotonic() + 60
        while True:
            try:
                self.get("/system")
                return
            except (urllib.error.URLError, ConnectionError):
                assert self._process.poll() is None, self._log.read_text()
                assert time.monotonic() < end, self._log.read_text()
                time.sleep(0.1)

    def stop(self) -> None:
        self._process.terminate()
        self._process.wait(60)

    def get(self, path: str) -> Any:
        with urllib.request.urlopen(f"http://127.0.0.1:{self.http}{path}", timeout=20) as answer:
            return json.loads(answer.read())

    def file(self, instance: str) -> bytes:
        with urllib.request.urlopen(f"http://127.0.0.1:{self.http}/instances/{instance}/file", timeout=20) as answer:
            return bytes(answer.read())

    def settings(self) -> dict:
        """As a destination by C-STORE."""
        return {"name": "orthanc", "ae_title": "ORTHANC", "host": "127.0.0.1", "port": self.dicom}
