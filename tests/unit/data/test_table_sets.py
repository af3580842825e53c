"""Every table set, drawn small: what comes out of setup is right, complete and safe by patient."""

import csv
import logging
from collections import Counter
from pathlib import Path
from unittest.mock import patch

import drawn_sets
import numpy as np
import pandas as pd
import pytest
import torch
from anomalib.data import AnomalibDataModule
from torchvision.transforms.v2 import InterpolationMode, Resize

from anomalib_cxr import data as sets
from anomalib_cxr.data.chexpert import draw_with_findings
from anomalib_cxr.data.tables import TableError

QUICK = {"num_workers": 0}
DRAWN = {
    "PadChest": (drawn_sets.padchest, {}),
    "CheXpert": (drawn_sets.chexpert, {}),
    "RSNA": (drawn_sets.rsna, {}),
    "MIMICCXR": (drawn_sets.mimic_cxr, {}),
    "NIH": (drawn_sets.nih, {}),
    "NLMTB": (drawn_sets.nlm_tb, {}),
    "MedAD": (drawn_sets.med_ad, {}),
    "RadiographTable": (drawn_sets.radiograph_table, {"table": "images.csv"}),
    "VinDrCXR": (drawn_sets.vindr_cxr, {}),
}


def make(name: str, root: Path, **kwargs):
    draw, arguments = DRAWN[name]
    return getattr(sets, name)(draw(root), **QUICK, **arguments, **kwargs)


def numbers(samples: pd.DataFrame) -> dict[tuple[str, str], int]:
    return dict(Counter(zip(samples["split"], samples["label"], strict=True)))


@pytest.mark.parametrize("name", DRAWN)
def test_setup_yields_every_sample_once_and_reads_it(name, tmp_path):
    data = make(name, tmp_path, eval_batch_size=5)
    data.setup()
    samples = data.samples
    assert samples.groupby("patient_id")["split"].nunique().max() == 1
    assert set(samples.loc[samples["split"] == "train", "label"]) == {"normal"}
    for split, loader in (("val", data.val_dataloader()), ("test", data.test_dataloader())):
        rows = samples[samples["split"] == split].set_index("image_path")
        seen = {}
        for batch in loader:
            assert batch.image.dtype == torch.float32
            assert 0 <= batch.image.min() <= batch.image.max() <= 1
            seen |= dict(zip(batch.image_path, batch.gt_label.tolist(), strict=True))
        assert seen == (rows["label"] == "abnormal").astype(int).to_dict()


@pytest.mark.parametrize("name", DRAWN)
def test_constructed_from_yaml(name, tmp_path):
    _, arguments = DRAWN[name]
    extra = "".join(f"  {key}: {value}\n" for key, value in arguments.items())
    config = tmp_path / "data.yaml"
    config.write_text(
        f"class_path: anomalib_cxr.data.{name}\ninit_args:\n  root: {tmp_path}\n{extra}  fraction: 0.5\n  fold: 1\n"
        "  on_missing: skip\n  train_batch_size: 3\n"
    )
    data = AnomalibDataModule.from_config(config)
    assert (data.name, data.fraction, data.fold, data.on_missing) == (name, 0.5, 1, "skip")
    assert (data.train_batch_size, data.root) == (3, tmp_path)


@pytest.mark.parametrize("name", DRAWN)
def test_folds_test_everyone_exactly_once(name, tmp_path):
    tested = Counter()
    for fold in range(3):
        data = make(name, tmp_path, fold=fold, num_folds=3)
        samples = data.samples
        assert samples.groupby("patient_id")["split"].nunique().max() == 1
        tested.update(samples["image_path"][samples["split"] == "test"])
    assert set(tested.values()) == {1}
    everyone = len([path for path in tmp_path.rglob("*.png") if "mask" not in str(path).lower()])
    everyone += len(list(tmp_path.rglob("*.jpg")))
    everyone += len([*tmp_path.rglob("*.dcm"), *tmp_path.rglob("*.dicom")])
    unused = {"CheXpert": 18, "RSNA": 3}.get(name, 0)  # official valid and test; neither normal nor with an opacity
    assert len(tested) == everyone - unused


