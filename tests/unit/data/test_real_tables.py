"""Counts that filters and presets give on real rows of the public tables, where those are at hand.

The label counts were got independently of the package, by plain pandas and ``ast.literal_eval``.
"""

from collections import Counter
from unittest.mock import patch

import pytest

from anomalib_cxr.data import NIH, RSNA, CheXpert, PadChest, VinDrCXR


@pytest.fixture(autouse=True)
def _images_are_licensed():
    """The images are not here: only the tables are tested."""
    with patch("anomalib_cxr.data.table_datamodule.find_missing", return_value=[]):
        yield


def count(data) -> dict[str, int]:
    samples = data.samples
    assert samples.groupby("patient_id")["split"].nunique().max() == 1
    assert samples["image_path"].is_unique
    return dict(Counter(samples["split"] + " " + samples["label"]))


def labels(data) -> tuple[int, int]:
    found = Counter(data.samples["label"])
    return found["normal"], found["abnormal"]


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ({}, (705, 1131)),
        ({"labelled_by": "all"}, (2772, 4726)),
        ({"labelled_by": "all", "patients": "all", "projections": ["PA", "AP", "AP_horizontal"]}, (2919, 6133)),
    ],
)
def test_padchest_filters(shared, arguments, expected):
    root = shared / "data/metadata/padchest"
    assert labels(PadChest(root, check_duplicates=False, **arguments)) == expected


def test_padchest_kim2023(shared, caplog):
    root = shared / "data/metadata/padchest"
    tested: Counter[str] = Counter()
    for fold in (0, 1, 4):
        data = PadChest(root, check_duplicates=False, preset="kim2023", fold=fold)
        counts = count(data)
        # 70/15/15 of 705 normals, half and half of 1131 abnormal images; within the largest patient's images.
        for group, share in (
            ("train normal", 0.70 * 705),
            ("val normal", 0.15 * 705),
            ("test normal", 0.15 * 705),
            ("val abnormal", 0.5 * 1131),
            ("test abnormal", 0.5 * 1131),
        ):
            assert abs(counts[group] - share) < 25, (fold, group)
        assert sum(counts.values()) == 705 + 1131
        rows = data.samples
        sick = set(rows["patient_id"][rows["label"] == "abnormal"])
        tested.update(rows["image_path"][(rows["split"] == "test") & ~rows["patient_id"].isin(sick)])
    assert set(tested.values()) == {1}  # no normal patient is tested in two folds
    assert "normal 705 (published 2574), abnormal 1131 (published 4801)" in caplog.text


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ({}, (126, 209)),
        ({"uncertain": "zeros"}, (126, 270)),
        ({"uncertain": "ones"}, (126, 365)),
        ({"keep_support_devices": False}, (89, 146)),
        ({"views": ["PA", "AP"]}, (418, 2121)),
        ({"views": ["PA", "AP"], "uncertain": "ones"}, (418, 3429)),
        ({"views": ["PA", "AP"], "keep_support_devices": False}, (223, 779)),
    ],
)
def test_chexpert_filters(shared, arguments, expected):
    assert labels(CheXpert(shared / "data/metadata/chexpert", check_duplicates=False, **arguments)) == expected


def test_rsna_filters_and_preset(shared, caplog):
    def rsna(**arguments):
        root = shared / "data/metadata/rsna"
        return RSNA(root, check_duplicates=False, headers="dicom_headers_sample.csv.gz", **arguments)

    # 26,684 images, of which 79 have no class: 12 of them have boxes and make 6,000 opacities 6,012.
    assert labels(rsna()) == (8818, 6012)
    assert "79 images are not in the class table" not in caplog.text  # said at INFO
    assert labels(rsna(include_not_normal=True)) == (8818, 6012 + 11787)
    assert labels(rsna(views="PA")) == (1074, 196)
    assert count(rsna(preset="anatpaste")) == {
        "train normal": 984,
        "val normal": 44,
        "val abnormal": 98,
        "test normal": 44,
        "test abnormal": 98,
    }
    boxes = rsna().samples["boxes"]
    assert sum(map(len, boxes)) == 9555
    assert all(0 <= v <= 1 for image in boxes for box in image for v in box)


def test_chexpert_presets(shared, tmp_path, caplog):
    """The real training rows beside a drawn valid.csv, of which no real rows are at hand."""
    real = shared / "data/metadata/chexpert/train.csv.gz"
    (tmp_path / "train.csv.gz").symlink_to(real)
    five = ("Atelectasis", "Cardiomegaly", "Consolidation", "Edema", "Pleural Effusion")
    with (tmp_path / "valid.csv").open("w") as file:
        file.write(f"Path,AP/PA,No Finding,Support Devices,{','.join(five)}\n")
        for number in range(10):
            values = "1,,,,,," if number < 4 else ",,1,,,,"
            file.write(f"CheXpert-v1.0/valid/patient9{number:04}/study1/view1_frontal.jpg,PA,{values}\n")

    def chexpert(preset):
        return CheXpert(tmp_path, preset=preset, check_duplicates=False)

    # 126 normal and 209 abnormal PA images: the published 5,466 + 300 normals shrink to 119 + 6. Eight abnormal images
    # are of patients with more normal ones than there is room for.
    val = {"val normal": 4, "val abnormal": 6}
    assert count(chexpert("anatpaste")) == {"train normal": 119, "test normal": 6, "test abnormal": 201, **val}
    assert "train normal 119 (published 5466)" in caplog.text
    caplog.clear()
    found = count(chexpert("anatpaste_table2"))
    assert found == {"train normal": 119, "test normal": 6, "test abnormal": 201, **val}
    assert "Edema 29 (published 300)" in caplog.text


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ({}, (1547, 1592)),
        ({"views": ["PA", "AP"]}, (2364, 2792)),
        ({"masks": True}, (1547, 478)),
        ({"views": ["PA", "AP"], "masks": True}, (2364, 880)),
    ],
)
def test_nih_filters(shared, arguments, expected):
    """Real rows, of which the official lists are not at hand; their 5,156 films are of 1,933 patients."""
    data = NIH(shared / "data/metadata/nih", split="patient", check_duplicates=False, **arguments)
    assert labels(data) == expected
    if expected[1] == 880:
        assert sum(map(len, data.samples["boxes"])) == 984
    if expected[1] == 2792:
        assert data.samples["patient_id"].nunique() == 1933


def test_vindr_votes_and_preset(shared, caplog):
    """971 real films of three readers, who agree in each that there is nothing, or that there is something."""

    def vindr(**arguments):
        return VinDrCXR(shared / "data/metadata/vindr", check_duplicates=False, **arguments)

    for votes in ("any", "majority", "all"):
        assert labels(vindr(votes=votes)) == (531, 440)
    assert sum(map(len, vindr().samples["boxes"])) == 3007  # of 3,398 rows
    assert count(vindr(preset="medianomaly")) == {
        "train normal": 354,
        "val normal": 88,
        "val abnormal": 220,
        "test normal": 88,
        "test abnormal": 220,
    }
    assert "train normal 354 (published 4000)" in caplog.text
    assert "train normal 531 (published 10606)" in caplog.text
