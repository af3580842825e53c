"""Every command and Python block that a document marks as runnable runs, as it stands there.

They run in one folder, the README's first, since the documents go on from its run; each in a process of its own. The
folder has the configurations, and a film as DICOM and as PNG.
"""

import os
import subprocess
import sys
from pathlib import Path

import documents
import numpy as np
import pytest

from anomalib_cxr.data.phantom import render_phantom

BLOCKS = [block for path in documents.documents() for block in documents.runnable_blocks(path)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the blocks run."""
    pydicom = pytest.importorskip("pydicom")
    pytest.importorskip("onnxscript")
    pytest.importorskip("onnxruntime")
    cv2 = pytest.importorskip("cv2")
    folder = tmp_path_factory.mktemp("documents")
    (folder / "configs").symlink_to(documents.ROOT / "configs")
    (folder / "films").mkdir()
    film = np.round(render_phantom(256, seed=9, index=0, lesion="nodule").image * 4095).astype("<u2")
    cv2.imwrite(str(folder / "films" / "chest.png"), film * 16)
    data = pydicom.Dataset()
    data.SOPClassUID, data.SOPInstanceUID = "1.2.840.10008.5.1.4.1.1.1.1", pydicom.uid.generate_uid()
    data.StudyInstanceUID, data.SeriesInstanceUID = pydicom.uid.generate_uid(), pydicom.uid.generate_uid()
    data.PatientID, data.Modality = "drawn", "DX"
    data.Rows, data.Columns, data.SamplesPerPixel, data.PixelRepresentation = *film.shape, 1, 0
    data.PhotometricInterpretation, data.BitsAllocated, data.BitsStored, data.HighBit = "MONOCHROME2", 16, 12, 11
    data.PixelData = film.tobytes()
    data.file_meta = pydicom.dataset.FileMetaDataset()
    data.file_meta.TransferSyntaxUID = pydicom.uid.ExplicitVRLittleEndian
    data.save_as(folder / "films" / "chest.dcm", enforce_file_format=True)
    return folder


def test_the_documents_mark_python_and_commands() -> None:
    assert {block.language for block in BLOCKS} == {"python", "bash"}
    assert BLOCKS[0].place.startswith("README.md:"), "the others go on from its run"


def test_the_first_example_is_six_lines_long() -> None:
    lines = [line for line in BLOCKS[0].text.splitlines() if line]
    assert BLOCKS[0].language == "python"
    assert len(lines) == 6


@pytest.mark.parametrize("block", BLOCKS, ids=[block.place for block in BLOCKS])
def test_the_block_runs(block: documents.Block, folder: Path) -> None:
    if block is not BLOCKS[0] and not (folder / "results").is_dir():
        pytest.skip(f"goes on from {BLOCKS[0].place}, which did not run")
    command = [sys.executable, "-c", block.text] if block.language == "python" else ["bash", "-euc", block.text]
    # The commands are those of this environment.
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    done = subprocess.run(
        command, cwd=folder, env=os.environ | {"PATH": path}, capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, f"{block.place} ends with status {done.returncode}:\n{done.stdout}\n{done.stderr}"