@pytest.mark.parametrize("name", DRAWN)
def test_fraction_and_limit_are_by_patient_and_nested(name, tmp_path):
    whole = make(name, tmp_path).samples
    half = make(name, tmp_path, fraction=0.5).samples
    small = make(name, tmp_path, limit=8).samples
    split = whole.set_index("image_path")["split"]
    for part in (half, small):
        assert (split[part["image_path"]].to_numpy() == part["split"].to_numpy()).all()
        images = whole[whole["patient_id"].isin(part["patient_id"])]
        assert sorted(images["image_path"]) == sorted(part["image_path"])
    assert small["patient_id"].nunique() <= 8
    assert whole["patient_id"].nunique() * 0.4 <= half["patient_id"].nunique() <= whole["patient_id"].nunique() * 0.7


@pytest.mark.parametrize("name", DRAWN)
def test_a_manifest_gives_the_same_split_under_another_root(name, tmp_path):
    manifest = tmp_path / "split.csv"
    first = make(name, tmp_path / "a", split_manifest=manifest, seed=3)
    written = first.samples
    second = make(name, tmp_path / "elsewhere", split_manifest=manifest, seed=99)
    again = second.samples

    def relative(data, samples):
        return {Path(p).relative_to(data.root): s for p, s in zip(samples["image_path"], samples["split"], strict=True)}

    assert relative(first, written) == relative(second, again)


@pytest.mark.parametrize("name", DRAWN)
def test_missing_images_are_counted_named_and_skipped_on_request(name, tmp_path, caplog):
    if name == "NLMTB":
        pytest.skip("its films are found by a look at the folder")
    whole = make(name, tmp_path).samples
    gone = whole[whole["label"] == "normal"]["image_path"].iloc[:2]
    for path in gone:
        Path(path).unlink()
    _, arguments = DRAWN[name]
    again = getattr(sets, name)(tmp_path, **QUICK, **arguments)
    message = rf"2 of \d+ listed images do not exist.*{Path(gone.iloc[0]).name}"
    with pytest.raises(TableError, match=message):
        _ = again.samples
    skipping = getattr(sets, name)(tmp_path, **QUICK, **arguments, on_missing="skip")
    with caplog.at_level(logging.WARNING, logger="anomalib_cxr"):
        samples = skipping.samples
    assert len(samples) == len(whole) - 2
    assert "2 of" in caplog.text


@pytest.mark.parametrize("name", DRAWN)
def test_unreadable_images_are_skipped_with_their_reason_on_request(name, tmp_path, caplog):
    make(name, tmp_path)
    _, arguments = DRAWN[name]
    whole = getattr(sets, name)(tmp_path, **QUICK, **arguments).samples
    broken = Path(whole[whole["split"] == "test"]["image_path"].iloc[0])
    broken.write_bytes(broken.read_bytes()[:300])
    empty = Path(whole[whole["split"] == "val"]["image_path"].iloc[0])
    empty.write_bytes(b"")
    with caplog.at_level(logging.INFO, logger="anomalib_cxr"):
        samples = getattr(sets, name)(tmp_path, **QUICK, **arguments, on_error="skip").samples
    assert sorted(set(whole["image_path"]) - set(samples["image_path"])) == sorted([str(broken), str(empty)])
    assert f"skipped {broken}" in caplog.text
    assert f"skipped {empty}" in caplog.text
    assert "2 of" in caplog.text
    data = getattr(sets, name)(tmp_path, **QUICK, **arguments)
    data.setup()
    index = data.test_data.samples["image_path"].tolist().index(str(broken))
    with pytest.raises(ValueError, match=broken.stem):
        data.test_data[index]


@pytest.mark.parametrize("name", DRAWN)
def test_the_cache_changes_nothing_but_the_work(name, tmp_path):
    plain = make(name, tmp_path)
    plain.setup()
    data = make(name, tmp_path, cache_dir=tmp_path / "cache", cache_size=32)
    assert data.prepare_cache() == {}
    data.setup()
    with patch("anomalib_cxr.imaging.cache.read_radiograph", None):
        cached = [data.test_data[index] for index in range(len(data.test_data))]
    for index, item in enumerate(cached):
        other = plain.test_data[index]
        assert item.image_path == other.image_path
        resized = Resize((32, 32), antialias=True)(other.image)
        torch.testing.assert_close(item.image, resized, atol=1e-5, rtol=0)
        if other.gt_mask is not None:
            assert torch.equal(item.gt_mask, Resize((32, 32), InterpolationMode.NEAREST)(other.gt_mask[None])[0])


