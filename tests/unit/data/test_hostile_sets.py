"""Hostile and broken copies of every table set: each is read as what it says, or refused by an error that says why."""

import csv
import gzip
import io
import logging
import shutil
import struct
import zlib
from collections.abc import Callable
from pathlib import Path

import drawn_sets
import numpy as np
import pytest
import torch
from lightning.pytorch import LightningModule, Trainer

from anomalib_cxr import data as sets
from anomalib_cxr.data.tables import TableError

DRAWN = {
    "PadChest": (drawn_sets.padchest, {}),
    "CheXpert": (drawn_sets.chexpert, {"split": "official"}),
    "RSNA": (drawn_sets.rsna, {}),
    "MIMICCXR": (drawn_sets.mimic_cxr, {}),
    "NIH": (drawn_sets.nih, {}),
    "RadiographTable": (drawn_sets.radiograph_table, {"table": "images.csv"}),
    "VinDrCXR": (drawn_sets.vindr_cxr, {}),
}
# The table with the labels, its columns of ids and labels, and all columns that must be there.
TABLES = {
    "PadChest": ("PADCHEST*.csv.gz", "ImageID", "Labels", ["PatientID", "Projection", "Pediatric", "MethodLabel"]),
    "CheXpert": ("*/train.csv", "Path", "Edema", ["AP/PA", "No Finding", "Support Devices", "Atelectasis"]),
    "RSNA": ("stage_2_train_labels.csv", "patientId", "Target", ["x", "y", "width", "height"]),
    "MIMICCXR": ("*-chexpert.csv.gz", "study_id", "Edema", ["subject_id", "No Finding", "Support Devices"]),
    "NIH": ("Data_Entry_2017_v2020.csv", "Image Index", "Finding Labels", ["Patient ID", "View Position"]),
    "RadiographTable": ("images.csv", "image_path", "label", []),
    "VinDrCXR": ("train.csv", "image_id", "class_name", ["x_min", "y_min", "x_max", "y_max"]),
}


@pytest.fixture(params=DRAWN)
def name(request):
    return request.param


def make(name: str, root: Path, **kwargs):
    return getattr(sets, name)(root, num_workers=0, **DRAWN[name][1], **kwargs)


@pytest.fixture
def root(name, tmp_path):
    return DRAWN[name][0](tmp_path / "root")


def read(path: Path) -> list[dict[str, str]]:
    content = path.read_bytes()
    text = (gzip.decompress(content) if path.suffix == ".gz" else content).decode()
    return list(csv.DictReader(io.StringIO(text)))


def edit(name: str, root: Path, change: Callable[[list[dict[str, str]]], object]) -> Path:
    """Change the rows of the table with the labels in place, or by what the change returns."""
    (path,) = root.glob(TABLES[name][0])
    rows = read(path)
    drawn_sets.write_csv(path, change(rows) or rows)
    return path


def splits(data) -> dict[str, str]:
    samples = data.samples
    return dict(zip(samples["image_path"], samples["split"], strict=True))


def test_another_delimiter_and_a_byte_order_mark(name, root):
    expected = splits(make(name, root))
    tables = [*root.rglob("*.csv"), *root.rglob("*.csv.gz")]
    for path in tables:
        rows = read(path)
        text = io.StringIO()
        writer = csv.DictWriter(text, list(rows[0]), delimiter=";", lineterminator="\r\n")
        writer.writeheader()
        writer.writerows(rows)
        content = b"\xef\xbb\xbf" + text.getvalue().encode()
        path.write_bytes(gzip.compress(content) if path.suffix == ".gz" else content)
    assert tables
    assert splits(make(name, root)) == expected


def test_missing_columns_are_named_beside_what_was_found(name, root):
    _, key, label, others = TABLES[name]
    for column in (key, label, *others):
        kept = root.with_name("copy")
        shutil.copytree(root, kept)
        path = edit(name, kept, lambda rows, column=column: [row | {"other": row.pop(column)} for row in rows] and rows)
        with pytest.raises(TableError) as error:
            _ = make(name, kept).samples
        assert str(path) in str(error.value)
        assert f"lacks the columns ['{column}']" in str(error.value)
        assert "its first line has [" in str(error.value)
        shutil.rmtree(kept)


def test_repeated_ids_are_refused(name, root):
    path = edit(name, root, lambda rows: rows.append(dict(rows[0])))
    with pytest.raises(TableError, match=f"{path.name}.* repeat"):
        _ = make(name, root).samples


