"""NLM's tuberculosis sets: labels by name, ages and findings by readings as they are really written, lung masks."""

import random
from collections import Counter
from pathlib import Path

import drawn_sets
import numpy as np
import pytest

from anomalib_cxr.data import NLMTB
from anomalib_cxr.data.nlm_tb import parse_reading
from anomalib_cxr.data.tables import TableError


def film(root: Path, number: int) -> Path:
    """Reading of a drawn film; even numbers are Shenzhen's."""
    (path,) = root.glob(f"*/ClinicalReadings/*_{number:04}_?.txt")
    return path


@pytest.mark.parametrize(
    ("text", "age", "finding"),
    [
        ("Patient's Sex: F \nPatient's Age: 027Y\nnormal", 27, "normal"),
        ("Patient's Sex: O \r\nPatient's Age: 005Y\r\nold TB\r\n  in RL\r\n", 5, "old TB in RL"),
        ("male 45yrs\nnormal", 45, "normal"),
        ("femal 32yrs\nnormal", 32, "normal"),
        ("female24yrs\nleft PTB|STB", 24, "left PTB/STB"),
        ("male , 29yrs  \t\nbilateral secondary PTB", 29, "bilateral secondary PTB"),
        ("male 42\nnormal", 42, "normal"),
        ("male 16month\nnormal", 16 / 12, "normal"),
        ("female 64days\nnormal", 64 / 365.25, "normal"),
        ("FEMALE 6 weeks\n", 42 / 365.25, ""),
        ("\ufeffmale\n3 nodules of 10mm", None, "3 nodules of 10mm"),
        ("", None, ""),
    ],
)
def test_readings_as_they_are_written(text, age, finding):
    reading = parse_reading(text.encode())
    assert reading.age == (None if age is None else pytest.approx(age))
    assert reading.finding == finding
    assert reading.same == ()


def test_readings_that_name_other_films():
    reading = parse_reading(b"Patient's Sex: M\nPatient's Age: 049Y\nNO REPORT (same pt as MCUCXR_0162_1, MCUCXR_0170)")
    assert reading.same == ("MCUCXR_0162", "MCUCXR_0170")
    assert reading.age == 49


def test_broken_readings_are_read_as_what_is_left_of_them():
    whole = b"Patient's Sex: F\nPatient's Age: 027Y\nsame pt as MCUCXR_0162_1 | normal\xe9"
    outcomes = Counter()
    for number in range(2_000):
        generator = random.Random(number)
        content = bytearray(whole)
        for _ in range(generator.randint(1, 6)):
            place = generator.randrange(len(content) + 1)
            token = generator.choice(
                [b"\0", b"\n", b"|", b"9" * 40, b"male", b"\xff\xfe", b"", b"CXR_", generator.randbytes(3)]
            )
            content[place : place + generator.randint(0, 9)] = token
        age, finding, same = parse_reading(bytes(content))
        outcomes[age == 27, bool(same)] += 1
        assert age is None or 0 <= age < 1000
        assert "|" not in finding
        assert finding == " ".join(finding.split())
        assert all(name in finding for name in same)
    assert min(outcomes.values()) > 20, outcomes


def test_labels_findings_and_ages(tmp_path):
    drawn_sets.nlm_tb(tmp_path)
    samples = NLMTB(tmp_path, num_workers=0).samples
    names = samples["image_path"].str.rpartition("/")[2]
    assert (samples["label"] == names.str[-5].map({"0": "normal", "1": "abnormal"})).all()
    assert Counter(samples["label"]) == {"normal": 24, "abnormal": 12}
    assert dict(zip(samples["label"], samples["findings"], strict=True)) == {"normal": "", "abnormal": "bilateral PTB"}
    assert (samples["age"] == names.str[7:11].astype(int) + 19).all()
    one = NLMTB(tmp_path / "MontgomerySet", num_workers=0).samples
    assert set(one["patient_id"]) == {patient for patient in samples["patient_id"] if patient.startswith("MCUCXR")}


