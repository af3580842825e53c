"""The notebooks run from top to bottom, and are kept as they ran: with pictures, small, no paths of a machine."""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

nbformat = pytest.importorskip("nbformat")
pytest.importorskip("nbconvert")
pytest.importorskip("ipykernel")

from jupyter_client.manager import KernelManager  # noqa: E402
from nbclient import NotebookClient  # noqa: E402

FOLDER = Path(__file__).parents[2] / "notebooks"
NOTEBOOKS = [
    "01_first_detector",
    "02_your_own_dataset",
    "03_compare_models",
    "04_padchest_multiresolution",
    "05_from_autoencoder_to_patches",
    "06_real_films",
]
#: Runs on films that are not in the repository.
REAL = "06_real_films"


def outputs(notebook: Any) -> list[Any]:
    return [output for cell in notebook.cells if cell.cell_type == "code" for output in cell.outputs]


def pictures(notebook: Any) -> int:
    return sum(any(kind.startswith("image/") for kind in output.get("data", {})) for output in outputs(notebook))


def test_every_notebook_is_tested() -> None:
    assert sorted(path.stem for path in FOLDER.glob("*.ipynb")) == NOTEBOOKS


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_kept_outputs_are_whole_and_small(name: str) -> None:
    path = FOLDER / f"{name}.ipynb"
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    counts = [cell.execution_count for cell in notebook.cells if cell.cell_type == "code"]
    assert counts == list(range(1, len(counts) + 1)), "not run from top to bottom"
    assert pictures(notebook) >= 2
    assert not [output for output in outputs(notebook) if output.output_type == "error"]
    assert path.stat().st_size < (400_000 if name == REAL else 500_000)
    kept = "".join(str({k: v for k, v in o.get("data", {}).items() if "image" not in k}) for o in outputs(notebook))
    kept += "".join(output.get("text", "") for output in outputs(notebook))
    for place in ("/tmp/", "/home/", "/root/", "/Users/"):
        assert place not in kept


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_settings_are_the_default_ones_and_helpers_are_in_the_package(name: str) -> None:
    notebook = nbformat.read(FOLDER / f"{name}.ipynb", as_version=4)
    source = "\n".join(cell.source for cell in notebook.cells if cell.cell_type == "code")
    assert source.count("Engine(") == source.count("Engine()")
    assert "def show" not in source


#: What the gate shortens, in each notebook's own words; as they are kept, all of them run by ``-m slow``.
SHORTER = {
    "01_first_detector": {
        "num_train=120": "num_train=24",
        "val_per_class=25": "val_per_class=6",
        "test_per_class=40": "test_per_class=10",
        "max_steps=160, steps_per_epoch=80": "max_steps=4, steps_per_epoch=2",
    },
    "02_your_own_dataset": {"max_steps=20": "max_steps=2"},
    "03_compare_models": {
        '"num_train": 100': '"num_train": 24',
        '"val_per_class": 20': '"val_per_class": 6',
        '"test_per_class": 40': '"test_per_class": 10',
        '"max_steps": 60': '"max_steps": 2',
        '"steps_per_epoch": 60': '"steps_per_epoch": 2',
        "draws=500": "draws=50",
        "--draws 500": "--draws 50",
    },
    "04_padchest_multiresolution": {"max_steps=20": "max_steps=2"},
    "05_from_autoencoder_to_patches": {
        "num_train=160": "num_train=24",
        "val_per_class=15": "val_per_class=6",
        "test_per_class=40": "test_per_class=10",
        '"max_steps": 200, "steps_per_epoch": 200': '"max_steps": 2, "steps_per_epoch": 2',
        "max_steps=45, steps_per_epoch=45": "max_steps=2, steps_per_epoch=2",
    },
    "06_real_films": {"fraction=0.25": "fraction=0.05"},
}


def shorten(notebook: Any, name: str) -> None:
    for long, short in SHORTER[name].items():
        cells = [cell for cell in notebook.cells if cell.cell_type == "code" and long in cell.source]
        assert cells, f"{name} no longer says {long!r}"
        for cell in cells:
            cell.source = cell.source.replace(long, short)


