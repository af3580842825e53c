"""The stock command and Anomalib's own functions know us, in processes with nothing imported by hand."""

import json
import os
import subprocess
import sys
import sysconfig
import time
from importlib.util import find_spec
from pathlib import Path

import pytest
import yaml
from warm_python import run_python

REPOSITORY = Path(__file__).resolve().parents[2]
SCRIPTS = Path(sysconfig.get_path("scripts"))
PHANTOM = {
    "num_train": 8,
    "val_per_class": 3,
    "test_per_class": 3,
    "image_size": 64,
    "num_workers": 0,
    "train_batch_size": 4,
}
TINY_MODEL = {"image_size": 64, "max_steps": 2, "steps_per_epoch": 2, "num_workers": 0, "backbone": "resnet10t"}


def _run(*command: str, cwd: Path, **environment: str) -> subprocess.CompletedProcess:
    env = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore"} | environment
    return subprocess.run(command, cwd=cwd, env=env, capture_output=True, text=True, timeout=600, check=False)


def _anomalib(*arguments: str, cwd: Path) -> subprocess.CompletedProcess:
    return run_python([str(SCRIPTS / "anomalib"), *arguments], cwd, PYTHONWARNINGS="ignore")


def _python(code: str, cwd: Path, **environment: str) -> dict:
    if environment:
        done = _run(sys.executable, "-c", code, cwd=cwd, **environment)
    else:
        done = run_python(["-c", code], cwd, PYTHONWARNINGS="ignore")
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.strip().splitlines()[-1])


def _arguments(prefix: str, values: dict) -> list[str]:
    return [text for key, value in values.items() for text in (f"--{prefix}.{key}", str(value))]


READERS = """
import importlib, json, sys
READERS = [
    ("anomalib.data.predict", "get_image_filenames"),
    ("anomalib.data.predict", "read_image"),
    ("anomalib.deploy.inferencers.torch_inferencer", "read_image"),
    ("anomalib.deploy.inferencers.openvino_inferencer", "read_image"),
    ("anomalib.visualization.image.visualizer", "generate_output_filename"),
]
"""

LOOK_UP = """
from anomalib.cli.pipelines import PIPELINE_REGISTRY
from anomalib.models import get_model, UnknownModelError
from anomalib.data import get_datamodule, UnknownDatamoduleError
def attempt(function, *arguments):
    try:
        return type(function(*arguments)).__module__
    except (UnknownModelError, UnknownDatamoduleError) as error:
        return type(error).__name__
print(json.dumps([
    attempt(get_model, "anat_paste"),
    attempt(get_model, {"class_path": "AnatPaste"}),
    attempt(get_model, {"class_path": "anomalib_cxr.models.AnatPaste", "init_args": {"max_steps": 3}}),
    attempt(get_datamodule, {"class_path": "PhantomCXR"}),
    attempt(get_datamodule, {"class_path": "anomalib_cxr.data.PhantomCXR"}),
    attempt(get_model, {"class_path": "Padim", "init_args": {"pre_trained": False}}),
    [hasattr(getattr(importlib.import_module(module), name), "__wrapped__") for module, name in READERS],
    sorted(PIPELINE_REGISTRY),
]))
"""

BY_HAND = """
sys.meta_path[:] = [finder for finder in sys.meta_path if getattr(finder, "__module__", "") != "_anomalib_cxr_hook"]
import anomalib.data, anomalib.models
from anomalib.cli.pipelines import PIPELINE_REGISTRY
def state():
    readers = [id(getattr(importlib.import_module(module), name)) for module, name in READERS]
    return [readers, sorted(PIPELINE_REGISTRY), hasattr(anomalib.models, "AnatPaste"), hasattr(anomalib.data, "RSNA")]
states = [state()]
from anomalib_cxr import plugin
for change in (plugin.register, plugin.register, plugin.unregister):
    change()
    states.append(state())
print(json.dumps(states))
"""


