"""`anomalib prepare`: decode a data set into its cache before the first training."""

import logging

from anomalib.pipelines.components.base import Pipeline
from anomalib.pipelines.components.base.runner import Runner
from jsonargparse import ActionConfigFile, ArgumentParser, Namespace

from anomalib_cxr.data import RadiographDataModule
from anomalib_cxr.data.table_datamodule import TableDataModule

logger = logging.getLogger(__name__)


class Prepare(Pipeline):
    """Decode the images of a radiograph datamodule into its cache.

    ``anomalib prepare --data PadChest --data.root /data/padchest --data.cache_dir /fast/cache --data.cache_size 512``
    """

    @staticmethod
    def get_parser(parser: ArgumentParser | None = None) -> ArgumentParser:
        """Take a datamodule with its arguments, on the command line or in a configuration file."""
        if parser is None:
            parser = ArgumentParser(description="Decode the images of a radiograph datamodule into its cache.")
            parser.add_argument("--config", action=ActionConfigFile, help="Configuration file with a data section.")
            parser.add_subclass_arguments(RadiographDataModule, "data", required=True)
        return parser

    def run(self, args: Namespace | None = None) -> None:
        """Fill the cache; at the end, name what was skipped, and leave with status 1 if an image could not be read.

        Args:
            args: Parsed arguments; None parses the command line.

        Raises:
            SystemExit: If images could not be read; each is named in the log.
        """
        parser = self.get_parser()
        if args is None:
            args = parser.parse_args()
        datamodule = args.data
        if not isinstance(datamodule, RadiographDataModule):
            datamodule = parser.instantiate_classes(Namespace(data=datamodule)).data
        datamodule.prepare_data()
        failed = datamodule.prepare_cache()
        for path, reason in failed.items():
            logger.error("%s: %s", path, reason)
        total = len(datamodule.samples)
        print(f"{datamodule.name}: {total - len(failed)} of {total} images are in the cache.")
        if isinstance(datamodule, TableDataModule) and datamodule.skipped:
            print(datamodule.describe_skipped())
        if failed:
            raise SystemExit(1)

    def _setup_runners(self, args: dict) -> list[Runner]:
        """Nothing to set up: there is one job, and :meth:`run` does it."""
        del args
        return []