def test_a_cache_needs_folder_and_size(tmp_path):
    with pytest.raises(ValueError, match="cache_dir and cache_size go together"):
        make("RSNA", tmp_path, cache_dir=tmp_path)
    with pytest.raises(ValueError, match="give cache_dir and cache_size"):
        make("RSNA", tmp_path).prepare_cache()


def test_padchest_converted_to_eight_bits(tmp_path):
    make("PadChest", tmp_path)
    for path in tmp_path.rglob("*.png"):
        drawn_sets.save(path, np.asarray(drawn_sets.Image.open(path)) / 4095)
    data = sets.PadChest(tmp_path, depth="file", **QUICK)
    data.setup()
    item = data.test_data[0]
    expected = np.asarray(drawn_sets.Image.open(item.image_path)) / 255
    np.testing.assert_allclose(item.image[0].numpy(), expected, atol=1e-6)


def test_duplicates_across_splits_are_reported(tmp_path, caplog):
    data = make("RadiographTable", tmp_path)
    samples = data.samples
    one = samples[(samples["split"] == "train") & samples["image_path"].str.endswith(".png")]["image_path"].iloc[0]
    other = samples[(samples["split"] == "test") & samples["image_path"].str.endswith(".png")]["image_path"].iloc[0]
    Path(other).write_bytes(Path(one).read_bytes())
    with caplog.at_level(logging.WARNING, logger="anomalib_cxr"):
        _ = sets.RadiographTable(tmp_path, table="images.csv").samples
    assert "1 groups of byte-identical files are in more than one split" in caplog.text
    assert " = ".join(sorted([one, other])) in caplog.text


# --- each set's own rules ---------------------------------------------------------------------------------------------


def test_padchest_reads_twelve_bits_and_both_layouts(tmp_path):
    folders = make("PadChest", tmp_path / "folders")
    flat = sets.PadChest(drawn_sets.padchest(tmp_path / "flat", flat=True), **QUICK)
    assert numbers(folders.samples) == numbers(flat.samples)
    folders.setup()
    # So dark that its highest pixel would fit ten bits: only the table tells that it has twelve.
    dark = folders.test_data.samples["image_path"].iloc[0]
    drawn_sets.save(Path(dark), 0.2 * drawn_sets.chest(5, abnormal=False), bits=12)
    item = folders.test_data[0]
    row = folders.samples.set_index("image_path").loc[item.image_path]
    assert row["bits"] == 12
    expected = np.asarray(drawn_sets.Image.open(item.image_path)) / 4095
    np.testing.assert_allclose(item.image[0].numpy(), expected, atol=1e-6)
    assert set(folders.samples["findings"]) == {"", "nodule|pleural effusion"}


def test_rsna_boxes_are_masks(tmp_path):
    data = make("RSNA", tmp_path)
    data.setup()
    assert data.task == "segmentation"
    for index in range(len(data.test_data)):
        item = data.test_data[index]
        expected = torch.zeros(48, 48)
        if item.gt_label:
            number = int(Path(item.image_path).stem.partition("-")[0], 16)
            expected[6:18, 12:36] = 1  # 128..384 of 1024 rows and 256..768 columns, at 48 pixels
            if number % 2:
                expected[36:48, 0:12] = 1
        assert torch.equal(item.gt_mask.float(), expected)
    plain = sets.RSNA(tmp_path, include_not_normal=True, **QUICK)
    plain.setup()
    assert plain.task == "classification"
    assert len(plain.samples) == len(data.samples) + 3


def test_rsna_patients_come_from_the_mapping_or_are_called_unsafe(tmp_path, caplog):
    data = make("RSNA", tmp_path)
    assert data.samples.groupby("patient_id").size().max() == 2
    assert data.patient_safe
    (tmp_path / "pneumonia-challenge-dataset-mappings_2018.json").unlink()
    unsafe = sets.RSNA(tmp_path, **QUICK)
    with caplog.at_level(logging.WARNING, logger="anomalib_cxr"):
        assert unsafe.samples["patient_id"].is_unique
    assert "NOT safe by patient" in caplog.text
    assert not unsafe.patient_safe


