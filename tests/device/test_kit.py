"""The device kit: rehearsed at the size of a test, and on a GPU by ``pytest -m gpu tests/device``."""

from pathlib import Path

import kit
import pytest
import torch


@pytest.mark.slow
def test_the_kit_finds_nothing_wrong_on_a_cpu(tmp_path: Path) -> None:
    found = kit.main(["--device", "cpu", "--tiny", "--out", str(tmp_path)])
    assert found["failed"] == []
    for detector in kit.detectors():
        assert found[f"{detector.__name__}: largest difference of resumed weights"] == 0
        assert found[f"{detector.__name__} 32-true: largest difference to films read anew"] == 0
    pieces = sorted(tmp_path.glob("state.*"))
    assert all(piece.stat().st_size < 16 * 10**6 for piece in pieces)
    (tmp_path / "last.ckpt").write_bytes(b"".join(piece.read_bytes() for piece in pieces))
    assert "state_dict" in torch.load(tmp_path / "last.ckpt", weights_only=False)


@pytest.mark.gpu
def test_the_kit_finds_nothing_wrong_on_a_gpu(tmp_path: Path) -> None:
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    assert kit.main(["--out", str(tmp_path), "--parts", "ab"])["failed"] == []
