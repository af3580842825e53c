"""Small drawn copies of the public data sets: their file names, tables and formats, with a few patients each.

Normal images are a smooth gradient with noise; abnormal ones have a bright disc. Everything follows from the seed.
"""

import csv
import gzip
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

CHEXPERT_COLUMNS = [
    "No Finding",
    "Enlarged Cardiomediastinum",
    "Cardiomegaly",
    "Lung Opacity",
    "Lung Lesion",
    "Edema",
    "Consolidation",
    "Pneumonia",
    "Atelectasis",
    "Pneumothorax",
    "Pleural Effusion",
    "Pleural Other",
    "Fracture",
    "Support Devices",
]
FIVE = ("Atelectasis", "Cardiomegaly", "Consolidation", "Edema", "Pleural Effusion")


def chest(index: int, abnormal: bool, size: int = 48) -> np.ndarray:
    """Draw one image, (size, size) float in [0, 1]."""
    rng = np.random.default_rng(index)
    rows, columns = np.mgrid[:size, :size] / size
    image = 0.2 + 0.4 * rows + 0.1 * np.cos(6 * columns) + rng.normal(0, 0.02, (size, size))
    if abnormal:
        y, x = rng.uniform(0.3, 0.7, 2)
        image[(rows - y) ** 2 + (columns - x) ** 2 < 0.02] += 0.3
    return image.clip(0, 1)