def test_rsna_views_come_from_headers_or_a_table(tmp_path):
    make("RSNA", tmp_path)
    changed = sorted((tmp_path / "stage_2_train_images").iterdir())[:4]
    for path in changed:
        drawn_sets.save_dicom(path, np.full((48, 48), 9, dtype=np.uint8), 8, view="AP")
    samples = sets.RSNA(tmp_path, views=["PA"], **QUICK).samples
    assert not set(samples["image_path"]) & {str(path) for path in changed}
    assert len(samples) == 32
    rows = [{"PatientID": path.stem, "ViewPosition": "PA"} for path in changed]
    drawn_sets.write_csv(tmp_path / "headers.csv", rows)
    with pytest.raises(TableError, match=r"no abnormal image is left after 'view PA'"):
        _ = sets.RSNA(tmp_path, views=["PA"], headers="headers.csv", **QUICK).samples


def test_rsna_class_table_may_lack_images(tmp_path, caplog):
    make("RSNA", tmp_path)
    path = tmp_path / "stage_2_detailed_class_info.csv"
    rows = list(csv.DictReader(path.open()))
    lost = {rows[0]["patientId"], rows[30]["patientId"]}  # one normal, one with boxes
    drawn_sets.write_csv(path, [row for row in rows if row["patientId"] not in lost])
    with caplog.at_level(logging.INFO, logger="anomalib_cxr"):
        samples = sets.RSNA(tmp_path, **QUICK).samples
    assert Counter(samples["label"]) == {"normal": 23, "abnormal": 12}
    assert "2 images are not in the class table: 1 with boxes are abnormal" in caplog.text


def test_chexpert_official_split_and_test_by_study(tmp_path):
    samples = make("CheXpert", tmp_path, split="official").samples
    assert numbers(samples) == {
        ("train", "normal"): 24,
        ("val", "normal"): 4,
        ("val", "abnormal"): 5,
        ("test", "normal"): 4,
        ("test", "abnormal"): 5,
    }
    assert samples["image_path"].str.contains("/test/").sum() == 9
    # The folder of the tables itself is as good a root.
    inner = sets.CheXpert(tmp_path / "CheXpert-v1.0-small", split="official", **QUICK).samples
    assert numbers(inner) == numbers(samples)


def test_chexpert_uncertain_and_support_devices(tmp_path):
    make("CheXpert", tmp_path)
    path = tmp_path / "CheXpert-v1.0-small/train.csv"
    rows = list(csv.DictReader(path.open()))
    rows[0]["Support Devices"] = "1.0"  # a normal with a tube
    rows[30]["Edema"] = "-1.0"  # abnormal (Atelectasis), and perhaps oedema
    rows[31] |= dict.fromkeys(drawn_sets.FIVE, "") | {"Edema": "-1.0"}  # perhaps oedema only
    rows[32] |= dict.fromkeys(drawn_sets.FIVE, "") | {"Fracture": "1.0"}  # none of the five
    rows[33]["No Finding"] = "1.0"  # contradicts itself
    drawn_sets.write_csv(path, rows)

    def count(**kwargs):
        return Counter(sets.CheXpert(tmp_path, **QUICK, **kwargs).samples["label"])

    assert count() == {"normal": 24, "abnormal": 11}
    assert count(uncertain="zeros") == {"normal": 24, "abnormal": 12}
    assert count(uncertain="ones") == {"normal": 24, "abnormal": 13}
    assert count(keep_support_devices=False) == {"normal": 23, "abnormal": 11}
    findings = sets.CheXpert(tmp_path, uncertain="ones", **QUICK).samples.set_index("image_path")["findings"]
    assert findings[str(tmp_path / rows[30]["Path"])] == "Atelectasis|Edema"


