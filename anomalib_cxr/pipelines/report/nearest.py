"""What a model compared an image with, from a run's checkpoint and images: predictions do not hold it."""

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from jsonargparse import ArgumentParser
from PIL import Image

from anomalib_cxr.data import RadiographDataModule
from anomalib_cxr.imaging import contact_sheet
from anomalib_cxr.models.ensemble.members import find_class
from anomalib_cxr.pipelines.report.runs import FinishedRun
from anomalib_cxr.run_folder import CHECKPOINTS, MODEL_CHECKPOINT

logger = logging.getLogger(__name__)


def nearest_patches(run: FinishedRun, images: Sequence[str]) -> list[tuple[str, Image.Image, str]]:
    """Show, for each patch size, the patch that deviates most beside the normal patch it was compared with.

    It carries out the run's record and configuration, which name classes: use it on results of your own.

    Args:
        run: A run with record, configuration and checkpoint, whose network has ``nearest_references``, as
            :class:`~anomalib_cxr.models.multires_patch_ssl.torch_model.MultiResPatchSSLModel` has.
        images: Test images, as its predictions name them.

    Returns:
        Image; a picture with a row a size (image with the patch, patch, its normal neighbour, the neighbour's image);
        and a text with the distances and the neighbours' images.

    Raises:
        ValueError: If configuration, checkpoint or images are not there, or the split is another than the run's.
    """
    checkpoint = run.home / CHECKPOINTS / MODEL_CHECKPOINT
    if run.config_path is None or not checkpoint.is_file():
        msg = f"the run left no {'configuration' if run.config_path is None else 'weights/lightning/model.ckpt'}."
        raise ValueError(msg)
    cls = find_class(run.record["model"]["class_path"])
    datamodule = _datamodule(run.config)
    datamodule.prepare_data()
    datamodule.setup()
    if run.split_hashes != [datamodule.split_hash]:
        msg = "the data set is split otherwise by now than in the run."
        raise ValueError(msg)
    module: Any = cls.load_from_checkpoint(checkpoint, map_location="cpu").eval()
    train, test = (module.without_augmentation(data) for data in (datamodule.train_data, datamodule.test_data))
    places = {str(path): index for index, path in enumerate(test.samples["image_path"])}
    found = []
    for image in images:
        path = str(Path(datamodule.root) / image)
        if path not in places:
            msg = f"{image} is not among the test images of {datamodule.name}."
            raise ValueError(msg)
        found.append((image, *_sheet(module.model, _grey(test, places[path]), train, Path(datamodule.root))))
    return found


def _datamodule(config: dict[str, Any]) -> RadiographDataModule:
    """Datamodule that a configuration names."""
    parser = ArgumentParser(exit_on_error=False)
    parser.add_subclass_arguments(RadiographDataModule, "data", required=True)
    return parser.instantiate_classes(parser.parse_object({"data": config["data"]})).data


def _grey(dataset: Any, index: int) -> torch.Tensor:
    """One image at the model's input size, (1, 1, H, W)."""
    return dataset[index].image.mean(dim=0)[None, None]


@torch.no_grad()
def _sheet(model: Any, query: torch.Tensor, train: Any, root: Path) -> tuple[Image.Image, str]:
    tiles: list[npt.NDArray[Any]] = []
    masks: list[npt.NDArray[Any] | None] = []
    titles, texts = [], []
    for size, match in enumerate(model.nearest_references(query)):
        deviation = (match.distance[0] - model.score_mean[size]) / model.score_std[size]
        row, col = divmod(int(deviation.argmax()), deviation.shape[1])
        there = int(match.row[0, row, col]), int(match.col[0, row, col])
        index = int(match.image[0, row, col])
        reference = _grey(train, index)
        grid = model.grid(size, tuple(query.shape[-2:]))
        for shown, place, name in ((query, (row, col), "image"), (reference, there, "normal")):
            picture = shown[0, 0].numpy()
            patch, mask = _cut(picture, grid, place)
            both = [(picture, mask, name), (patch, None, model.map_names[size])]
            for tile, outline, title in both if name == "image" else both[::-1]:
                tiles.append(tile)
                masks.append(outline)
                titles.append(title)
        path = Path(train.samples["image_path"].iloc[index])
        shown_path = path.relative_to(root).as_posix() if path.is_relative_to(root) else str(path)
        texts.append(
            f"{model.map_names[size]}: {float(deviation[row, col]):.1f} sd above normal, nearest in {shown_path}"
        )
    return Image.fromarray(contact_sheet(tiles, columns=4, masks=masks, titles=titles, tile=160)), "; ".join(texts)


def _cut(
    picture: npt.NDArray[Any], grid: Any, place: tuple[int, int]
) -> tuple[npt.NDArray[Any], npt.NDArray[np.bool_]]:
    """Patch at a grid place, and its square as a mask."""
    top, left = grid.tops[place[0]], grid.lefts[place[1]]
    mask = np.zeros(picture.shape, dtype=bool)
    mask[top : top + grid.patch_size, left : left + grid.patch_size] = True
    return picture[top : top + grid.patch_size, left : left + grid.patch_size], mask