def save(path: Path, image: np.ndarray, bits: int = 8) -> None:
    """Save as JPEG, PNG (8 or 16 bits) or DICOM, by the suffix."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = (image * (2**bits - 1)).round().astype(np.uint8 if bits == 8 else np.uint16)
    if path.suffix in {".dcm", ".dicom"}:
        save_dicom(path, pixels, bits)
    else:
        Image.fromarray(pixels).save(path)


def save_dicom(path: Path, pixels: np.ndarray, bits: int, view: str = "PA") -> None:
    """Save an uncompressed DICOM file."""
    import pydicom
    from pydicom.dataset import FileDataset, FileMetaDataset

    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID = "1.2.840.10008.5.1.4.1.1.1"
    meta.MediaStorageSOPInstanceUID = pydicom.uid.generate_uid(entropy_srcs=[path.name])
    meta.TransferSyntaxUID = pydicom.uid.ExplicitVRLittleEndian
    dataset = FileDataset(str(path), {}, file_meta=meta, preamble=b"\0" * 128)
    dataset.PatientID, dataset.ViewPosition, dataset.Modality = path.stem, view, "CR"
    dataset.Rows, dataset.Columns = pixels.shape
    dataset.SamplesPerPixel, dataset.PhotometricInterpretation = 1, "MONOCHROME2"
    dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit = 8 * pixels.itemsize, bits, bits - 1
    dataset.PixelRepresentation = 0
    dataset.PixelData = pixels.tobytes()
    dataset.save_as(path, enforce_file_format=True)


def write_csv(path: Path, rows: list[dict[str, object]]) -> None:
    """Write a CSV file, gzipped by its suffix."""
    text = io.StringIO()
    writer = csv.DictWriter(text, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    path.parent.mkdir(parents=True, exist_ok=True)
    data = text.getvalue().encode()
    path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)


def padchest(root: Path, normal: int = 24, abnormal: int = 12, flat: bool = False) -> Path:
    """PadChest with 12-bit pixels in 16-bit PNG; every fourth patient has two images."""
    rows = []
    for i in range(normal + abnormal):
        sick = i >= normal
        for view in range(1 + (i % 4 == 0)):
            image_id = f"{31390330262930000748573535286 + i}_{view}_75sg0k.png"
            save((root if flat else root / str(i % 3)) / image_id, chest(10 * i + view, sick), bits=12)
            rows.append(
                {
                    "": len(rows),
                    "ImageID": image_id,
                    "ImageDir": i % 3,
                    "PatientID": 3707275269754751392247446521222810000 + i,
                    "Projection": "PA",
                    "Pediatric": "No",
                    "BitsStored_DICOM": 12,
                    "MethodLabel": "Physician",
                    "Labels": "['nodule', ' pleural effusion']" if sick else "[' normal', 'normal']",
                }
            )
    write_csv(root / "PADCHEST_chest_x_ray_images_labels_160K_01.02.19.csv.gz", rows)
    return root


def chexpert(root: Path, normal: int = 24, abnormal: int = 15, folder: str = "CheXpert-v1.0-small") -> Path:
    """CheXpert with train, valid and the official test by study."""
    patient = 0
    for part, count_normal, count_abnormal in (("train", normal, abnormal), ("valid", 4, 5), ("test", 4, 5)):
        rows = []
        for i in range(count_normal + count_abnormal):
            patient += 1
            sick = i >= count_normal
            study = f"{folder}/{part}/patient{patient:05}/study1"
            save(root / study / "view1_frontal.jpg", chest(patient, sick))
            labels = dict.fromkeys(CHEXPERT_COLUMNS, "")
            if sick:
                labels[FIVE[i % 5]] = "1.0"
            else:
                labels["No Finding"] = "1.0"
            if part == "test":
                rows.append({"Study": study.partition("/")[2], **labels})
            else:
                view = {"Path": f"{study}/view1_frontal.jpg", "Sex": "F", "Age": 50, "Frontal/Lateral": "Frontal"}
                rows.append({**view, "AP/PA": "PA", **labels})
        name = "groundtruth.csv" if part == "test" else f"{part}.csv"
        write_csv(root / folder / name, rows)
    return root


def rsna(root: Path, normal: int = 24, abnormal: int = 12, other: int = 3, suffix: str = ".dcm") -> Path:
    """RSNA with one or two boxes an abnormal image, and a mapping that gives each two images one patient."""
    boxes, classes, mapping = [], [], []
    for i in range(normal + abnormal + other):
        image_id = f"{i:08x}-9544-42f4-b0ab-c148ed3241cd"
        kind = "Normal" if i < normal else "Lung Opacity" if i < normal + abnormal else "No Lung Opacity / Not Normal"
        save(root / "stage_2_train_images" / f"{image_id}{suffix}", chest(i, i >= normal))
        places = [(256.0, 128.0, 512.0, 256.0), (0.0, 768.0, 256.0, 256.0)][: 1 + i % 2]
        for place in places if kind == "Lung Opacity" else [("", "", "", "")]:
            target = int(kind == "Lung Opacity")
            box = dict(zip(("x", "y", "width", "height"), place, strict=True))
            boxes.append({"patientId": image_id, **box, "Target": target})
            classes.append({"patientId": image_id, "class": kind})
        mapping.append({"subset_img_id": image_id, "img_id": f"{i // 2:08}_{i % 2:03}.png", "orig_labels": []})
    write_csv(root / "stage_2_train_labels.csv", boxes)
    write_csv(root / "stage_2_detailed_class_info.csv", classes)
    (root / "pneumonia-challenge-dataset-mappings_2018.json").write_text(json.dumps(mapping))
    return root


def nih(root: Path, normal: int = 24, abnormal: int = 12, numbered: bool = False) -> Path:
    """NIH ChestX-ray14 with its lists and a box or two an abnormal image; every fourth patient has two images."""
    rows, boxes = [], []
    lists: dict[str, list[str]] = {"train_val_list.txt": [], "test_list.txt": []}
    for i in range(normal + abnormal):
        sick = i >= normal
        for number in range(1 + (i % 4 == 0)):
            name = f"{i + 1:08}_{number:03}.png"
            save(
                root / (f"images_{1 + i % 3:03}/images" if numbered else "images") / name, chest(10 * i + number, sick)
            )
            lists["test_list.txt" if i % 3 == 0 else "train_val_list.txt"].append(name)
            rows.append([name, "Effusion|Infiltration" if sick else "No Finding", number, i + 1, 57, "M", "PA"])
            for finding, box in (("Effusion", "256.0,128.0,512.0,256.0"), ("Infiltrate", "0.0,768.0,256.0,256.0")):
                if sick and (finding == "Effusion" or i % 2):
                    boxes.append(f"{name},{finding},{box}")
    head = "Image Index,Finding Labels,Follow-up #,Patient ID,Patient Age,Patient Gender,View Position"
    size = "OriginalImage[Width,Height],OriginalImagePixelSpacing[x,y]"
    lines = [f"{','.join(map(str, row))},48,48,0.143,0.143" for row in rows]
    (root / "Data_Entry_2017_v2020.csv").write_text("\n".join([f"{head},{size}", *lines, ""]))
    (root / "BBox_List_2017.csv").write_text("\n".join(["Image Index,Finding Label,Bbox [x,y,w,h],,,", *boxes, ""]))
    for name, listed in lists.items():
        (root / name).write_text("\n".join(listed))
    return root


def vindr_cxr(
    root: Path, normal: int = 24, abnormal: int = 12, physionet: bool = False, suffix: str = ".dicom"
) -> Path:
    """VinDr-CXR of the challenge, or PhysioNet's with labels of images and a test part; two boxes a film."""
    for part, first, numbers in (("train", 0, (normal, abnormal)), ("test", 500, (6, 6))):
        rows: list[dict[str, object]] = []
        labels: list[dict[str, object]] = []
        for i in range(sum(numbers)):
            sick = i >= numbers[0]
            image = f"{first + i:032x}"
            if part == "train" or physionet:
                save(root / part / f"{image}{suffix}", chest(first + i, sick))
            for number, reader in enumerate(("R8", "R9", "R10") if part == "train" else ("",)):
                ids = {"image_id": image} | ({"rad_id": reader} if reader else {})
                box = [12.0, 6.0, 36.0, 18.0] if number != 1 else [0.0, 36.0, 12.0, 48.0]
                finding = ("Nodule/Mass" if number != 1 else "ILD") if sick else "No finding"
                corners = dict(zip(("x_min", "y_min", "x_max", "y_max"), box if sick else [""] * 4, strict=True))
                rows.append({**ids, "class_name": finding, **corners})
                other = "Other diseases" if part == "train" else "Other disease"
                labels.append({**ids, "Nodule/Mass": 0, "ILD": 0, other: 0, "No finding": 0} | {finding: 1})
        if physionet:
            write_csv(root / f"annotations/annotations_{part}.csv", rows)
            write_csv(root / f"annotations/image_labels_{part}.csv", labels)
        elif part == "train":
            write_csv(root / "train.csv", rows)
    return root


