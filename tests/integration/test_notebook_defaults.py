"""In a notebook every detector trains with Anomalib's defaults, its progress bar among them."""

from pathlib import Path

import pytest

nbformat = pytest.importorskip("nbformat")
pytest.importorskip("ipykernel")

CELLS = [
    """
import inspect, sys
from pathlib import Path
sys.path.insert(0, {tests!r})
from anomalib.engine import Engine
from tiny_radiographs import TinyRadiographs
from anomalib_cxr import models

SMALL = dict(image_size=64, backbone="resnet10t", max_steps=2, steps_per_epoch=1, num_workers=0, visualizer=False,
             patch_sizes=[16, 32], feature_dim=4, pre_trained=False)
data, checkpoints, trained = TinyRadiographs(Path("data"), count=4), [], []
for name in sorted(models.__all__, key=lambda name: name == "Ensemble"):  # of those before
    cls = getattr(models, name)
    known = inspect.signature(cls).parameters
    arguments = {{key: value for key, value in SMALL.items() if key in known}}
    if name == "Ensemble":
        arguments["checkpoints"] = checkpoints
    engine = Engine()
    engine.train(cls(**arguments), datamodule=data)
    checkpoints.append(str(engine.best_model_path))
    bar = type(engine.trainer.progress_bar_callback).__mro__
    assert any(base.__name__ == "RichProgressBar" for base in bar), bar
    trained.append(name)
print(trained)
""",
]


def test_every_detector_trains_with_the_default_progress_bar(tmp_path: Path) -> None:
    from nbconvert.preprocessors import ExecutePreprocessor

    from anomalib_cxr import models

    notebook = nbformat.v4.new_notebook()
    notebook.cells = [nbformat.v4.new_code_cell(cell.format(tests=str(Path(__file__).parent))) for cell in CELLS]
    ExecutePreprocessor(timeout=900, kernel_name="python3").preprocess(notebook, {"metadata": {"path": str(tmp_path)}})
    printed = "".join(output.get("text", "") for output in notebook.cells[-1].outputs)
    assert all(f"'{name}'" in printed for name in models.__all__), printed
