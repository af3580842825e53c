"""RadiographTable on what people really have: masks in and beside folders, tables in which columns serve twice."""

import csv
import logging
import os
import shutil
from collections import Counter
from pathlib import Path

import drawn_sets
import numpy as np
import pytest
from anomalib.data import BMAD
from PIL import Image

from anomalib_cxr.data import RadiographTable
from anomalib_cxr.data.tables import TableError

QUICK = {"num_workers": 0, "check_duplicates": False}


@pytest.fixture
def root(tmp_path):
    """8 + 4 + 4 normal films, 3 + 3 abnormal ones, and 6 masks under masks/."""
    for split, label, number in (
        ("train", "normal", 8),
        ("val", "normal", 4),
        ("val", "abnormal", 3),
        ("test", "normal", 4),
        ("test", "abnormal", 3),
    ):
        for i in range(number):
            name = f"{split}/{label}/{i}.png"
            drawn_sets.save(tmp_path / "root" / name, drawn_sets.chest(len(name) * 100 + i, label == "abnormal"))
            if label == "abnormal":
                mask = np.zeros((48, 48))
                mask[: i + 1, :10] = 1
                drawn_sets.save(tmp_path / "root/masks" / name, mask)
    return tmp_path / "root"


def counts(samples):
    return Counter(zip(samples["split"], samples["label"], strict=True))


EXPECTED = {
    ("train", "normal"): 8,
    ("val", "normal"): 4,
    ("val", "abnormal"): 3,
    ("test", "normal"): 4,
    ("test", "abnormal"): 3,
}


def check(data):
    """Every film in its place, and each abnormal one with its own mask."""
    samples = data.samples
    assert counts(samples) == EXPECTED
    assert not [path for path in samples["image_path"] if "mask" in Path(path).relative_to(data.root).as_posix()]
    data.setup()
    for part in (data.val_data, data.test_data):
        for item in part:
            expected = 10 * (int(Path(item.image_path).stem) + 1) * int(item.gt_label)
            assert int(item.gt_mask.sum()) == expected


SPELLINGS = [
    "masks",
    "masks/",
    "./masks",
    "masks/.",
    "train/../masks",
    "../root/masks",
    "ABSOLUTE",
    "LINK",
    "CWD",
    "UPPER",
]


@pytest.mark.parametrize("as_path", [False, True])
@pytest.mark.parametrize("spelling", SPELLINGS)
def test_mask_dir_by_any_spelling(root, tmp_path, monkeypatch, spelling, as_path):
    monkeypatch.chdir(tmp_path)
    given = spelling
    if spelling == "ABSOLUTE":
        given = str(root / "masks")
    elif spelling == "LINK":
        (tmp_path / "elsewhere").symlink_to(root / "masks", target_is_directory=True)
        given = str(tmp_path / "elsewhere")
    elif spelling == "CWD":
        given = "root/masks"
    elif spelling == "UPPER":
        (tmp_path / "other").symlink_to(tmp_path, target_is_directory=True)
        given = f"{tmp_path}/other/root/masks/"
    for folder in (root, Path("root"), "./root/"):
        check(RadiographTable(folder, mask_dir=Path(given) if as_path else given, **QUICK))


def test_masks_outside_the_root_or_linked_into_it(root, tmp_path):
    shutil.move(root / "masks", tmp_path / "drawings")
    check(RadiographTable(root, mask_dir="../drawings", **QUICK))
    check(RadiographTable(root, mask_dir=tmp_path / "drawings", **QUICK))
    # Whatever links in the root lead there: its files are masks by each of them.
    (root / "a_link").symlink_to(tmp_path / "drawings", target_is_directory=True)
    (root / "test/abnormal/more").symlink_to(tmp_path / "drawings/test/abnormal", target_is_directory=True)
    for name in ("a_link", "../drawings", tmp_path / "drawings"):
        check(RadiographTable(root, mask_dir=name, **QUICK))


def test_a_hidden_folder_of_masks(root):
    shutil.move(root / "masks", root / ".masks")
    check(RadiographTable(root, mask_dir=".masks", **QUICK))


