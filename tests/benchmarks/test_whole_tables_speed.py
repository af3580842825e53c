"""Whole tables, built from real rows where they are at hand: parsed, filtered, located and split."""

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
from anomalib_cxr import data as sets
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
start, cpu = time.perf_counter(), time.process_time()
data = getattr(sets, sys.argv[3])(sys.argv[1], num_workers=0, check_duplicates=False, **json.loads(sys.argv[2]))
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


def measure(name: str, root: Path, arguments: dict[str, object]) -> dict[str, float]:
    """Make the samples of a set in a process of their own."""
    command = [sys.executable, "-c", MEASURE, str(root), json.dumps(arguments), name]
    result = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()[-1])
    print(name, arguments, {key: round(value, 2) for key, value in result.items()})
    return result


@pytest.mark.benchmark
def test_whole_padchest_table(shared, tmp_path):
    build(shared, tmp_path)
    for arguments in (
        {},
        {"labelled_by": "all", "projections": ["PA", "AP", "AP_horizontal", "L"]},
        {"preset": "kim2023"},
    ):
        measure("PadChest", tmp_path, arguments)


def build_nih(shared: Path, root: Path) -> None:
    """Write NIH's 112,120 rows of 30,805 patients, its lists, and an empty file for each image in twelve folders."""
    with gzip.open(shared / "data/metadata/nih/Data_Entry_2017_v2020.csv.gz", "rt", newline="") as file:
        head, *sample = file.read().splitlines()
    boxes = gzip.decompress((shared / "data/metadata/nih/BBox_List_2017.csv.gz").read_bytes())
    (root / "BBox_List_2017.csv").write_bytes(boxes)
    marked = {line[:16] for line in boxes.decode().splitlines()}
    rows = {line[:16]: line for line in sample if line[:16] in marked}
    lists: dict[str, list[str]] = {"train_val": [], "test": sorted(rows)}
    patients = {name[:8] for name in rows}
    free = [number for number in range(1, 30_806) if f"{number:08}" not in patients]
    number = 0
    while len(rows) < 112_120:
        patient, follow_up = free[number % len(free)], number // len(free)
        cells = sample[number % len(sample)].split(",")
        cells[0], cells[3] = f"{patient:08}_{follow_up:03}.png", str(patient)
        rows[cells[0]] = ",".join(cells)
        lists["train_val" if patient % 9 < 7 else "test"].append(cells[0])
        number += 1
    (root / "Data_Entry_2017_v2020.csv").write_text("\n".join([head, *rows.values()]))
    for part, names in lists.items():
        (root / f"{part}_list.txt").write_text("\n".join(names))
    for place, name in enumerate(sorted(rows)):
        folder = root / f"images_{1 + place * 12 // len(rows):03}/images"
        folder.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()


@pytest.mark.benchmark
def test_whole_nih_table(shared, tmp_path):
    build_nih(shared, tmp_path)
    for arguments in ({}, {"views": ["PA", "AP"]}, {"views": ["PA", "AP"], "split": "patient", "masks": True}):
        assert measure("NIH", tmp_path, arguments)["cpu seconds"] <= 8