def test_chexpert_preset_draws_every_finding():
    """The draw against its definition, on a table large enough for the published counts."""
    rng = np.random.default_rng(0)
    rows = []
    for patient in range(9000):
        for _ in range(int(rng.integers(1, 4))):
            sick = rng.random() < 0.3
            which = [f for f, p in zip(drawn_sets.FIVE, (0.5, 0.3, 0.02, 0.1, 0.5), strict=True) if rng.random() < p]
            label = ("abnormal" if which else "") if sick else "normal"
            if label:
                rows.append((f"p{patient}", label, "|".join(which) if sick else ""))
    table = pd.DataFrame(rows, columns=["patient_id", "label", "findings"])
    drawn = draw_with_findings(table, {"normal": 300, "abnormal": 300}, 50, seed=0)
    test = table[table["patient_id"].isin(drawn)]
    assert Counter(test["label"]) == {"normal": 300, "abnormal": 300}
    present = Counter(finding for cell in test["findings"] for finding in cell.split("|") if finding)
    assert min(present[finding] for finding in drawn_sets.FIVE) >= 50


def test_mimic_takes_the_official_split(tmp_path):
    data = make("MIMICCXR", tmp_path)
    import gzip

    with gzip.open(tmp_path / "mimic-cxr-2.0.0-split.csv.gz", "rt") as file:
        official = {row["dicom_id"]: row["split"].replace("validate", "val") for row in csv.DictReader(file)}
    samples = data.samples
    assert all(official[Path(p).stem] == s for p, s in zip(samples["image_path"], samples["split"], strict=True))
    sick_training = sum(1 for i, part in enumerate(official.values()) if i >= 16 and part == "train")
    assert len(samples) == 26 - sick_training


def test_nih_official_split_is_kept_and_validation_drawn_from_its_training(tmp_path):
    samples = make("NIH", tmp_path, val_ratio=0.25).samples
    listed = {part: set((tmp_path / f"{part}_list.txt").read_text().split()) for part in ("train_val", "test")}
    parts = {Path(path).name: part for path, part in zip(samples["image_path"], samples["split"], strict=True)}
    assert {name for name, part in parts.items() if part == "test"} == listed["test"]
    assert {name for name, part in parts.items() if part != "test"} <= listed["train_val"]
    # Every third patient is tested, every fourth has two images: 20 + 10 are left, of which a quarter is validation.
    assert numbers(samples) == {
        ("train", "normal"): 16,
        ("val", "normal"): 4,
        ("val", "abnormal"): 2,
        ("test", "normal"): 10,
        ("test", "abnormal"): 5,
    }
    assert set(samples["findings"]) == {"", "Effusion|Infiltration"}


def test_nih_layouts_and_views(tmp_path):
    flat = make("NIH", tmp_path / "flat").samples
    numbered = sets.NIH(drawn_sets.nih(tmp_path / "numbered", numbered=True), **QUICK).samples
    assert set(numbered["image_path"].str.split("/").str[-3]) == {"images_001", "images_002", "images_003"}
    assert numbers(flat) == numbers(numbered)
    drawn_sets.nih(tmp_path / "bare")
    for path in (tmp_path / "bare/images").iterdir():
        path.rename(tmp_path / "bare" / path.with_suffix(".jpg").name)  # a converted copy
    (tmp_path / "bare/images").rmdir()
    assert numbers(sets.NIH(tmp_path / "bare", **QUICK).samples) == numbers(flat)
    table = tmp_path / "flat/Data_Entry_2017_v2020.csv"
    table.write_text(table.read_text().replace(",1,57,M,PA,", ",1,57,M,AP,"))  # patient 1 has two images
    assert len(sets.NIH(tmp_path / "flat", views=["PA", "AP"], **QUICK).samples) == len(flat)
    # The header of 2017's own table ends with a comma, and so do its rows.
    table.write_text("".join(f"{line},\n" for line in table.read_text().splitlines()))
    table.rename(table.with_name("Data_Entry_2017.csv"))
    assert len(sets.NIH(tmp_path / "flat", **QUICK).samples) == len(flat) - 2


def test_nih_boxes_are_masks_of_the_images_that_have_them(tmp_path):
    drawn_sets.nih(tmp_path)
    path = tmp_path / "BBox_List_2017.csv"
    lines = path.read_text().splitlines()
    path.write_text("\n".join(line for line in lines if not line.startswith("00000025_000")))
    data = sets.NIH(tmp_path, masks=True, split="patient", **QUICK)
    data.setup()
    assert data.task == "segmentation"
    assert "00000025_000.png" not in " ".join(data.samples["image_path"])
    assert "00000025_001.png" in " ".join(data.samples["image_path"])
    for item in data.test_data:
        expected = torch.zeros(48, 48)
        if item.gt_label:
            expected[6:18, 12:36] = 1  # 128..384 of 1024 rows and 256..768 columns, at 48 pixels
            if int(Path(item.image_path).stem[:8]) % 2 == 0:
                expected[36:48, 0:12] = 1
        assert torch.equal(item.gt_mask.float(), expected)
    assert make("NIH", tmp_path / "plain").samples.attrs["task"] == "classification"