@pytest.mark.parametrize(
    ("mask_dir", "why"),
    [
        ("nowhere", "mask_dir 'nowhere' is no folder"),
        ("", "holds the root"),
        (".", "holds the root"),
        ("..", "holds the root"),
        ("empty", "holds no images"),
        ("notes", "holds no images"),
        ("train", "none of the 8 masks in .*train is of an image: .* not normal/0.png"),
    ],
)
def test_a_mask_dir_that_is_none_is_refused(root, mask_dir, why):
    (root / "empty").mkdir()
    (root / "notes").mkdir()
    (root / "notes/a.txt").write_text("x")
    shutil.move(root / "masks", root.parent / "gone")
    with pytest.raises(TableError, match=why):
        _ = RadiographTable(root, mask_dir=mask_dir, **QUICK).samples


def test_masks_under_other_names_than_their_films_are_refused(root):
    for i in range(3):
        (root / f"masks/test/abnormal/{i}.png").rename(root / f"masks/test/abnormal/{i}_lesion.png")
        (root / f"masks/val/abnormal/{i}.png").rename(root / f"masks/val/abnormal/{i}_lesion.png")
    with pytest.raises(TableError, match=r"none of the 6 masks .* for instance .*, not .*0_lesion\.png"):
        _ = RadiographTable(root, mask_dir="masks", **QUICK).samples


def test_two_masks_of_one_film_and_two_films_of_one_mask_are_refused(root):
    shutil.copy(root / "masks/val/abnormal/0.png", root / "masks/val/abnormal/0.bmp")
    with pytest.raises(TableError, match=r"two masks are of one image, .*0.bmp and .*0.png"):
        _ = RadiographTable(root, mask_dir="masks", **QUICK).samples
    (root / "masks/val/abnormal/0.bmp").unlink()
    shutil.copy(root / "val/abnormal/0.png", root / "val/abnormal/0.jpg")
    with pytest.raises(TableError, match=r"two images have one mask, .*0.jpg and .*0.png"):
        _ = RadiographTable(root, mask_dir="masks", **QUICK).samples


def test_dicom_names_without_a_suffix_have_masks_of_their_own(root):
    """Up to the last dot, 1.2.840.1 and 1.2.840.2 are one name."""
    for split in ("val", "test"):
        for i in range(3):
            (root / f"{split}/abnormal/{i}.png").unlink()
            name = f"{split}/abnormal/1.2.840.{i}"
            pixels = (255 * drawn_sets.chest(i, True)).astype(np.uint8)
            drawn_sets.save_dicom(root / name, pixels, 8)
            (root / f"masks/{split}/abnormal/{i}.png").rename(root / f"masks/{name}.png")
    data = RadiographTable(root, mask_dir="masks", **QUICK)
    data.setup()
    items = [item for part in (data.val_data, data.test_data) for item in part if item.gt_label]
    assert len(items) == 6
    for item in items:
        assert int(item.gt_mask.sum()) == 10 * (int(item.image_path.rpartition(".")[2]) + 1)


# --- masks that nobody told of ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["masks", "mask", "Masks", "ground_truth", "GroundTruth", "GT", "lesion-masks", "seg"])
@pytest.mark.parametrize("where", ["{mask}/{split}/{label}/{file}", "{split}/{label}/{mask}/{file}"])
def test_folders_named_as_masks_are_refused_without_mask_dir(root, name, where):
    for image in [path.relative_to(root / "masks") for path in (root / "masks").rglob("*.png")]:
        split, label, file = image.parts
        target = root.parent / "new" / where.format(mask=name, split=split, label=label, file=file)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.move(root / "masks" / image, target)
    shutil.rmtree(root / "masks")
    shutil.copytree(root.parent / "new", root, dirs_exist_ok=True)
    with pytest.raises(TableError, match=rf"6 images below .* are named as masks are, the first is .*{name}"):
        _ = RadiographTable(root, **QUICK).samples


@pytest.mark.parametrize("name", ["{}_mask.png", "mask_{}.png", "{}-gt.png", "{}_seg.png", "{}lesionmask.png"])
def test_files_named_as_masks_are_refused(root, name):
    for path in sorted((root / "masks").rglob("*.png")):
        image = root / path.relative_to(root / "masks")
        shutil.move(path, image.with_name(name.format(image.stem)))
    shutil.rmtree(root / "masks")
    with pytest.raises(TableError, match=r"6 images below .* are named as masks are"):
        _ = RadiographTable(root, **QUICK).samples