def test_models_and_datamodules_are_found_by_name(tmp_path: Path) -> None:
    model, data = "anomalib_cxr.models.anat_paste.lightning_model", "anomalib_cxr.data.phantom_cxr"
    found = _python(READERS + LOOK_UP, tmp_path)
    assert found[:5] == [model, model, model, data, data]
    assert found[6] == [True] * 5
    assert "cross-validate" in found[7]


# What typeguard's hook does: in front of all finders, and asking only Python's own.
INSTRUMENTED = """
import importlib.machinery, sys
class Loader(importlib.machinery.SourceFileLoader):
    instrumented = set()
    def exec_module(self, module):
        Loader.instrumented.add(module.__name__)
        super().exec_module(module)
class Finder:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] not in {"anomalib", "anomalib_cxr"}:
            return None
        spec = importlib.machinery.PathFinder.find_spec(name, path, target)
        if spec is not None and isinstance(spec.loader, importlib.machinery.SourceFileLoader):
            spec.loader = Loader(spec.loader.name, spec.loader.path)
            return spec
sys.meta_path.insert(0, Finder())
"""
WITH_TYPEGUARD = """
import typeguard
typeguard.install_import_hook(["anomalib_cxr"])  # Anomalib itself does not pass its checks
"""


def test_import_hooks_of_others_keep_nothing_from_registering(tmp_path: Path) -> None:
    listed = READERS + LOOK_UP
    plain = _python(listed, tmp_path)
    assert _python(INSTRUMENTED + listed, tmp_path) == plain
    seen = "print(json.dumps(sorted({'anomalib.models', 'anomalib.data', 'anomalib_cxr.data'} - Loader.instrumented)))"
    assert _python(f"{INSTRUMENTED}\nimport json, anomalib.models, anomalib.data\n{seen}", tmp_path) == []


@pytest.mark.skipif(find_spec("typeguard") is None, reason="typeguard is not installed")
def test_under_typeguard_all_is_registered(tmp_path: Path) -> None:
    assert _python(WITH_TYPEGUARD + READERS + LOOK_UP, tmp_path) == _python(READERS + LOOK_UP, tmp_path)


def test_off_switch_leaves_anomalib_as_it_is(tmp_path: Path) -> None:
    found = _python(READERS + LOOK_UP, tmp_path, ANOMALIB_CXR_PLUGIN="0")
    assert found[:3] == ["UnknownModelError"] * 3
    assert found[3:5] == ["UnknownDatamoduleError"] * 2
    assert found[5].startswith("anomalib.models.image.padim")
    assert found[6] == [False] * 5
    assert found[7] == ["benchmark"]


def test_by_hand_it_registers_once_and_takes_all_back(tmp_path: Path) -> None:
    stock, once, twice, back = _python(READERS + BY_HAND, tmp_path)
    assert stock[1:] == [["benchmark"], False, False]
    assert once[2:] == [True, True]
    assert "cross-validate" in once[1]
    assert not set(stock[0]) & set(once[0])
    assert twice == once
    assert back == stock


def test_nothing_is_imported_at_start_up_and_a_broken_plugin_only_warns(tmp_path: Path) -> None:
    loaded = _python("import sys, json; print(json.dumps(sorted(sys.modules)))", tmp_path, COLUMNS="80")
    assert "_anomalib_cxr_hook" in loaded
    assert not [name for name in loaded if name.split(".")[0] in {"anomalib", "anomalib_cxr", "torch", "lightning"}]
    (tmp_path / "anomalib_cxr").mkdir()
    (tmp_path / "anomalib_cxr" / "__init__.py").write_text("raise RuntimeError('broken on purpose')")
    done = _run(sys.executable, "-W", "default", "-c", "import anomalib.models; print('alive')", cwd=tmp_path)
    assert done.stdout.strip().endswith("alive")
    assert "could not register with anomalib.models (RuntimeError: broken on purpose)" in done.stderr.replace("\n", "")