@contextmanager
def started_kernel() -> Iterator[KernelManager]:
    """A kernel that finds this environment's commands, the real films, and weights without a download."""
    shared = Path(os.environ["CXR_SHARED"])
    manager = KernelManager(kernel_name="python3")
    manager.start_kernel(
        env=os.environ
        | {"PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}
        | {"ZHANGLAB": str(shared / "data" / "zhanglab"), "HF_HOME": str(shared / "hf_cache"), "HF_HUB_OFFLINE": "1"}
    )
    try:
        yield manager
    finally:
        manager.shutdown_kernel(now=True)


@pytest.fixture(scope="module")
def kernel() -> Iterator[KernelManager]:
    """One for all notebooks, since each would take long to load torch."""
    with started_kernel() as kernel:
        yield kernel


@pytest.fixture
def notebook(name: str, request: pytest.FixtureRequest) -> Any:
    if name == REAL:
        request.getfixturevalue("shared")
    return nbformat.read(FOLDER / f"{name}.ipynb", as_version=4)


def run(notebook: Any, folder: Path, kernel: KernelManager) -> None:
    """Run a notebook in a folder; what others have named in the kernel is gone."""
    for cell in notebook.cells:
        if cell.cell_type == "code":
            cell.outputs, cell.execution_count = [], None
    # The folder of the one before is gone, and nothing works in a folder that is.
    notebook.cells.insert(0, nbformat.v4.new_code_cell(f"import os\nos.chdir({str(folder)!r})\n%reset -f"))
    client = NotebookClient(notebook, km=kernel, timeout=900)
    with client.setup_kernel():
        for index, cell in enumerate(notebook.cells):
            client.execute_cell(cell, index)
        client.kc.stop_channels()
    del notebook.cells[0]


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_the_notebook_runs(name: str, notebook: Any, tmp_path: Path, kernel: KernelManager) -> None:
    kept = pictures(notebook)
    shorten(notebook, name)
    run(notebook, tmp_path, kernel)
    assert pictures(notebook) == kept


@pytest.mark.slow
@pytest.mark.parametrize("name", NOTEBOOKS)
def test_the_notebook_runs_as_it_is_kept(name: str, notebook: Any, tmp_path: Path) -> None:
    kept = pictures(notebook)
    with started_kernel() as kernel:
        run(notebook, tmp_path, kernel)
    assert pictures(notebook) == kept


def test_without_the_films_the_notebook_stops_with_a_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("ZHANGLAB", raising=False)
    monkeypatch.chdir(tmp_path)
    notebook = nbformat.read(FOLDER / f"{REAL}.ipynb", as_version=4)
    first = next(cell.source for cell in notebook.cells if cell.cell_type == "code")
    with pytest.raises(SystemExit, match="ZhangLab is not here: unpack it"):
        exec(first, {})
    assert not list(tmp_path.iterdir())


#: In a notebook every detector trains with Anomalib's defaults, its progress bar among them.
DEFAULTS = """
import inspect, sys
from pathlib import Path
sys.path.insert(0, {tests!r})
from anomalib.engine import Engine
from tiny_radiographs import TinyRadiographs
from anomalib_cxr import models

SMALL = dict(image_size=64, backbone="resnet10t", max_steps=2, steps_per_epoch=1, num_workers=0, visualizer=False,
             patch_sizes=[32], feature_dim=4, pre_trained=False)
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
"""


def test_every_detector_trains_with_the_default_progress_bar(tmp_path: Path, kernel: KernelManager) -> None:
    from anomalib_cxr import models

    cell = nbformat.v4.new_code_cell(DEFAULTS.format(tests=str(Path(__file__).parent)))
    notebook = nbformat.v4.new_notebook(cells=[cell])
    run(notebook, tmp_path, kernel)
    printed = "".join(output.get("text", "") for output in outputs(notebook))
    assert all(f"'{name}'" in printed for name in models.__all__), printed