@pytest.mark.parametrize("where", ["drawn/{path}", "{path}.bmp", "soft/{path}"])
def test_files_named_as_films_are_told_by_their_pixels(root, where):
    for path in sorted((root / "masks").rglob("*.png")):
        name = path.relative_to(root / "masks").as_posix()
        target = root / where.format(path=name.removesuffix(".png") if where.startswith("{path}") else name)
        target.parent.mkdir(parents=True, exist_ok=True)
        mask = Image.open(path)
        if "soft" in where:
            mask = mask.resize((96, 96), Image.Resampling.BICUBIC).resize((48, 48), Image.Resampling.BOX)
        mask.save(target)
    shutil.rmtree(root / "masks")
    with pytest.raises(TableError, match=r"share their names with others, and .* is black and white as a mask is"):
        _ = RadiographTable(root, **QUICK).samples


def test_films_that_share_their_names_are_no_masks(root, caplog):
    shutil.rmtree(root / "masks")
    for patient in range(30):
        for i in range(2):
            film = root / f"train/normal/p{patient}/{i}.png"
            drawn_sets.save(film, drawn_sets.chest(100 + 2 * patient + i, False))
    assert counts(RadiographTable(root, **QUICK).samples) == {**EXPECTED, ("train", "normal"): 68}
    drawn_sets.save(root / "masked balls/a.png", drawn_sets.chest(1, False))
    (root / "train/normal/p0").rename(root / "train/normal/image unmasked")
    assert counts(RadiographTable(root, **QUICK).samples) == {**EXPECTED, ("train", "normal"): 68}


def test_a_label_may_be_called_mask(root):
    shutil.rmtree(root / "masks")
    for split in ("val", "test"):
        (root / split / "abnormal").rename(root / split / "Mask")
    samples = RadiographTable(root, abnormal_values="mask", **QUICK).samples
    assert counts(samples) == EXPECTED


# --- tables -----------------------------------------------------------------------------------------------------------


@pytest.fixture
def listed(tmp_path):
    """16 normal and 8 abnormal films in images/, and a function that changes the table's rows."""
    drawn_sets.radiograph_table(tmp_path)

    def edit(change):
        rows = list(csv.DictReader((tmp_path / "images.csv").open()))
        for i, row in enumerate(rows):
            change(i, row)
        drawn_sets.write_csv(tmp_path / "images.csv", rows)
        return rows

    return tmp_path, edit


def load(root, **arguments):
    return RadiographTable(root, table="images.csv", **QUICK, **arguments)


def test_a_table_may_have_its_masks_in_mask_dir(listed):
    root, edit = listed
    rows = edit(lambda _, row: None)
    for row in rows[16:]:
        drawn_sets.save((root / "drawn" / row["image_path"]).with_suffix(".png"), np.eye(48))
    data = load(root, mask_dir="./drawn")
    data.setup()
    assert {int(item.gt_mask.sum()) for item in data.val_data if item.gt_label} == {48}
    # And a column of bare names is looked for there, not among the films of the same names.
    edit(lambda i, row: row.update(mask_path=f"{Path(row['image_path']).stem}.png" if i >= 16 else "nan"))
    again = load(root, mask_dir=Path("drawn")).samples
    assert list(again["mask_path"]) == list(data.samples["mask_path"])


def test_one_column_as_label_and_findings_and_as_patient_and_image(listed):
    root, edit = listed
    kinds = ["Effusion|Nodule", "Nodule", " Mass | Effusion ", "Mass"]
    edit(lambda i, row: row.update(label=kinds[i % 4] if i >= 16 else "No Finding"))
    arguments = {"normal_values": "no finding", "abnormal_values": ["Effusion", "nodule", "MASS"]}
    samples = load(
        root, label_column="label", findings_column="label", patient_column="image_path", **arguments
    ).samples
    assert len(samples) == 24
    found = {Path(row.image_path).stem: (row.label, row.findings) for row in samples.itertuples()}
    for i in range(24):
        expected = [part.strip() for part in kinds[i % 4].split("|")] if i >= 16 else []
        assert found[f"{i:03}"] == ("abnormal" if i >= 16 else "normal", "|".join(expected))
    relative = [Path(path).relative_to(root).as_posix() for path in samples["image_path"]]
    assert list(samples["patient_id"]) == relative