@pytest.mark.parametrize("cell", ["__import__('pathlib').Path('OWNED').touch()", "normal", "{'a': 1}", "=1+1"])
def test_code_and_nonsense_in_a_label_cell_are_data(name, root, cell, monkeypatch):
    monkeypatch.chdir(root)
    if name == "RadiographTable" and cell == "normal":
        return
    for wrapped in (cell, f"[{cell}]"):
        path = edit(name, root, lambda rows, wrapped=wrapped: rows[0].update({TABLES[name][2]: wrapped}))
        with pytest.raises(TableError, match=path.name):
            _ = make(name, root).samples
    assert not list(root.rglob("OWNED"))


@pytest.mark.parametrize("listed", ["../../secret.png", "/etc/passwd", "a/../../../b.png", "C:\\b.png", "..\\b.png"])
def test_paths_that_leave_the_root_are_refused(name, root, listed):
    path = edit(name, root, lambda rows: rows[0].update({TABLES[name][1]: listed}))
    if name == "MIMICCXR":
        # Its paths are made of the ids in the metadata; a strange study in the label table belongs to no image.
        (path,) = root.glob("*-metadata.csv.gz")
        rows = read(path)
        drawn_sets.write_csv(path, [rows[0] | {"dicom_id": listed}, *rows[1:]])
    with pytest.raises(TableError, match=path.name):
        _ = make(name, root).samples


def test_a_link_in_circles_is_not_followed(name, root):
    expected = splits(make(name, root))
    for folder in {Path(path).parent for path in expected}:
        (folder / "loop").symlink_to(root, target_is_directory=True)
        (folder / "self").symlink_to(folder / "self")
    assert splits(make(name, root)) == expected
    first = Path(next(iter(expected)))
    first.unlink()
    first.symlink_to(first)  # there by name, but no file
    data = make(name, root)
    assert [path for path in data.find_unreadable() if path == str(first)]


def test_ten_missing_images_are_named_and_all_are_counted(name, root):
    images = sorted(splits(make(name, root)))
    gone = images[:12] if name != "CheXpert" else [path for path in images if "/train/" in path][:12]
    for path in gone:
        Path(path).unlink()
    listed = [Path(path).relative_to(root).as_posix() for path in gone]
    with pytest.raises(TableError, match=r"12 of \d+ listed images do not exist") as error:
        _ = make(name, root).samples
    assert f": {', '.join(listed[:10])}, ...; complete them or pass on_missing='skip'" in str(error.value)
    assert not any(path in str(error.value) for path in listed[10:])


def claim(side: int) -> bytes:
    """A PNG file whose header claims so many pixels a side."""
    chunks = [
        (b"IHDR", struct.pack(">2I5B", side, side, 16, 0, 0, 0, 0)),
        (b"IDAT", zlib.compress(b"")),
        (b"IEND", b""),
    ]
    body = (struct.pack(">I", len(d)) + k + d + struct.pack(">I", zlib.crc32(k + d)) for k, d in chunks)
    return b"\x89PNG\r\n\x1a\n" + b"".join(body)


def test_images_that_claim_to_be_huge_are_skipped_with_the_claim(name, root, tmp_path):
    paths = [Path(path) for path, part in splits(make(name, root)).items() if part == "train"][:2]
    paths[0].write_bytes(claim(100_000))
    drawn_sets.save_dicom(tmp_path / "huge.dcm", np.zeros((4, 4), np.uint8), 8)
    import pydicom

    dataset = pydicom.dcmread(tmp_path / "huge.dcm")
    dataset.Rows = dataset.Columns = 65535  # the most that a DICOM header can claim
    dataset.save_as(paths[1])
    data = make(name, root, on_error="skip")
    _ = data.samples
    assert set(data.skipped) == {str(path) for path in paths}
    assert "10000000000 pixels" in data.skipped[str(paths[0])]
    assert "65535 x 65535 pixels, more than" in data.skipped[str(paths[1])]


# --- which filter emptied a split -------------------------------------------------------------------------------------


def empty(label: str, part: str, filters: str) -> str:
    return rf"no {label} image is left in the {part} split after '{filters}'; in order: listed \d+ \+ \d+, "