def test_adults_or_all(tmp_path, caplog):
    drawn_sets.nlm_tb(tmp_path)
    film(tmp_path, 1).write_text("Patient's Sex: F\nPatient's Age: 017Y\nnormal")
    film(tmp_path, 2).write_text("male 30month\nnormal")
    film(tmp_path, 3).write_text("Patient's Sex: F\nnormal")
    film(tmp_path, 4).unlink()
    adults = NLMTB(tmp_path, num_workers=0).samples
    assert Counter(adults["label"]) == {"normal": 20, "abnormal": 12}
    assert "2 films tell no age and are left out" in caplog.text
    everyone = NLMTB(tmp_path, patients="all", num_workers=0).samples
    assert len(everyone) == 36
    for path in tmp_path.glob("*/ClinicalReadings/*"):
        path.unlink()
    with pytest.raises(TableError, match="tells an age: complete them or pass patients='all'"):
        _ = NLMTB(tmp_path, num_workers=0).samples
    assert len(NLMTB(tmp_path, patients="all", num_workers=0).samples) == 36


def test_films_that_name_one_another_are_of_one_patient(tmp_path):
    drawn_sets.nlm_tb(tmp_path)
    # 25 and 29 by way of 27, which neither of them names; 31 names a film that is not there.
    for number, text in ((25, "same pt as MCUCXR_0027_1"), (29, "see MCUCXR_0027"), (31, "same pt as MCUCXR_0999_1")):
        film(tmp_path, number).write_text(f"Patient's Sex: M\nPatient's Age: 049Y\nNO REPORT ({text})")
    for seed in range(5):
        samples = NLMTB(tmp_path, num_workers=0, seed=seed).samples.set_index("image_path")
        rows = [
            samples.loc[str(tmp_path / f"MontgomerySet/CXR_png/MCUCXR_00{number}_1.png")] for number in (25, 27, 29)
        ]
        assert {row["patient_id"] for row in rows} == {"MCUCXR_0025"}
        assert len({row["split"] for row in rows}) == 1
    assert samples["patient_id"].nunique() == 34


def test_lung_masks_are_of_both_lungs_and_no_lesions(tmp_path):
    data = NLMTB(drawn_sets.nlm_tb(tmp_path), num_workers=0)
    assert data.samples.attrs["task"] == "classification"
    lungs = np.zeros((48, 48))
    lungs[8:40, 26:42] = lungs[8:40, 6:22] = 1
    none = 0
    for path in data.samples["image_path"]:
        mask = data.read_lungs(path)
        if mask is None:
            none += 1
            assert "CHNCXR" in path
        else:
            np.testing.assert_array_equal(mask, lungs)
    assert none == 9  # half of Shenzhen's 18
    path = data.samples["image_path"][data.samples["image_path"].str.contains("MCUCXR")].iloc[0]
    drawn_sets.save(Path(path.replace("CXR_png", "ManualMask/leftMask")), np.eye(20))
    with pytest.raises(ValueError, match="the masks of its lungs differ in size"):
        data.read_lungs(path)


def test_what_is_no_film_of_the_set(tmp_path, caplog):
    with pytest.raises(TableError, match="has a folder CXR_png, give the one of a set"):
        _ = NLMTB(tmp_path, num_workers=0).samples
    (tmp_path / "CXR_png").mkdir()
    drawn_sets.save(tmp_path / "CXR_png/chest.png", drawn_sets.chest(0, False))
    with pytest.raises(TableError, match="has no films named as MCUCXR_0001_0"):
        _ = NLMTB(tmp_path, num_workers=0).samples
    assert "1 images are named as no film of the set, such as CXR_png/chest.png" in caplog.text
    drawn_sets.nlm_tb(tmp_path / "both")
    (one,) = (tmp_path / "both").glob("*/CXR_png/MCUCXR_0001_0.png")
    one.with_name("MCUCXR_0001_1.png").write_bytes(one.read_bytes())
    with pytest.raises(TableError, match=r"MCUCXR_0001_0.png and .*MCUCXR_0001_1.png .* are film MCUCXR_0001 both"):
        _ = NLMTB(tmp_path / "both", num_workers=0).samples