def test_nih_table_as_it_is(shared, tmp_path):
    """ChestX-ray14: one column of labels and findings, bare names below numbered folders, commas in the header."""
    import gzip

    text = gzip.decompress((shared / "data/metadata/nih/Data_Entry_2017_v2020.csv.gz").read_bytes()).decode()
    lines = text.splitlines()
    rows = [line.split(",") for line in lines[1:] if line][:120]
    (tmp_path / "Data_Entry_2017_v2020.csv").write_text("\n".join([lines[0], *map(",".join, rows)]))
    for number, row in enumerate(rows):
        drawn_sets.save(tmp_path / f"images_{number % 3:03}/images/{row[0]}", drawn_sets.chest(number, False, 8))
    words = sorted({part for row in rows for part in row[1].split("|")} - {"No Finding"})
    samples = RadiographTable(
        tmp_path,
        table="Data_Entry_2017_v2020.csv",
        image_column="Image Index",
        label_column="Finding Labels",
        findings_column="Finding Labels",
        patient_column="Patient ID",
        normal_values="No Finding",
        abnormal_values=words,
        **QUICK,
    ).samples
    by_name = {Path(row.image_path).name: row for row in samples.itertuples()}
    assert set(by_name) == {row[0] for row in rows}
    for number, row in enumerate(rows):
        ours = by_name[row[0]]
        assert ours.image_path == str(tmp_path / f"images_{number % 3:03}/images/{row[0]}")
        assert ours.label == ("normal" if row[1] == "No Finding" else "abnormal")
        assert ours.findings == ("" if row[1] == "No Finding" else row[1])
        assert ours.patient_id == row[3]


def test_labels_that_say_both_or_something_unknown_are_refused(listed):
    root, edit = listed
    edit(lambda i, row: row.update(label="normal|abnormal" if i == 3 else row["label"]))
    with pytest.raises(TableError, match=r"the label 'normal\|abnormal' is normal and abnormal at once"):
        _ = load(root).samples
    edit(lambda i, row: row.update(label="abnormal|strange" if i == 3 else row["label"]))
    with pytest.raises(TableError, match=r"1 values of column 'label' are unknown, such as \['abnormal\|strange'\]"):
        _ = load(root).samples


def test_bare_names_are_found_or_refused(listed):
    root, edit = listed
    whole = load(root).samples
    edit(lambda i, row: row.update(image_path=Path(row["image_path"]).name))
    assert list(load(root).samples["image_path"]) == list(whole["image_path"])
    (root / "copy").mkdir()
    shutil.copy(root / "images/003.png", root / "copy/003.png")
    with pytest.raises(
        TableError, match=r"003.png is the name of several files below .* copy/003.png and images/003.png"
    ):
        _ = load(root).samples
    shutil.copy(root / "copy/003.png", root / "003.png")  # there it is meant
    assert str(root / "003.png") in set(load(root).samples["image_path"])
    (root / "images/004.jpg").unlink()
    with pytest.raises(TableError, match=r"1 of 24 listed images do not exist below .*: 004.jpg"):
        _ = load(root).samples


@pytest.mark.parametrize("word", ["", "nan", "NaN", "None", " NA ", "null"])
def test_words_for_nothing_are_no_masks_and_no_findings(listed, word):
    root, edit = listed
    edit(lambda _, row: row.update(mask_path=word, findings=word, bits=word))
    samples = load(root).samples
    assert set(samples["mask_path"]) == set(samples["findings"]) == {""}
    assert samples["bits"].isna().all()
    edit(lambda i, row: row.update(image_path=word if i == 2 else row["image_path"]))
    with pytest.raises(TableError, match="data row 3: column 'image_path' names no image"):
        _ = load(root).samples