@pytest.mark.parametrize(
    ("file", "change", "message"),
    [
        ("test_list.txt", lambda t: t + "\n00000002_000.png", "1 images are in the other official list too"),
        ("test_list.txt", lambda t: t.replace("00000001_001.png\n", ""), "in neither official list"),
        ("test_list.txt", lambda t: t + "\n" + t, "rows repeat an id in column 'file name'"),
        (
            "Data_Entry_2017_v2020.csv",
            lambda t: t.replace("_001.png,No Finding,1,5,", "_001.png,No Finding,1,6,"),
            "Pat",
        ),
        ("Data_Entry_2017_v2020.csv", lambda t: t.replace("No Finding", "No Finding|Mass", 1), "finding at once"),
        ("Data_Entry_2017_v2020.csv", lambda t: t.replace("No Finding", "Fracture", 1), "unknown finding 'Fracture'"),
        ("BBox_List_2017.csv", lambda t: t.replace("512.0", "900.0", 1), "data row 1: .* is no box inside 1024"),
        ("BBox_List_2017.csv", lambda t: t.replace("512.0", "", 1), "data row 1: .* is no box inside 1024"),
    ],
)
def test_nih_tables_that_contradict_each_other_are_refused(tmp_path, caplog, file, change, message):
    drawn_sets.nih(tmp_path)
    (tmp_path / file).write_text(change((tmp_path / file).read_text()))
    data = sets.NIH(tmp_path, masks=True, **QUICK)
    if message == "in neither official list":
        _ = data.samples
        assert "1 images are in neither official list and not used" in caplog.text
        return
    with pytest.raises(TableError, match=f"{file}.*{message}"):
        _ = data.samples


def test_nih_official_split_is_refused_where_a_patient_is_on_both_sides(tmp_path):
    drawn_sets.nih(tmp_path)
    test, train = tmp_path / "test_list.txt", tmp_path / "train_val_list.txt"
    test.write_text(test.read_text().replace("00000001_001.png\n", ""))
    train.write_text(train.read_text() + "\n00000001_001.png")
    with pytest.raises(TableError, match="1 patients are on both sides of the official split, the first is 00000001"):
        _ = sets.NIH(tmp_path, **QUICK).samples
    assert len(sets.NIH(tmp_path, split="patient", **QUICK).samples) == 45
    assert len(sets.NIH(tmp_path, fold=0, **QUICK).samples) < 45


def test_vindr_boxes_of_all_readers_are_one_mask(tmp_path, caplog):
    data = make("VinDrCXR", tmp_path / "challenge")
    data.setup()
    assert "splits are by image" in caplog.text
    expected = torch.zeros(48, 48)
    expected[6:18, 12:36] = 1  # of the first and third reader
    expected[36:48, 0:12] = 1  # of the second
    for item in data.test_data:
        assert torch.equal(item.gt_mask.float(), expected * int(item.gt_label))
    assert set(data.samples["findings"]) == {"", "ILD|Nodule/Mass"}
    # Films at half their size need the original ones.
    drawn_sets.vindr_cxr(tmp_path / "small", suffix=".png")
    images = sorted((tmp_path / "small/train").iterdir())
    for number, path in enumerate(images):
        drawn_sets.save(path, drawn_sets.chest(number, abnormal=number >= 24, size=24))
    data = sets.VinDrCXR(tmp_path / "small", **QUICK)
    data.setup()
    sick = next(i for i, item in enumerate(data.test_data.samples["label_index"]) if item)
    with pytest.raises(
        ValueError, match=r"a box ends at \(36, 18\), outside its 24 x 24 pixels.*give the original sizes"
    ):
        data.test_data[sick]
    sizes = [{"image_id": path.stem, "dim0": 48, "dim1": 48} for path in images]
    drawn_sets.write_csv(tmp_path / "small/train_meta.csv", sizes)
    data = sets.VinDrCXR(tmp_path / "small", sizes="train_meta.csv", **QUICK)
    data.setup()
    assert torch.equal(data.test_data[sick].gt_mask.float(), expected[::2, ::2])
    for change, message in (({"dim1": 30}, "has a box beyond"), ({"dim0": 0}, "data row 36: .* is no size")):
        drawn_sets.write_csv(tmp_path / "small/train_meta.csv", [*sizes[:-1], sizes[-1] | change])
        with pytest.raises(TableError, match=message):
            _ = sets.VinDrCXR(tmp_path / "small", sizes="train_meta.csv", **QUICK).samples
    drawn_sets.write_csv(tmp_path / "small/train_meta.csv", sizes[:-1])
    with pytest.raises(TableError, match=f"has no size of {images[-1].stem}"):
        _ = sets.VinDrCXR(tmp_path / "small", sizes="train_meta.csv", **QUICK).samples