def test_the_start_up_line_takes_as_long_as_a_few_small_imports(monkeypatch: pytest.MonkeyPatch) -> None:
    folder = REPOSITORY / "anomalib_cxr" / "_startup"
    line = compile((folder / "anomalib_cxr.pth").read_text(), "anomalib_cxr.pth", "exec")
    monkeypatch.syspath_prepend(str(folder))
    monkeypatch.delenv("ANOMALIB_CXR_PLUGIN", raising=False)
    finders = sys.meta_path
    seconds: dict[str, list[float]] = {"_anomalib_cxr_hook": [], "numbers": []}
    for _ in range(300):
        for module, code in (("_anomalib_cxr_hook", line), ("numbers", "import numbers")):
            monkeypatch.delitem(sys.modules, module, raising=False)
            monkeypatch.setattr(sys, "meta_path", list(finders))
            start = time.perf_counter()
            exec(code, {})
            seconds[module].append(time.perf_counter() - start)
            if module == "_anomalib_cxr_hook":
                assert Path(sys.modules[module].__file__).parent == folder
                assert len(sys.meta_path) == len(finders) + 1
    # The shortest of each: whatever else the machine does can only lengthen the others. 0.6 ms on a slow core.
    assert min(seconds["_anomalib_cxr_hook"]) < 4 * min(seconds["numbers"])