def test_the_view_that_emptied_an_official_split_is_named(tmp_path):
    drawn_sets.chexpert(tmp_path / "chexpert")
    path = tmp_path / "chexpert/CheXpert-v1.0-small/valid.csv"
    rows = read(path)
    drawn_sets.write_csv(path, [row | {"AP/PA": "AP" if row["No Finding"] else "PA"} for row in rows])
    for arguments in ({"split": "official"}, {"preset": "anatpaste"}):
        with pytest.raises(TableError, match=empty("normal", "val", "view PA")):
            _ = sets.CheXpert(tmp_path / "chexpert", num_workers=0, **arguments).samples
    drawn_sets.mimic_cxr(tmp_path / "mimic")
    (path,) = (tmp_path / "mimic").glob("*-metadata.csv.gz")
    (official,) = (tmp_path / "mimic").glob("*-split.csv.gz")
    test = {row["dicom_id"] for row in read(official) if row["split"] == "test"}
    drawn_sets.write_csv(path, [r | {"ViewPosition": "AP" if r["dicom_id"] in test else "PA"} for r in read(path)])
    with pytest.raises(TableError, match=empty("normal", "test", "view PA")):
        _ = sets.MIMICCXR(tmp_path / "mimic", num_workers=0).samples
    assert len(sets.MIMICCXR(tmp_path / "mimic", num_workers=0, split="patient").samples)


@pytest.mark.parametrize(("argument", "culprit"), [("on_missing", "file exists"), ("on_error", "readable")])
def test_files_that_emptied_a_split_are_named(name, root, argument, culprit):
    if name == "CheXpert" and argument == "on_missing":
        pytest.skip("its test images are found by a look at the folders")
    data = make(name, root, split_manifest=root / "split.csv")
    samples = data.samples
    for path in samples["image_path"][(samples["split"] == "val") & (samples["label"] == "abnormal")]:
        Path(path).write_bytes(b"")
        if argument == "on_missing":
            Path(path).unlink()
    with pytest.raises(
        TableError, match=rf"no abnormal image is left in the val split after '({culprit}|division into splits)'"
    ):
        _ = make(name, root, split_manifest=root / "split.csv", **{argument: "skip"}).samples


@pytest.mark.parametrize(
    ("name", "arguments", "culprit"),
    [
        ("PadChest", {"projections": ["AP_horizontal"]}, "projection AP_horizontal"),
        ("PadChest", {"patients": "children"}, "children"),
        ("CheXpert", {"views": ["LL", "RL"]}, "view LL or RL"),
        ("RSNA", {"views": ["AP"]}, "view AP"),
        ("MIMICCXR", {"views": ["LATERAL"]}, "view LATERAL"),
        ("NIH", {"views": ["AP"]}, "view AP"),
    ],
)
def test_a_filter_that_leaves_nothing_is_named(name, arguments, culprit, root):
    if name == "CheXpert":
        arguments = {**arguments, "split": "patient"}
    with pytest.raises(TableError, match=rf"the filter '{culprit}' left none of \d+ images; filters in order: listed"):
        _ = getattr(sets, name)(root, num_workers=0, **arguments).samples


# --- tables that contradict each other --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("table", "change", "message"),
    [
        ("stage_2_train_labels.csv", lambda r: r.append(r[0] | r[-4] | {"patientId": r[0]["patientId"]}), "other rows"),
        ("stage_2_train_labels.csv", lambda r: r.append(dict(r[0])), "1 rows repeat a box|2 rows repeat a box"),
        ("stage_2_train_labels.csv", lambda r: r.append(dict(r[25])), "1 rows repeat a box"),
        ("stage_2_detailed_class_info.csv", lambda r: r[0].update({"class": "Lung Opacity"}), "1 images of class"),
        ("stage_2_detailed_class_info.csv", lambda r: r[24].update({"class": "Normal"}), "or others have one"),
        ("headers.csv", lambda r: r.append(r[0] | {"ViewPosition": "AP"}), "1 rows repeat an id"),
    ],
)
def test_rsna_tables_that_contradict_each_other_are_refused(tmp_path, table, change, message):
    drawn_sets.rsna(tmp_path)
    images = sorted(path.stem for path in (tmp_path / "stage_2_train_images").iterdir())
    drawn_sets.write_csv(tmp_path / "headers.csv", [{"PatientID": i, "ViewPosition": "PA"} for i in images])
    arguments = {"views": ["PA"], "headers": "headers.csv", "num_workers": 0}
    assert len(sets.RSNA(tmp_path, **arguments).samples) == 36
    rows = read(tmp_path / table)
    change(rows)
    drawn_sets.write_csv(tmp_path / table, rows)
    with pytest.raises(TableError, match=message):
        _ = sets.RSNA(tmp_path, **arguments).samples