def test_vindr_votes_of_three_readers(tmp_path):
    drawn_sets.vindr_cxr(tmp_path, physionet=True)
    images = sorted(path.stem for path in (tmp_path / "train").iterdir())
    table, label_table = (tmp_path / f"annotations/{kind}_train.csv" for kind in ("annotations", "image_labels"))
    rows, labels = list(csv.DictReader(table.open())), list(csv.DictReader(label_table.open()))
    nothing = {"class_name": "No finding"} | dict.fromkeys(("x_min", "y_min", "x_max", "y_max"), "")
    clean = {"Nodule/Mass": 0, "ILD": 0, "No finding": 1}
    for image, blind in ((images[24], 1), (images[25], 2)):  # one, and two of three readers see nothing
        seen = [i for i, row in enumerate(rows) if row["image_id"] == image][:blind]
        for i in seen:
            rows[i] |= nothing
            labels[i] |= clean
    # A disease of the whole film that one reader of a normal film names, and the only thing in an abnormal one.
    labels[0] |= {"Other diseases": 1, "No finding": 0}
    for i in range(26 * 3, 27 * 3):
        rows[i] |= nothing
        labels[i] |= clean | {"Other diseases": 1, "No finding": 0}
    drawn_sets.write_csv(table, rows)
    drawn_sets.write_csv(label_table, labels)

    def count(**kwargs):
        return Counter(sets.VinDrCXR(tmp_path, **QUICK, **kwargs).samples["label"])

    assert count(masks=False) == {"normal": 23, "abnormal": 13}
    assert count(masks=False, votes="majority") == {"normal": 23, "abnormal": 11}
    assert count(masks=False, votes="all") == {"normal": 23, "abnormal": 10}
    assert count() == {"normal": 23, "abnormal": 11}  # without the two that have no box
    samples = sets.VinDrCXR(tmp_path, masks=False, **QUICK).samples.set_index("image_path")
    assert samples.attrs["task"] == "classification"
    assert samples["findings"][str(tmp_path / f"train/{images[26]}.dicom")] == "Other diseases"
    assert samples["findings"][str(tmp_path / f"train/{images[24]}.dicom")] == "ILD|Nodule/Mass"


def test_vindr_official_test_is_the_consensus(tmp_path):
    samples = sets.VinDrCXR(drawn_sets.vindr_cxr(tmp_path, physionet=True), split="official", **QUICK).samples
    assert numbers(samples) == {
        ("train", "normal"): 20,
        ("val", "normal"): 4,
        ("val", "abnormal"): 2,
        ("test", "normal"): 6,
        ("test", "abnormal"): 6,
    }
    assert (samples["image_path"].str.contains("/test/") == (samples["split"] == "test")).all()
    (tmp_path / "annotations/annotations_test.csv").unlink()
    with pytest.raises(TableError, match=r"no table in .*annotations_test\.csv"):
        _ = sets.VinDrCXR(tmp_path, split="official", **QUICK).samples