def test_a_patient_spelt_in_two_ways_is_in_one_part(listed, caplog):
    root, edit = listed
    edit(lambda i, row: row.update(patient_id=f"{i // 2}.0" if i % 2 else f"{i // 2}"))
    samples = load(root).samples
    stems = [int(Path(path).stem) // 2 for path in samples["image_path"]]
    assert [int(patient) for patient in samples["patient_id"]] == stems
    assert samples["split"].groupby(stems).nunique().max() == 1
    assert "12 patients are spelt in several ways" in caplog.text


@pytest.mark.parametrize("wrong", ["12.5", "0", "-1", "twelve"])
def test_depths_that_are_none_are_refused(listed, wrong):
    root, edit = listed
    edit(lambda i, row: row.update(bits=wrong if i == 4 else ""))
    with pytest.raises(TableError, match=f"'{wrong}' in column 'bits', data row 5, is no"):
        _ = load(root).samples


def test_absolute_paths_below_a_linked_root(listed, tmp_path, monkeypatch):
    root, edit = listed
    whole = {Path(path).name for path in load(root).samples["image_path"]}
    link = tmp_path.with_name(f"{tmp_path.name}_link")
    link.symlink_to(root, target_is_directory=True)
    monkeypatch.chdir(root)
    names = (str(root), str(link), f"../{root.name}")
    plain = edit(lambda _, row: None)
    for listed_as in names:
        base = listed_as if listed_as.startswith("/") else f"{root}/../{root.name}"
        paths = [f"{base}/{row['image_path']}" for row in plain]
        edit(lambda i, row, paths=paths: row.update(image_path=paths[i]))
        for given in names:
            assert {Path(path).name for path in load(given).samples["image_path"]} == whole


@pytest.mark.parametrize("zero", [0, 0.0, "0", "0.0", np.int64(0), [0], (0.0,), {"0"}, iter([0])])
def test_labels_may_be_numbers_and_one_alone(listed, zero):
    root, edit = listed
    edit(lambda i, row: row.update(label=("0", "0.0", "0.")[i % 3] if i < 16 else "1.0"))
    assert Counter(load(root, normal_values=zero).samples["label"]) == {"normal": 16, "abnormal": 8}


def test_a_word_is_no_list_of_letters(listed):
    root, edit = listed
    edit(lambda i, row: row.update(label="ax" if i < 16 else "bx"))
    assert load(root, normal_values="ax", abnormal_values="bx").labels == {"ax": "normal", "bx": "abnormal"}
    assert Counter(load(root, normal_values="ax", abnormal_values="bx").samples["label"])["normal"] == 16
    with pytest.raises(ValueError, match=r"\['1'\] are in normal_values and in abnormal_values"):
        load(root, normal_values=[0, 1.0], abnormal_values="1")


def test_names_that_are_no_utf8(tmp_path, caplog):
    for label, number in (("normal", 12), ("abnormal", 6)):
        for i in range(number):
            image = tmp_path / label / os.fsdecode(b"J\xfcrgen%d.png" % i)
            drawn_sets.save(image, drawn_sets.chest(i, label == "abnormal"))
            if label == "abnormal":
                drawn_sets.save(tmp_path / "masks" / image.relative_to(tmp_path), np.eye(48))
    with caplog.at_level(logging.INFO):
        made = RadiographTable(tmp_path, mask_dir="masks", split_manifest=tmp_path / "split.csv", **QUICK).samples
        again = RadiographTable(tmp_path, mask_dir="masks", split_manifest=tmp_path / "split.csv", seed=5, **QUICK)
    assert again.samples["split"].equals(made["split"])
    assert b"abnormal/J\xfcrgen0.png," in (tmp_path / "split.csv").read_bytes()
    again.setup()
    assert next(iter(again.test_dataloader())).image.shape[1:] == (3, 48, 48)


@pytest.mark.parametrize("flat", [False, True])
def test_bmads_chest_split_is_kept(tmp_path, flat):
    data = RadiographTable(
        drawn_sets.bmad_chest(tmp_path, flat), normal_values="good", abnormal_values="Ungood", **QUICK
    )
    assert counts(data.samples) == {
        ("train", "normal"): 16,
        ("val", "normal"): 4,
        ("val", "abnormal"): 4,
        ("test", "normal"): 6,
        ("test", "abnormal"): 6,
    }
    for path, split in zip(data.samples["image_path"], data.samples["split"], strict=True):
        assert Path(path).relative_to(tmp_path).parts[0] == {"val": "valid"}.get(split, split)


def test_why_bmads_chest_split_is_not_read_by_anomalibs_own_datamodule(tmp_path):
    """If this fails, Anomalib reads it now, and configs/benchmark/bmad_chest.yaml may take its own."""
    drawn_sets.bmad_chest(tmp_path / "Chest")
    data = BMAD(tmp_path, category="Chest", num_workers=0)
    data.setup()
    assert len(data.train_data) == 16
    assert data.test_data.task == "segmentation"  # without a single mask
    abnormal = data.test_data.samples["label_index"].tolist().index(1)
    with pytest.raises((AttributeError, TypeError, ValueError, OSError)):
        data.test_data[abnormal]
