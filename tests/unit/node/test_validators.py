"""Every kind of object before independent readers, dicom3tools and dcmtk: run by hand with ``-m slow``."""

import shutil
import subprocess
from pathlib import Path

import pytest
from drawn_films import ramp
from test_results import Find, find  # noqa: F401  # the fixture

from anomalib_cxr.node.results import MAKERS


def said(*command: str | Path) -> list[str]:
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True, check=False)
    return (done.stdout + done.stderr).splitlines()


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("dciodvfy") is None, reason="no dciodvfy here")
@pytest.mark.parametrize("kind", list(MAKERS))
def test_dciodvfy_finds_no_error(find: Find, kind: str, tmp_path: Path) -> None:  # noqa: F811
    image = ramp(80, 72, 0.1, 0.3)
    image[20:40, 30:50] = 0.9
    made = MAKERS[kind](find(image))  # type: ignore[index]
    assert made is not None
    path = tmp_path / f"{kind}.dcm"
    made.save_as(path, enforce_file_format=True)
    print("\n".join(said("dciodvfy", path)))
    assert not [line for line in said("dciodvfy", path) if line.startswith("Error")]
