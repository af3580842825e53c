"""`anomalib patch-ablation`: what distance, patch distance, size, weights and bank options are worth.

MultiResPatchSSL's ablations (Kim, Moon and Lee 2023: one size at a time × four distances; weights × distances) differ
only in what happens after the encoders. So the features of every image are computed once, from one checkpoint, and
each setting builds its own banks from them.
"""

import copy
import itertools
import logging
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import pandas as pd
import torch
from anomalib.data import AnomalibDataModule
from anomalib.pipelines.components.base import Pipeline
from anomalib.pipelines.components.base.runner import Runner
from jsonargparse import ActionConfigFile, ArgumentParser, Namespace
from sklearn.metrics import roc_auc_score
from torch.utils.data import DataLoader

from anomalib_cxr.csv_tables import write_table
from anomalib_cxr.imaging.progress import progress
from anomalib_cxr.models import MultiResPatchSSL
from anomalib_cxr.models.components.patch_search.reference_bank import ReferenceBank
from anomalib_cxr.models.multires_patch_ssl.torch_model import MultiResPatchSSLModel

logger = logging.getLogger(__name__)

#: What a setting may change; the rest is the checkpoint's.
OPTIONS = ("distance", "patch_distance", "bank_dtype", "feature_dim", "max_references", "selection", "score", "top_q")

_QUERIES = 16


class PatchAblation(Pipeline):
    """Score one MultiResPatchSSL checkpoint under many settings of its banks.

    ``anomalib patch-ablation --config configs/multires_patch_ssl/ablation.yaml --ckpt_path …/model.ckpt``
    """

    @staticmethod
    def get_parser(parser: ArgumentParser | None = None) -> ArgumentParser:
        """Take a checkpoint, a datamodule, and the settings, on the command line or in a configuration file."""
        if parser is None:
            parser = ArgumentParser(description="Score one MultiResPatchSSL checkpoint under many settings.")
            parser.add_argument("--config", action=ActionConfigFile, help="Configuration file with all of this.")
            parser.add_argument("--ckpt_path", type=str, required=True, help="Checkpoint of MultiResPatchSSL.")
            parser.add_subclass_arguments(AnomalibDataModule, "data", required=True)
            parser.add_argument(
                "--settings", type=list[dict[str, list]], default=[{}], help="Tables of option: values, each crossed."
            )
            parser.add_argument("--weights", type=list[list[float]] | None, default=None, help="Weights of the sizes.")
            parser.add_argument("--output", type=str, default="patch_ablation.csv", help="Table to write.")
        return parser

    def run(self, args: Namespace | None = None) -> None:
        """Write the table and print it.

        Args:
            args: Parsed arguments; None parses the command line.
        """
        parser = self.get_parser()
        if args is None:
            args = parser.parse_args()
        datamodule = args.data
        if not isinstance(datamodule, AnomalibDataModule):
            datamodule = parser.instantiate_classes(Namespace(data=datamodule)).data
        model = MultiResPatchSSL.load_from_checkpoint(args.ckpt_path, map_location="cpu")
        table = ablate(cast("MultiResPatchSSL", model), datamodule, args.settings, args.weights)
        output = Path(args.output)
        write_table(output, table)
        print(table.to_string(index=False, float_format="{:.3f}".format))
        print(f"The table is in {output}.")

    def _setup_runners(self, args: dict) -> list[Runner]:
        """Nothing to set up: there is one job, and :meth:`run` does it."""
        del args
        return []