def test_rsna_files_that_cannot_tell_their_view_are_no_other_view(tmp_path, caplog):
    drawn_sets.rsna(tmp_path)
    images = sorted((tmp_path / "stage_2_train_images").iterdir())
    manifest = tmp_path / "split.csv"
    whole = splits(sets.RSNA(tmp_path, views=["PA"], split_manifest=manifest, num_workers=0))
    images[0].unlink()
    with pytest.raises(TableError, match="1 of 36 listed images do not exist"):
        _ = sets.RSNA(tmp_path, views=["PA"], num_workers=0).samples
    images[1].write_bytes(images[1].read_bytes()[:150])
    images[2].write_bytes(b"no DICOM file")
    with pytest.raises(TableError, match=rf"{images[1].name}: its DICOM header cannot be read.*on_error='skip'"):
        _ = sets.RSNA(tmp_path, views=["PA"], on_missing="skip", num_workers=0).samples
    data = sets.RSNA(tmp_path, views=["PA"], on_missing="skip", on_error="skip", split_manifest=manifest, num_workers=0)
    assert splits(data) == {path: part for path, part in whole.items() if Path(path) not in images[:3]}
    assert set(data.skipped) == {str(images[1]), str(images[2])}
    drawn_sets.write_csv(tmp_path / "some.csv", [{"PatientID": path.stem, "ViewPosition": "PA"} for path in images[9:]])
    with caplog.at_level(logging.WARNING, logger="anomalib_cxr"):
        _ = sets.RSNA(tmp_path, views=["PA"], headers="some.csv", num_workers=0).samples
    assert "9 of 36 images tell no view" in caplog.text


def test_rsna_mapping_that_gives_an_image_two_patients_is_refused(tmp_path):
    drawn_sets.rsna(tmp_path)
    path = tmp_path / "pneumonia-challenge-dataset-mappings_2018.json"
    entries = drawn_sets.json.loads(path.read_text())
    path.write_text(drawn_sets.json.dumps([*entries, entries[0]]))  # twice the same says the same
    assert len(sets.RSNA(tmp_path, num_workers=0).samples) == 36
    path.write_text(drawn_sets.json.dumps([*entries, entries[0] | {"img_id": "00099999_000.png"}]))
    with pytest.raises(TableError, match="gives 1 images another patient"):
        _ = sets.RSNA(tmp_path, num_workers=0).samples


def test_missing_masks_are_found_before_the_training(tmp_path, caplog):
    drawn_sets.radiograph_table(tmp_path)
    rows = read(tmp_path / "images.csv")
    for row in rows:
        row["mask_path"] = f"masks/{Path(row['image_path']).stem}.png" if row["label"] == "abnormal" else ""
        if row["mask_path"]:
            drawn_sets.save(tmp_path / row["mask_path"], np.eye(48))
    drawn_sets.write_csv(tmp_path / "images.csv", rows)
    whole = sets.RadiographTable(tmp_path, table="images.csv", num_workers=0).samples
    (tmp_path / rows[-1]["mask_path"]).unlink()
    with pytest.raises(TableError, match=rf"1 of 8 listed masks do not exist below .*: {rows[-1]['mask_path']};"):
        _ = sets.RadiographTable(tmp_path, table="images.csv", num_workers=0).samples
    less = sets.RadiographTable(tmp_path, table="images.csv", on_missing="skip", num_workers=0).samples
    assert set(whole["image_path"]) - set(less["image_path"]) == {str(tmp_path / rows[-1]["image_path"])}
    assert "1 of 8 listed masks do not exist" in caplog.text


@pytest.mark.parametrize("arguments", [{"fold": 5}, {"fold": -1}, {"fold": 3, "num_folds": 10}])
def test_kim2023_has_five_folds(tmp_path, arguments):
    with pytest.raises(ValueError, match="preset kim2023 has 5 folds, numbered from 0, got fold"):
        sets.PadChest(tmp_path, preset="kim2023", **arguments)


def test_padchest_without_depths_says_so(tmp_path, caplog):
    drawn_sets.padchest(tmp_path)
    edit("PadChest", tmp_path, lambda rows: [row.pop("BitsStored_DICOM") for row in rows] and rows)
    assert "bits" not in sets.PadChest(tmp_path, num_workers=0).samples.columns
    assert "has no column 'BitsStored_DICOM', each file tells its own depth" in caplog.text


def test_tables_are_looked_for_below_the_root_first(tmp_path, monkeypatch):
    drawn_sets.padchest(tmp_path / "data")
    (path,) = (tmp_path / "data").glob("*.csv.gz")
    path.rename(path.with_name("mine.csv.gz"))
    monkeypatch.chdir(tmp_path)
    below = sets.PadChest("data", table="mine.csv.gz", num_workers=0).samples
    assert len(sets.PadChest("data", table="data/mine.csv.gz", num_workers=0).samples) == len(below)