@pytest.mark.parametrize(
    ("table", "change", "message"),
    [
        ("annotations", {"class_name": "ILD"}, "data row 1: .* is no box|sees nothing and something"),
        ("annotations", {"rad_id": "R9"}, "data row 2: rows repeat that reader 'R9' sees nothing"),
        (
            "annotations",
            {"class_name": "ILD", "x_min": 3, "y_min": 3, "x_max": 3, "y_max": 5},
            "data row 1: .* is no box",
        ),
        ("image_labels", {"No finding": 0}, "sees neither nothing nor something"),
        ("image_labels", {"ILD": 1}, "or both"),
        ("image_labels", {"ILD": 2}, "data row 1: a label is neither 0 nor 1"),
        ("image_labels", {"rad_id": "R9"}, "1 rows repeat an id in column 'image_id'"),
    ],
)
def test_vindr_tables_that_contradict_themselves_are_refused(tmp_path, table, change, message):
    drawn_sets.vindr_cxr(tmp_path, physionet=True)
    path = tmp_path / f"annotations/{table}_train.csv"
    rows = list(csv.DictReader(path.open()))
    if change == {"class_name": "ILD"}:
        change = {**change, "rad_id": "R9", "x_max": 5}
    rows[0] |= change
    drawn_sets.write_csv(path, rows)
    with pytest.raises(TableError, match=f"{path.name}.*({message})"):
        _ = sets.VinDrCXR(tmp_path, **QUICK).samples


def test_folder_tree_with_masks_and_patients(tmp_path, caplog):
    for split, label, number in (("train", "Normal", 6), ("valid", "normal", 3), ("valid", "abnormal", 3)):
        for i in range(number):
            drawn_sets.save(tmp_path / split / label / f"s{i:02}_{i}.png", drawn_sets.chest(i, label == "abnormal"))
    for i, label in enumerate(["normal", "normal", "abnormal"]):
        drawn_sets.save(tmp_path / "test" / label / f"t{i:02}_{i}.jpg", drawn_sets.chest(i, label == "abnormal"))
    for image in (*tmp_path.glob("valid/abnormal/*"), *tmp_path.glob("test/abnormal/*")):
        mask = tmp_path / "masks" / image.relative_to(tmp_path).with_suffix(".png")
        drawn_sets.save(mask, np.eye(48))
    drawn_sets.save(tmp_path / "masks/test/abnormal/of_nothing.png", np.eye(48))
    (tmp_path / "train/Normal/.DS_Store").write_bytes(b"")
    data = sets.RadiographTable(tmp_path, mask_dir="masks", patient_pattern=r"(valid|train|test)/", **QUICK)
    samples = data.samples
    assert "1 masks are of no image: test/abnormal/of_nothing" in caplog.text
    assert numbers(samples) == {
        ("train", "normal"): 6,
        ("val", "normal"): 3,
        ("val", "abnormal"): 3,
        ("test", "normal"): 2,
        ("test", "abnormal"): 1,
    }
    assert set(samples["patient_id"]) == {"train", "valid", "test"}
    data.setup()
    assert [int(item.gt_mask.sum()) for item in data.val_data] == [48, 48, 48, 0, 0, 0]


def test_own_split_column_is_kept_and_must_be_patient_safe(tmp_path):
    drawn_sets.radiograph_table(tmp_path)
    rows = list(csv.DictReader((tmp_path / "images.csv").open()))
    for i, row in enumerate(rows):
        row["split"] = ("Train", "valid", "TEST")[(i // 2) % 3]
    drawn_sets.write_csv(tmp_path / "images.csv", rows)
    samples = sets.RadiographTable(tmp_path, table="images.csv", **QUICK).samples
    given_splits = {row["image_path"]: {"Train": "train", "valid": "val", "TEST": "test"}[row["split"]] for row in rows}
    ours = {
        Path(p).relative_to(tmp_path).as_posix(): s
        for p, s in zip(samples["image_path"], samples["split"], strict=True)
    }
    sick_training = {r["image_path"] for r in rows if r["split"] == "Train" and r["label"] == "abnormal"}
    assert sick_training
    assert ours == {path: split for path, split in given_splits.items() if path not in sick_training}
    rows[0]["split"] = "test"
    drawn_sets.write_csv(tmp_path / "images.csv", rows)
    with pytest.raises(ValueError, match="1 patients are in more than one split, the first is P0"):
        _ = sets.RadiographTable(tmp_path, table="images.csv", **QUICK).samples