def ablate(
    model: MultiResPatchSSL,
    datamodule: AnomalibDataModule,
    settings: Sequence[Mapping[str, Sequence[Any]]],
    weights: Sequence[Sequence[float]] | None = None,
) -> pd.DataFrame:
    """Score validation and test images under many settings.

    Args:
        model: A trained model, or a frozen one.
        datamodule: Its training images fill the banks; validation and test images are scored.
        settings: Tables of values to try for some of :data:`OPTIONS`; the values of one table are crossed. What a table
            leaves out is as in the checkpoint, and empty in the result.
        weights: Weights of the sizes to fuse by; None takes the model's own. Each size alone is always listed,
            and so once where there is but one.

    Returns:
        A row for each setting and fusion: the setting, ``fusion``, ``val_AUROC``, ``test_AUROC``, ``bank_MiB``,
        ``fit_seconds`` and ``search_ms`` (an image; both of all sizes together).

    Raises:
        ValueError: If a setting is unknown, or weights do not have one entry for each size.
    """
    unknown = sorted({option for table in settings for option in table} - set(OPTIONS))
    if unknown:
        msg = f"patch-ablation knows no setting {', '.join(unknown)}: choose from {', '.join(OPTIONS)}."
        raise ValueError(msg)
    network = model.model.eval()
    sizes = network.patch_sizes
    names = network.map_names
    fusions = {name: [float(other == name) for other in names] for name in names}
    for chosen in weights or [network.weights]:
        if len(chosen) != len(sizes):
            msg = f"weights {list(chosen)} need {len(sizes)} entries, one for each of the patch sizes {list(sizes)}."
            raise ValueError(msg)
        if sum(weight != 0 for weight in chosen) == 1:
            continue  # one size alone, which is listed already
        fusions["fused " + " ".join(f"{weight:g}" for weight in chosen)] = list(chosen)
    datamodule.prepare_data()
    datamodule.setup()
    features = {
        part: _features(model, dataset, datamodule)
        for part, dataset in (
            ("train", datamodule.train_data),
            ("val", datamodule.val_data),
            ("test", datamodule.test_data),
        )
    }
    rows = []
    original = copy.deepcopy(network)
    for setting in _crossed(settings):
        cost = _refit(network, original, features["train"][0], setting)
        scores = {part: _scores(network, features[part][0], model.input_size, fusions) for part in ("val", "test")}
        seconds = sum(seconds for _, seconds in scores.values())
        images = sum(len(features[part][1]) for part in scores)
        for fusion in fusions:
            aurocs = {f"{part}_AUROC": roc_auc_score(features[part][1], scores[part][0][fusion]) for part in scores}
            rows.append(setting | {"fusion": fusion} | aurocs | cost | {"search_ms": 1000 * seconds / images})
        logger.info("%s: %s", setting, {row["fusion"]: round(row["val_AUROC"], 3) for row in rows[-len(fusions) :]})
    return pd.DataFrame(rows)


def _crossed(settings: Sequence[Mapping[str, Sequence[Any]]]) -> Iterator[dict[str, Any]]:
    for table in settings:
        for values in itertools.product(*table.values()):
            yield dict(zip(table, values, strict=True))


@torch.no_grad()
def _features(model: MultiResPatchSSL, dataset: Any, datamodule: Any) -> tuple[list[torch.Tensor], torch.Tensor]:
    """Features of all un-augmented images, for each size (N, rows, cols, D), and their labels."""
    plain = model.without_augmentation(dataset)
    loader = DataLoader(plain, batch_size=datamodule.eval_batch_size, collate_fn=plain.collate_fn)
    parts: list[list[torch.Tensor]] = [[] for _ in model.model.patch_sizes]
    for images in progress(model.pre_processed(loader), "Features", len(loader), unit="batch"):
        for part, features in zip(parts, model.model.features(images), strict=True):
            part.append(features)
    return [torch.cat(part) for part in parts], torch.tensor(plain.samples.label_index.to_numpy())


def _refit(
    network: MultiResPatchSSLModel,
    original: MultiResPatchSSLModel,
    features: list[torch.Tensor],
    setting: dict[str, Any],
) -> dict[str, float]:
    """Give the network the banks of a setting, otherwise those of the original; returns what they cost."""
    network.score = setting.get("score", original.score)
    network.top_q = setting.get("top_q", original.top_q)
    for i, old in enumerate(original.reference_banks()):
        reach = setting.get("patch_distance", old.search.patch_distance)
        network.banks[i] = ReferenceBank(
            patch_distance="all" if reach is None or reach == -1 else reach,
            distance=setting.get("distance", old.search.distance),
            bank_dtype=setting.get("bank_dtype", str(old.search.references.dtype).removeprefix("torch.")),  # type: ignore[arg-type]
            feature_dim=setting.get("feature_dim", old.feature_dim) or None,
            max_references=setting.get("max_references", old.max_references),
            selection=setting.get("selection", old.selection),
            seed=old.seed,
        )
    start = time.perf_counter()
    network.fit(features)
    held = sum(buffer.nbytes for buffer in network.banks.buffers())
    return {"bank_MiB": held / 2**20, "fit_seconds": time.perf_counter() - start}


@torch.no_grad()
def _scores(
    network: MultiResPatchSSLModel, features: list[torch.Tensor], size: Any, fusions: dict[str, list[float]]
) -> tuple[dict[str, torch.Tensor], float]:
    """Image scores (N,) by fusion, and the seconds that search and maps took."""
    seconds, found = 0.0, []
    for part in zip(*(sized.split(_QUERIES) for sized in features), strict=True):
        start = time.perf_counter()
        maps = network.maps_of(part, size)
        seconds += time.perf_counter() - start
        found.append({name: network.image_score(network.fuse(maps, weights)) for name, weights in fusions.items()})
    return {name: torch.cat([scores[name] for scores in found]) for name in fusions}, seconds
