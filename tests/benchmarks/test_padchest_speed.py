"""PadChest's whole table, built from real rows where they are at hand: parsed, filtered, located and split."""

import csv
import gzip
import json
import random
import subprocess
import sys
from pathlib import Path

import pytest

ROWS = 160_861
PATIENTS = 67_625
TABLE = "PADCHEST_chest_x_ray_images_labels_160K_01.02.19.csv"

MEASURE = """
import json, resource, sys, time
import anomalib.data  # what every run has loaded before
from anomalib_cxr.data import PadChest
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
start, cpu = time.perf_counter(), time.process_time()
data = PadChest(sys.argv[1], num_workers=0, check_duplicates=False, **json.loads(sys.argv[2]))
rows = len(data.samples)
seconds, cpu = time.perf_counter() - start, time.process_time() - cpu
peak = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
print(json.dumps({"rows": rows, "seconds": seconds, "cpu seconds": cpu, "peak increase MiB": peak}))
"""


def build(shared: Path, root: Path) -> None:
    """Write 160,861 rows with all 36 columns, and an empty file for each image."""
    with gzip.open(shared / "data/metadata/padchest" / f"{TABLE}.gz", "rt", encoding="utf-8", newline="") as file:
        head, *sample = csv.reader(file)
    at = {column: place for place, column in enumerate(head)}
    generator = random.Random(0)
    for folder in range(55):
        (root / str(folder)).mkdir()
    with (root / TABLE).open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(head)
        for number in range(ROWS):
            row = list(sample[number % len(sample)])
            row[at["ImageID"]] = f"{number}_{row[at['ImageID']]}"
            row[at["PatientID"]] = str(generator.randrange(PATIENTS) + 10**30)
            row[at["Report"]] = "sin hallazgos de significado patologico " * 5
            writer.writerow(row)
            (root / row[at["ImageDir"]] / row[at["ImageID"]]).touch()


@pytest.mark.benchmark
def test_whole_padchest_table(shared, tmp_path):
    build(shared, tmp_path)
    for arguments in (
        {},
        {"labelled_by": "all", "projections": ["PA", "AP", "AP_horizontal", "L"]},
        {"preset": "kim2023"},
    ):
        command = [sys.executable, "-c", MEASURE, str(tmp_path), json.dumps(arguments)]
        result = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()[-1])
        print(arguments, {key: round(value, 2) for key, value in result.items()})
