"""The notebooks run from top to bottom, and are kept as they ran: with pictures, small, no paths of a machine."""

import os
import sys
from pathlib import Path
from typing import Any

import pytest

nbformat = pytest.importorskip("nbformat")
pytest.importorskip("nbconvert")
pytest.importorskip("ipykernel")

FOLDER = Path(__file__).parents[2] / "notebooks"
NOTEBOOKS = [
    "01_first_detector",
    "02_your_own_dataset",
    "03_compare_models",
    "04_padchest_multiresolution",
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


def execute(notebook: Any, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from nbconvert.preprocessors import ExecutePreprocessor

    # The command that notebooks call is that of this environment.
    monkeypatch.setenv("PATH", f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
    for cell in notebook.cells:
        if cell.cell_type == "code":
            cell.outputs, cell.execution_count = [], None
    ExecutePreprocessor(timeout=900, kernel_name="python3").preprocess(notebook, {"metadata": {"path": str(folder)}})


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_the_notebook_runs(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> None:
    if name == REAL:
        shared = request.getfixturevalue("shared")
        monkeypatch.setenv("ZHANGLAB", str(shared / "data" / "zhanglab"))
        monkeypatch.setenv("HF_HUB_OFFLINE", "1")
        monkeypatch.setenv("HF_HOME", str(shared / "hf_cache"))
    notebook = nbformat.read(FOLDER / f"{name}.ipynb", as_version=4)
    kept = pictures(notebook)
    execute(notebook, tmp_path, monkeypatch)
    assert pictures(notebook) == kept


def test_without_the_films_the_notebook_stops_with_a_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("ZHANGLAB", raising=False)
    monkeypatch.chdir(tmp_path)
    notebook = nbformat.read(FOLDER / f"{REAL}.ipynb", as_version=4)
    first = next(cell.source for cell in notebook.cells if cell.cell_type == "code")
    with pytest.raises(SystemExit, match="ZhangLab is not here: unpack it"):
        exec(first, {})
    assert not list(tmp_path.iterdir())