# --- manifests and folds, and what was left out -----------------------------------------------------------------------


def test_a_manifest_of_another_round_or_part_is_refused_and_other_settings_are_said(name, root, caplog):
    if name == "CheXpert":
        pytest.skip("its official split has no rounds")
    manifest = root / "split.csv"
    made = splits(make(name, root, split_manifest=manifest, fold=1, num_folds=3))
    assert splits(make(name, root, split_manifest=manifest, fold=1, num_folds=3)) == made
    for other in ({"fold": 2, "num_folds": 3}, {"fold": 1, "num_folds": 4}, {"fraction": 0.5}, {"limit": 9}):
        with pytest.raises(TableError, match=rf"made with other settings: .*; drop \['({next(iter(other))}|num_folds)"):
            _ = make(name, root, split_manifest=manifest, **other).samples
    with caplog.at_level(logging.WARNING, logger="anomalib_cxr"):
        assert splits(make(name, root, split_manifest=manifest, seed=5)) == made
    assert "decides, not these settings: seed 0 there, 5 here" in caplog.text


def test_a_refused_split_leaves_no_manifest(tmp_path):
    drawn_sets.radiograph_table(tmp_path)
    edit(
        "RadiographTable",
        tmp_path,
        lambda rows: [r.update(split=("train", "val", "test")[i % 3]) for i, r in enumerate(rows)] and rows,
    )
    manifest = tmp_path / "split.csv"
    with pytest.raises(ValueError, match="patients are in more than one split"):
        _ = sets.RadiographTable(tmp_path, table="images.csv", split_manifest=manifest, num_workers=0).samples
    assert not manifest.exists()


def test_a_manifest_serves_where_images_are_missing_and_skipped(name, root):
    manifest = root / "split.csv"
    made = splits(make(name, root, split_manifest=manifest))
    gone = [path for path, part in made.items() if part == "train"][:2]
    for path in gone:
        Path(path).unlink()
    with pytest.raises(TableError, match=r"2 of \d+ listed images do not exist"):
        _ = make(name, root, split_manifest=manifest).samples
    left = splits(make(name, root, split_manifest=manifest, on_missing="skip"))
    assert left == {path: part for path, part in made.items() if path not in gone}


class Silent(LightningModule):
    """Goes through the data and says when it is done."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(()))

    def training_step(self, batch, _):
        return self.weight * batch.image.mean()

    def validation_step(self, batch, _):
        return batch.update(pred_score=batch.image.flatten(1).mean(1))

    test_step = predict_step = validation_step

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)

    def done(self) -> None:
        logging.getLogger("anomalib_cxr").warning("the run is over")

    on_fit_end = on_validation_end = on_test_end = on_predict_end = done


@pytest.mark.parametrize("stage", ["fit", "validate", "test", "predict"])
def test_skipped_images_are_reported_once_at_the_end_of_each_run(stage, tmp_path, caplog):
    drawn_sets.radiograph_table(tmp_path)
    whole = splits(make("RadiographTable", tmp_path))
    broken = [next(path for path, part in whole.items() if part == split) for split in ("train", "test")]
    Path(broken[0]).write_bytes(b"")
    Path(broken[1]).write_bytes(Path(broken[1]).read_bytes()[:60])
    data = make("RadiographTable", tmp_path, on_error="skip")
    quiet = {
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
    }
    trainer = Trainer(accelerator="cpu", max_epochs=1, default_root_dir=tmp_path, num_sanity_val_steps=0, **quiet)
    with caplog.at_level(logging.WARNING, logger="anomalib_cxr"):
        getattr(trainer, stage)(Silent(), datamodule=data)
    said = [record.getMessage() for record in caplog.records if record.name.startswith("anomalib_cxr")]
    reports = [place for place, text in enumerate(said) if "2 images could not be read and were skipped:" in text]
    assert reports == [len(said) - 1]
    assert max(place for place, text in enumerate(said) if text == "the run is over") < reports[0]
    for path, reason in zip(broken, ("it is empty", "cannot be read as a radiograph"), strict=True):
        assert any(path in line and reason in line for line in said[-1].splitlines())


def test_without_skipped_images_nothing_is_reported(tmp_path, caplog):
    drawn_sets.radiograph_table(tmp_path)
    data = make("RadiographTable", tmp_path, on_error="skip")
    data.setup()
    data.teardown("fit")
    assert "skipped" not in caplog.text
