"""Models built by hand."""

from pathlib import Path

import pytest
from exported_by_hand import write_onnx, write_openvino


@pytest.fixture
def onnx_model(tmp_path: Path) -> Path:
    return write_onnx(tmp_path / "model")


@pytest.fixture
def openvino_model(tmp_path: Path) -> Path:
    return write_openvino(tmp_path / "model")