@pytest.fixture(scope="module")
def two_runs(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """The same `anomalib train` twice, with bare names."""
    root = tmp_path_factory.mktemp("train")
    folders = []
    for name in ("first", "second"):
        arguments = ["--data.root", str(root / "phantom"), "--default_root_dir", str(root / name)]
        arguments += _arguments("model", TINY_MODEL) + _arguments("data", PHANTOM)
        done = _anomalib("train", "--model", "AnatPaste", "--data", "PhantomCXR", *arguments, cwd=root)
        assert done.returncode == 0, done.stderr[-3000:]
        assert "image_AUROC" in done.stdout
        folders.append(root / name / "AnatPaste" / "PhantomCXR" / "latest")
    return folders


def test_command_line_trains_and_draws_pictures(two_runs: list[Path]) -> None:
    from PIL import Image

    pictures = sorted((two_runs[0] / "images").rglob("*.png"))
    assert len(pictures) == 6  # 3 normal, 3 abnormal
    with Image.open(pictures[0]) as picture:
        assert picture.convert("L").getextrema()[1] > 200


def test_training_leaves_sheets_of_lungs_and_pasted_images(two_runs: list[Path]) -> None:
    import numpy as np
    from PIL import Image

    sheets = two_runs[0] / "sheets"
    outlined = np.asarray(Image.open(sheets / "region.png")).astype(int)
    assert (outlined.max(axis=2) - outlined.min(axis=2) > 100).sum() > 200  # coloured outlines on grey films
    originals, pasted, weights = np.array_split(
        np.asarray(Image.open(sheets / "pasted.png").convert("L")).astype(int), 3
    )
    n = min(len(originals), len(pasted))
    assert (abs(originals[:n] - pasted[:n]) > 20).mean() > 0.002
    assert 0.001 < (weights > 100).mean() < 0.3


def test_two_runs_agree_bit_for_bit(two_runs: list[Path]) -> None:
    import torch

    first, second = (torch.load(run / "weights/lightning/model.ckpt", weights_only=True) for run in two_runs)
    assert first["state_dict"].keys() == second["state_dict"].keys()
    assert all(torch.equal(first["state_dict"][key], second["state_dict"][key]) for key in first["state_dict"])


def test_stock_benchmark_runs_our_classes_bare_and_dotted(tmp_path: Path) -> None:
    data = {"class_path": "PhantomCXR", "init_args": PHANTOM | {"root": str(tmp_path / "phantom")}}
    config = {
        "accelerator": "cpu",
        "benchmark": {
            "seed": 0,
            "model": {
                "class_path": {"grid": ["AnatPaste", "anomalib_cxr.models.AnatPaste"]},
                "init_args": TINY_MODEL,
            },
            "data": data,
        },
    }
    (tmp_path / "benchmark.yaml").write_text(yaml.safe_dump(config))
    done = _anomalib("benchmark", "--config", "benchmark.yaml", cwd=tmp_path)
    assert done.returncode == 0, done.stderr[-3000:]
    printed = done.stdout + done.stderr
    assert printed.count("image_AUROC") >= 2, printed[-3000:]
    assert "Traceback" not in printed, printed[-3000:]


def test_prepare_fills_the_cache_and_names_what_it_cannot_read(tmp_path: Path) -> None:
    import numpy as np
    from PIL import Image

    for split, label in (
        ("train", "normal"),
        ("val", "normal"),
        ("val", "abnormal"),
        ("test", "normal"),
        ("test", "abnormal"),
    ):
        folder = tmp_path / "data" / split / label
        folder.mkdir(parents=True)
        for i in range(2):
            pixels = np.random.default_rng(i).integers(0, 255, (40, 40), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / f"{split}{label}{i}.png")
    broken = tmp_path / "data" / "train" / "normal" / "trainnormal0.png"
    broken.write_bytes(broken.read_bytes()[:60])
    arguments = ["--data", "RadiographTable", "--data.root", str(tmp_path / "data"), "--data.cache_size", "32"]
    arguments += ["--data.cache_dir", str(tmp_path / "cache"), "--data.num_workers", "0"]
    done = _anomalib("prepare", *arguments, cwd=tmp_path)
    assert done.returncode == 1, done.stderr[-3000:]
    assert "9 of 10 images are in the cache" in done.stdout
    assert "trainnormal0.png" in done.stdout + done.stderr
    assert any(path.is_file() for path in (tmp_path / "cache").rglob("*"))


@pytest.mark.parametrize("flags", [[], ["--editable"]], ids=["wheel", "editable"])
def test_install_brings_the_hook_and_uninstall_takes_it_away(tmp_path: Path, flags: list[str]) -> None:
    pytest.importorskip("hatchling")
    done = _run(sys.executable, "-m", "venv", "--system-site-packages", str(tmp_path / "env"), cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    python = str(tmp_path / "env" / "bin" / "python")
    site = next((tmp_path / "env" / "lib").glob("python*/site-packages"))
    before = {path.name for path in site.iterdir()}
    pip = [python, "-m", "pip"]
    installed = _run(
        *pip,
        *("install", "--no-deps", "--no-build-isolation", "--ignore-installed", *flags, str(REPOSITORY)),
        cwd=tmp_path,
        PYTHONPATH=os.pathsep.join(path for path in sys.path if path.endswith("site-packages")),
    )
    assert installed.returncode == 0, installed.stderr[-3000:]
    assert {"anomalib_cxr.pth", "_anomalib_cxr_hook.py"} <= {path.name for path in site.iterdir()}
    check = "import sys; print(any('_anomalib_cxr_hook' in repr(f) for f in sys.meta_path))"
    assert _run(python, "-c", check, cwd=tmp_path).stdout.strip() == "True"
    assert _run(python, "-c", check, cwd=tmp_path, ANOMALIB_CXR_PLUGIN="0").stdout.strip() == "False"
    assert _run(*pip, "uninstall", "-y", "anomalib-cxr", cwd=tmp_path).returncode == 0
    assert {path.name for path in site.iterdir()} - before <= {"__pycache__"}
    assert _run(python, "-c", check, cwd=tmp_path).stdout.strip() == "False"


@pytest.mark.parametrize(
    "first",
    [
        "from anomalib_cxr.data.base import RadiographDataModule",
        "import anomalib_cxr.models",
        "import anomalib.visualization",
    ],
)
def test_any_first_import_registers(tmp_path: Path, first: str) -> None:
    code = f"""
{first}
import json
import anomalib.data, anomalib.models
import anomalib.visualization.image.item_visualizer as visualizer
from PIL import Image
print(json.dumps([
    hasattr(anomalib.data, "ZhangLab"),
    hasattr(anomalib.models, "AnatPaste"),
    "anomalib_cxr.models" in anomalib.models.ALLOWED_MODULES,
    visualizer.Image is not Image,
    hasattr(anomalib.data.predict.read_image, "__wrapped__"),
]))
"""
    assert _python(code, tmp_path) == [True] * 5
