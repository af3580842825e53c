"""``import anomalib_cxr`` offers what people use, loads nothing for it, and says the same to type checkers."""

import ast
import inspect
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest

import anomalib_cxr

HEAVY = ("torch", "lightning", "anomalib", "numpy", "typing")


def loaded(code: str) -> list[str]:
    """Which heavy modules a process of its own has loaded after the code; without the start-up hook's help."""
    code += f"\nimport sys; print(*[name for name in {HEAVY} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-S", "-c", f"import sys; sys.path[:0] = {sys.path!r}\n{code}"],
                          capture_output=True, text=True, check=False)  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout.split()


def test_import_and_dir_load_nothing() -> None:
    assert loaded("import anomalib_cxr") == []
    assert "torch" not in loaded("import anomalib_cxr; assert 'AnatPaste' in dir(anomalib_cxr)")


@pytest.mark.parametrize("name", ["ExportedDetector", "read_radiograph", "segment_lungs"])
def test_what_works_without_torch_is_had_without_torch(name: str) -> None:
    assert set(loaded(f"import anomalib_cxr; anomalib_cxr.{name}")) <= {"numpy", "typing"}


@pytest.mark.parametrize("room", ["models", "data"])
def test_all_of_a_room_is_offered(room: str) -> None:
    module = import_module(f"anomalib_cxr.{room}")
    for name in module.__all__:
        assert getattr(anomalib_cxr, name) is getattr(module, name)
        assert name in dir(anomalib_cxr)


def test_rooms_are_reached_and_misspelt_names_are_not() -> None:
    from anomalib_cxr import models

    assert inspect.ismodule(models)
    with pytest.raises(AttributeError, match="anomalib_cxr' has no attribute 'AnatPast'"):
        anomalib_cxr.AnatPast  # noqa: B018
    with pytest.raises(ImportError, match="AnatPast"):
        from anomalib_cxr import AnatPast  # noqa: F401


@pytest.mark.parametrize("room", ["anatomy", "metrics"])
def test_a_room_that_loads_at_first_use_offers_what_it_names(room: str) -> None:
    module = import_module(f"anomalib_cxr.{room}")
    tree = ast.parse(Path(str(module.__file__)).read_text(encoding="utf-8"))
    homes = {
        alias.name: str(node.module)
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom) and str(node.module).startswith(f"anomalib_cxr.{room}.")
        for alias in node.names
    }
    assert sorted(homes) == sorted(module.__all__)
    assert set(homes) <= set(dir(module))
    for name, home in homes.items():
        assert getattr(module, name) is getattr(import_module(home), name)
    with pytest.raises(AttributeError, match=f"{room}' has no attribute 'ast'"):
        module.ast  # noqa: B018