def nlm_tb(root: Path, normal: int = 24, abnormal: int = 12) -> Path:
    """Montgomery and Shenzhen in turn, all adults; lung masks of all Montgomery and of half of the Shenzhen films."""
    for i in range(normal + abnormal):
        sick = i >= normal
        series, folder = (("MCUCXR", "MontgomerySet"), ("CHNCXR", "ChinaSet_AllFiles"))[i % 2]
        stem = f"{series}_{i + 1:04}_{int(sick)}"
        save(root / folder / "CXR_png" / f"{stem}.png", chest(i, sick))
        about = f"Patient's Sex: F \nPatient's Age: {20 + i:03}Y\n" if i % 2 == 0 else f"male {20 + i}yrs\n"
        reading = root / folder / "ClinicalReadings" / f"{stem}.txt"
        reading.parent.mkdir(parents=True, exist_ok=True)
        reading.write_text(about + ("bilateral PTB" if sick else "normal"))
        lungs = np.zeros((2, 48, 48))
        lungs[0, 8:40, 26:42] = lungs[1, 8:40, 6:22] = 1
        if i % 2 == 0:
            for side, lung in zip(("left", "right"), lungs, strict=True):
                save(root / folder / f"ManualMask/{side}Mask/{stem}.png", lung)
        elif i % 4 == 1:
            save(root / folder / f"mask/{stem}_mask.png", lungs.sum(0))
    (root / "MontgomerySet/CXR_png/Thumbs.db").write_bytes(b"no image")
    return root


def med_ad(root: Path, normal: int = 24, abnormal: int = 12) -> Path:
    """A packed set of MedIAnomaly: half of the normals to train, the rest and all abnormal films to test."""
    lists: dict[str, dict[str, Any]] = {"train": {"0": []}, "test": {"0": [], "1": []}}
    for i in range(normal + abnormal):
        name = f"{i:032x}.png"
        save(root / "images" / name, chest(i, i >= normal))
        lists["train" if i < normal // 2 else "test"][str(int(i >= normal))].append(name)
    lists["train"]["unlabeled"] = {"0": [], "1": ["of_no_use.png"]}
    (root / "data.json").write_text(json.dumps(lists))
    return root


def bmad_chest(root: Path, flat: bool = False) -> Path:
    """BMAD's chest split: training films in good/, all others in good/img/ and Ungood/img/, or without img/."""
    number = 0
    for part, normal, abnormal in (("train", 16, 0), ("valid", 4, 4), ("test", 6, 6)):
        for kind, films in (("good", normal), ("Ungood", abnormal)):
            for _ in range(films):
                folder = root / part / kind / ("" if flat or part == "train" else "img")
                save(folder / f"{number}.png", chest(number, kind == "Ungood"))
                number += 1
    return root


def mimic_cxr(root: Path, normal: int = 16, abnormal: int = 10) -> Path:
    """MIMIC-CXR-JPG with its official split."""
    metadata, splits, labels = [], [], []
    for i in range(normal + abnormal):
        sick = i >= normal
        ids = {"subject_id": 10000032 + i, "study_id": 50414267 + i}
        dicom_id = f"02aa804e-bde0afdd-112c0b34-7bc16630-{i:08x}"
        folder = root / f"files/p{str(ids['subject_id'])[:2]}/p{ids['subject_id']}/s{ids['study_id']}"
        save(folder / f"{dicom_id}.jpg", chest(i, sick))
        part = ("train", "validate", "test")[(i % 3) if sick else (i % 4) % 3]
        metadata.append({"dicom_id": dicom_id, **ids, "ViewPosition": "PA", "Rows": 48, "Columns": 48})
        splits.append({"dicom_id": dicom_id, **ids, "split": part})
        findings = dict.fromkeys(CHEXPERT_COLUMNS, "")
        findings["Edema" if sick else "No Finding"] = "1.0"
        labels.append({**ids, **findings})
    for kind, rows in (("metadata", metadata), ("split", splits), ("chexpert", labels)):
        write_csv(root / f"mimic-cxr-2.0.0-{kind}.csv.gz", rows)
    return root


def radiograph_table(root: Path, normal: int = 16, abnormal: int = 8) -> Path:
    """Own data as a CSV file with patients of two images each."""
    rows = []
    for i in range(normal + abnormal):
        sick = i >= normal
        name = f"images/{i:03}.{('png', 'jpg', 'dcm')[i % 3]}"
        save(root / name, chest(i, sick))
        rows.append({"image_path": name, "label": "abnormal" if sick else "Normal", "patient_id": f"P{i // 2}"})
    write_csv(root / "images.csv", rows)
    return root
