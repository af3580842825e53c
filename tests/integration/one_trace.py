"""Export to ONNX and to OpenVINO from one trace, which takes most of the time: both are made from its graph."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch


@contextmanager
def one_trace() -> Iterator[None]:
    """Trace at the first export to ONNX in this block only; later ones, of the same model, get copies of its files."""
    trace, first = torch.onnx.export, list[Path]()

    def export(*args: Any, f: str, **kwargs: Any) -> Any:
        if not first:
            first.append(Path(f))
            program = trace(*args, f=f, **kwargs)
            for part in Path(f).parent.glob(f"{Path(f).name}*"):
                shutil.copy(part, f"{part}.traced")  # what is written into the file afterwards is not part of the trace
            return program
        assert Path(f).name == first[0].name, "the file of weights is named in the graph"
        for part in first[0].parent.glob("*.traced"):
            shutil.copy(part, Path(f).parent / part.stem)
        return None

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.onnx, "export", export)
        yield
    for part in first[0].parent.glob("*.traced") if first else ():
        part.unlink()
