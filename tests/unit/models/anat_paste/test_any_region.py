"""AnatPaste pastes into any region: one that a function finds, or that files of the data set show."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import brain_slices
import numpy as np
import pytest
import torch
import yaml
from anomalib.engine import Engine
from anomalib.models import AnomalibModule
from jsonargparse import ActionConfigFile, ArgumentParser

from anomalib_cxr.data import RadiographTable
from anomalib_cxr.models import AnatPaste

SMALL = {"image_size": 64, "max_steps": 2, "steps_per_epoch": 2, "num_workers": 0, "backbone": "resnet10t"}
LOADING = {"num_workers": 0, "train_batch_size": 4, "eval_batch_size": 4}
PLAIN = {"table": "slices.csv"}
FOUND = "brain_slices.skull_stripped"


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("slices")


@pytest.fixture(scope="module")
def brains(root: Path) -> dict[str, np.ndarray]:
    return brain_slices.draw(root)


def regions_of(model: Any, data: RadiographTable) -> dict[str, np.ndarray]:
    data.setup("fit")
    model._trainer = SimpleNamespace(datamodule=data)
    model._find_region()
    paths = list(data.train_data.samples["image_path"])
    return dict(zip(paths, model.region_masks.lookup(paths)[:, 0].numpy(), strict=True))


SOURCES = {
    "function": ({"region": brain_slices.skull_stripped}, {}),
    "path": ({"region": FOUND}, {}),
    "class": ({"region": {"class_path": "brain_slices.SkullStripped", "init_args": {"darkest": 0.25}}}, {}),
    "folder": ({}, {"region_dir": "brains"}),
    "column": ({}, {"table": "with_brains.csv"}),
}


@pytest.mark.parametrize("source", SOURCES)
def test_the_brain_is_found_from_every_source(source: str, root: Path, brains: dict[str, np.ndarray]) -> None:
    model, data = SOURCES[source]
    found = regions_of(AnatPaste(**SMALL, **model), RadiographTable(root, **(data or PLAIN), **LOADING))
    assert len(found) == 4
    for path, region in found.items():
        np.testing.assert_array_equal(region, brains[path])


def test_a_training_pastes_into_the_brain_alone(root: Path, brains: dict[str, np.ndarray], tmp_path: Path) -> None:
    model = AnatPaste(**SMALL, region=FOUND)
    steps: list[list[Any]] = []
    stock = {"loss": model.training_loss, "paste": model.pasting.paste}
    model.training_loss = lambda batch, generator: (steps.append([batch.image_path]), stock["loss"](batch, generator))[
        1
    ]

    def paste(images: torch.Tensor, region: torch.Tensor, generator: torch.Generator) -> Any:
        (pasted,) = stock["paste"](images, region, generator)
        if steps:  # the sheet is pasted before
            steps[-1].append(pasted.mask[:, 0].numpy())
        return (pasted,)

    model.pasting.paste = paste
    Engine(default_root_dir=tmp_path, accelerator="cpu", devices=1, enable_progress_bar=False, logger=False).fit(
        model, datamodule=RadiographTable(root, **PLAIN, **LOADING)
    )
    assert len(steps) == 2
    for paths, weights in steps:
        for path, weight in zip(paths, weights, strict=True):
            assert not weight[~brains[path]].any()
            assert weight[brains[path]].any()

    (written,) = tmp_path.rglob("model.ckpt")
    kept = torch.load(written, weights_only=True)
    assert kept["hyper_parameters"]["region"] == FOUND
    assert AnatPaste.load_from_checkpoint(written).region == FOUND
    # A checkpoint of before there were regions.
    del kept["hyper_parameters"]["region"]
    torch.save(kept, tmp_path / "old.ckpt")
    old = AnatPaste.load_from_checkpoint(tmp_path / "old.ckpt")
    assert (old.region, old.lung_method) == (None, "shape")


def test_a_function_that_is_gone_is_missed_in_training_only(root: Path, brains: dict[str, np.ndarray]) -> None:
    model = AnatPaste(**SMALL, region="a_module_that.went_away")
    with pytest.raises(ValueError, match=r"region 'a_module_that\.went_away' cannot be imported"):
        regions_of(model, RadiographTable(root, **PLAIN, **LOADING))


def test_two_regions_are_one_too_many(root: Path, brains: dict[str, np.ndarray]) -> None:
    with pytest.raises(ValueError, match="leave out the model's region, or the datamodule's region_dir"):
        regions_of(AnatPaste(**SMALL, region=FOUND), RadiographTable(root, region_dir="brains", **LOADING))


def test_a_configuration_names_a_path_or_a_class(tmp_path: Path) -> None:
    parser = ArgumentParser()
    parser.add_argument("--config", action=ActionConfigFile)
    parser.add_subclass_arguments(AnomalibModule, "model")
    for given in (FOUND, {"class_path": "brain_slices.SkullStripped", "init_args": {"darkest": 0.2}}):
        model = {"class_path": "anomalib_cxr.models.AnatPaste", "init_args": SMALL | {"region": given}}
        (tmp_path / "config.yaml").write_text(yaml.safe_dump({"model": model}))
        made = parser.instantiate_classes(parser.parse_args(["--config", str(tmp_path / "config.yaml")])).model
        assert made.region == made.hparams["region"] == given
    with pytest.raises(ValueError, match=r"must be a path, or class_path and init_args, not \['c.*', 'darkest'\]"):
        AnatPaste(**SMALL, region={"class_path": "brain_slices.SkullStripped", "darkest": 0.2})


@pytest.mark.parametrize("other", [{"variant": "cutpaste_scar"}, {"segmentation": False}])
def test_a_region_that_nothing_is_pasted_into_is_refused(other: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="region is where variant='anatpaste' pastes, with segmentation: leave region"):
        AnatPaste(**SMALL, region=FOUND, **other)
