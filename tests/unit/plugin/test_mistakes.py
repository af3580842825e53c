"""Mistakes of the user come in a sentence, with the nearest names; errors of programs keep their traceback."""

import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from lightning.fabric.utilities.exceptions import MisconfigurationException
from torch.utils.data import DataLoader, Dataset

from anomalib_cxr.checks import check_choice
from anomalib_cxr.imaging import read_radiograph
from anomalib_cxr.metrics.checks import check_scores
from anomalib_cxr.plugin.mistakes import MISTAKES, answer, is_answer
from anomalib_cxr.plugin.names import UnknownNameError, refuse_unknown_names


class OneFilm(Dataset):
    def __init__(self, path: Path) -> None:
        self.path = path

    def __len__(self) -> int:
        return 1

    def __getitem__(self, index: int) -> np.ndarray:
        return read_radiograph(self.path)


def no_file(tmp_path: Path) -> object:
    return read_radiograph(tmp_path / "none.png")


def no_file_in_a_worker(tmp_path: Path) -> object:
    (tmp_path / "broken.png").write_bytes(b"no picture")
    return list(DataLoader(OneFilm(tmp_path / "broken.png"), num_workers=1))


def wrong_choice(tmp_path: Path) -> object:
    del tmp_path
    return check_choice("checkpoint", "worst", ("best", "last"))


def wrong_trainer(tmp_path: Path) -> object:
    raise MisconfigurationException(f"no such accelerator, {tmp_path.name}")


def numpy_in_our_code(tmp_path: Path) -> object:
    """`check_scores` makes an array of what it is given; numpy refuses this, in a frame of ours."""
    del tmp_path
    return check_scores([[1.0], [1.0, 2.0]], None, "scores")


def torch_itself(tmp_path: Path) -> object:
    del tmp_path
    return torch.zeros(2, 3) @ torch.zeros(2, 3)


def caught(function: Callable[[Path], object], tmp_path: Path) -> BaseException:
    with pytest.raises(Exception) as found:
        function(tmp_path)
    return found.value


@pytest.mark.parametrize("mistake", [no_file_in_a_worker, wrong_choice, wrong_trainer])
def test_what_was_said_to_the_user_is_an_answer(tmp_path: Path, mistake: Callable[[Path], object]) -> None:
    error = caught(mistake, tmp_path)
    assert is_answer(error)
    assert "\n" not in answer(error)
    assert answer(error)[0] != '"'


def test_a_workers_traceback_is_cut_to_what_was_said(tmp_path: Path) -> None:
    said = answer(caught(no_file_in_a_worker, tmp_path))
    assert said.startswith(str(tmp_path / "broken.png"))


@pytest.mark.parametrize("error", [numpy_in_our_code, torch_itself])
def test_errors_of_programs_are_none(tmp_path: Path, error: Callable[[Path], object]) -> None:
    found = caught(error, tmp_path)
    assert type(found) in {ValueError, RuntimeError}
    assert not is_answer(found)


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["train", "--model", "Anatpaste"], "There is no model Anatpaste: did you mean AnatPaste?"),
        (["train", "--model=anat_paste"], "did you mean AnatPaste?"),
        (["fit", "--model.class_path", "anomalib.models.Padimm"], "did you mean Padim?"),
        (["train", "--model", "AnatPaste", "--data", "ZhangLabs"], "There is no datamodule ZhangLabs: did you mean Zh"),
        (["test", "--data", "MVTec"], "MVTecAD"),
        (["train", "--model", "Qqqq"], "known are AiVad, AlphaGAN, AnatPaste, "),
        (["predict", "--data", "no/such/folder"], "There is no file, folder or datamodule no/such/folder"),
    ],
)
def test_unknown_names_are_answered_with_the_nearest(words: list[str], sentence: str) -> None:
    with pytest.raises(UnknownNameError) as found:
        refuse_unknown_names(words)
    assert sentence in str(found.value)


def test_names_in_a_configuration_are_looked_up_too(tmp_path: Path) -> None:
    file = tmp_path / "run.yaml"
    file.write_text(yaml.safe_dump({"model": {"class_path": "Padim"}, "data": {"class_path": "PadChestt"}}))
    for words in (["train", "--config", str(file)], ["train", f"-c={file}"]):
        with pytest.raises(UnknownNameError, match="did you mean PadChest"):
            refuse_unknown_names(words)


def test_known_names_and_classes_elsewhere_pass(tmp_path: Path) -> None:
    (tmp_path / "films").mkdir()
    for words in (
        ["train", "--model", "AnatPaste", "--data", "anomalib_cxr.data.PhantomCXR"],
        ["train", "--model", "my_package.MyModel", "--data.root", "ZhangLabs"],
        ["train", "--model", "Padim", "--data.class_path=anomalib.data.MVTecAD"],
        ["predict", "--model", "Padim", "--data", str(tmp_path / "films")],
        ["predict", "--data", "PredictDataset"],
        ["train", "--model", '{"class_path": "Qqqq"}'],
        ["train", "--config", "missing.yaml"],
        ["benchmark", "--model"],
        [],
    ):
        refuse_unknown_names(words)


def test_the_command_leaves_with_status_2_or_raises(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    ((_, _, wrap),) = MISTAKES.wrappers
    monkeypatch.setattr(sys, "argv", ["anomalib"])
    monkeypatch.delenv("ANOMALIB_CXR_DEBUG", raising=False)
    with pytest.raises(SystemExit) as left:
        wrap(lambda: wrong_choice(tmp_path))()
    assert left.value.code == 2
    assert capsys.readouterr().err.startswith("anomalib: checkpoint must be ")
    with pytest.raises(RuntimeError, match="mat1 and mat2"):
        wrap(lambda: torch_itself(tmp_path))()
    monkeypatch.setenv("ANOMALIB_CXR_DEBUG", "1")
    with pytest.raises(ValueError, match="checkpoint must be"):
        wrap(lambda: wrong_choice(tmp_path))()
    assert not capsys.readouterr().err
