"""Hostile tables and paths: every one ends in one of our errors, or is read as what it says."""

import ast
import gzip
import logging
import os
from pathlib import Path

import pandas as pd
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from anomalib_cxr.data.files import find_missing, inside, scan_images
from anomalib_cxr.data.selection import Selection
from anomalib_cxr.data.tables import (
    TableError,
    is_missing,
    parse_depths,
    parse_labels,
    parse_numbers,
    read_columns,
    read_lines,
    read_table,
    refuse_duplicates,
    stored_depths,
    unify_ids,
)

PLAIN = b'name,label,note\na.png,normal,x\nb.png,abnormal,"y, z"\n'


def write(path: Path, content: bytes) -> Path:
    path.write_bytes(content)
    return path


@pytest.mark.parametrize(
    "content",
    [
        PLAIN,
        b"\xef\xbb\xbf" + PLAIN,
        gzip.compress(PLAIN, mtime=0),
        gzip.compress(b"\xef\xbb\xbf" + PLAIN, mtime=0),
        PLAIN.replace(b"\n", b"\r\n"),
        b"name;label;note\na.png;normal;x\nb.png;abnormal;y, z\n",
        b"name\tlabel\tnote\na.png\tnormal\tx\nb.png\tabnormal\ty, z\n",
        b' name , label,note\na.png,normal,x\nb.png,abnormal,"y, z"\n',
        b'extra,label,name,note\n1,normal,a.png,x\n2,abnormal,b.png,"y, z"\n',
    ],
)
def test_one_table_in_many_dresses(tmp_path, content):
    frame = read_table(write(tmp_path / "t.csv", content), ["name", "label"], ["note", "absent"])
    assert frame.to_dict("list") == {
        "name": ["a.png", "b.png"],
        "label": ["normal", "abnormal"],
        "note": ["x", "y, z"],
    }


def test_cells_stay_text(tmp_path):
    content = b"id,value\n007,None\n1e5,nan\n,\n2020-01-01,TRUE\n"
    frame = read_table(write(tmp_path / "t.csv", content), ["id", "value"])
    assert frame["id"].tolist() == ["007", "1e5", "", "2020-01-01"]
    assert frame["value"].tolist() == ["None", "nan", "", "TRUE"]
    assert is_missing(frame["value"]).tolist() == [True, True, True, False]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is empty"),
        (b"\n\n\n", "is empty"),
        (b"name,label\n", "has no row below its first line"),
        (b"name,kind\na,b\n", r"lacks the columns \['label'\]; its first line has \['name', 'kind'\]"),
        (b"name,label,name\na,b,c\n", "has the column 'name' more than once"),
        (b"name,label\na,\x81\n", "cannot be read as a CSV table"),  # neither UTF-8 nor Windows-1252
        ("name,label\nMüller,".encode() + b"\xfc\n", "cannot be read as a CSV table"),  # UTF-8 with a broken place
        (b"\xef\xbb\xbfname,label\na,\xff\n", "cannot be read as a CSV table"),
        (b"name,label,note,note\na,b,c,d\n", "has the column 'note' more than once"),
        (b"sep=;\nname,label\na,b\n", "lacks the columns"),
        (b'name,label\n"a,b\n', "cannot be read as a CSV table"),
        (gzip.compress(PLAIN, mtime=0)[:-9], "cannot be read as a CSV table"),
        (b"\x1f\x8bnot gzip at all", "cannot be read as a CSV table"),
        (b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR", "cannot be read as a CSV table|lacks the columns"),
        (b"name,label\na,normal\nb\n", "data row 2 has 1 cells, the first line has 2"),
        (b"name,label\na,normal,c\n", "data row 1 has 3 cells, the first line has 2"),
        (b'name,label\n"a"b,normal\n', "cannot be read as a CSV table"),
    ],
)
def test_a_broken_table_is_refused(tmp_path, content, message):
    with pytest.raises(TableError, match=message):
        read_table(write(tmp_path / "t.csv", content), ["name", "label"], ["note"])


UMLAUTS = "name,label,note\nJürgen.png,normal,–\nb.png,abnormal,é\n"


@pytest.mark.parametrize(
    "content",
    [
        UMLAUTS.encode(),
        *(UMLAUTS.encode(name) for name in ("utf-8-sig", "cp1252", "utf-16", "utf-16-le", "utf-16-be", "utf-32")),
        b"\xfe\xff" + UMLAUTS.encode("utf-16-be"),
        gzip.compress(UMLAUTS.encode("utf-16"), mtime=0),
        gzip.compress(UMLAUTS.encode("cp1252"), mtime=0),
    ],
)
def test_encodings_that_spreadsheets_write(tmp_path, content, caplog):
    path = write(tmp_path / "t.csv", content)
    frame = read_table(path, ["name", "label"], ["note"])
    assert frame["name"].tolist() == ["Jürgen.png", "b.png"]
    assert frame["note"].tolist() == ["–", "é"]
    is_windows = content in {UMLAUTS.encode("cp1252"), gzip.compress(UMLAUTS.encode("cp1252"), mtime=0)}
    assert ("is no UTF-8 and is read as Windows-1252" in caplog.text) == is_windows


def test_last_columns_without_a_name_need_no_cells(tmp_path):
    path = tmp_path / "table.csv"
    path.write_text("name,x,,,\na,1\nb,2,,,\nc,3,,\n")
    assert read_columns(path, ["name", "x"]) == {"name": ["a", "b", "c"], "x": ["1", "2", "3"]}
    for short, content in ((1, "name,x,,\na\n"), (3, "name,,x,y\na,1,2\n")):
        path.write_text(content)
        with pytest.raises(TableError, match=f"data row 1 has {short} cells, the first line has 4"):
            read_columns(path, ["name", "x"])


def test_lists_of_lines(tmp_path):
    path = tmp_path / "list.txt"
    path.write_bytes(b"\xef\xbb\xbfa.png\r\n\r\n  b c.png \n")
    assert read_lines(path) == ["a.png", "b c.png"]
    path.write_bytes(gzip.compress(b"a.png"))
    assert read_lines(path) == ["a.png"]
    for content in (b"\xff\xfe\x00", b"\x1f\x8b0", b" \n"):
        path.write_bytes(content)
        with pytest.raises(TableError, match="is empty" if content == b" \n" else "cannot be read"):
            read_lines(path)
    with pytest.raises(TableError, match="cannot be read"):
        read_lines(tmp_path / "none.txt")


@pytest.mark.parametrize("first", ["sep=;\n", "SEP=;\r\n", '"sep=;"\n', "sep=;;;\n", "\ufeffsep=;\n"])
def test_a_first_line_that_states_the_separator(tmp_path, first):
    content = f"{first}name;label;note\na,b.png;normal;x\n"
    frame = read_table(write(tmp_path / "t.csv", content.encode()), ["name", "label"], ["note"])
    assert frame.to_dict("list") == {"name": ["a,b.png"], "label": ["normal"], "note": ["x"]}
    content = content.replace(";", "\t")
    assert len(read_table(write(tmp_path / "t.csv", content.encode()), ["name", "label"])) == 1
    content = f"{first}name;label\n".replace(";", ":") + "a:b\n"  # a separator that is not looked for
    assert read_table(write(tmp_path / "t.csv", content.encode()), ["name"])["name"].tolist() == ["a"]


@pytest.mark.parametrize("delimiter", [",", ";", "\t"])
def test_line_breaks_in_header_cells(tmp_path, delimiter):
    header = delimiter.join(['"Age\n(years)"', '"image\r\npath"', '"Finding\n  Labels"', '"note, or\n""remark"""'])
    content = f"{header}\n{delimiter.join(['7', 'a.png', 'normal', 'x'])}\n"
    for names in (["image path", "Finding Labels"], ["image\npath", "Finding\n Labels"]):
        frame = read_table(write(tmp_path / "t.csv", content.encode()), names, ["Age (years)", 'note, or "remark"'])
        assert list(frame.columns) == [*names, "Age (years)", 'note, or "remark"']
        assert frame.to_numpy().tolist() == [["a.png", "normal", "7", "x"]]


def test_depths(tmp_path):
    assert parse_depths(pd.Series(["12", "8.0", "", "nan", "16"], name="bits"), "t.csv").tolist()[:2] == [12, 8]
    for wrong in ("12.5", "0", "-8", "33", "0.0"):
        with pytest.raises(TableError, match=rf"'{wrong}' in column 'bits', data row 2, is no bit depth: give a whole"):
            parse_depths(pd.Series(["8", wrong], name="bits"), "t.csv")
    assert stored_depths(pd.DataFrame({"bits": [12.0, float("nan"), None, 8]})) == [12, None, None, 8]
    assert stored_depths(pd.DataFrame({"path": ["a", "b"]})) == [None, None]
    for wrong in (12.5, 0, -1):
        with pytest.raises(ValueError, match="bits must be whole numbers"):
            stored_depths(pd.DataFrame({"bits": [8, wrong]}))


def test_ids_in_several_spellings_are_one(caplog):
    ids = pd.Series(["7", "7.0", "007", "8.0", "09", "P7", "7a", "-7", "", "10", "10."])
    assert unify_ids(ids, "Drawn").tolist() == ["7", "7", "7", "8.0", "09", "P7", "7a", "-7", "", "10", "10"]
    assert "Drawn: 2 patients are spelt in several ways, such as ['007', '7', '7.0'], and are one each" in caplog.text
    caplog.clear()
    plain = pd.Series(["001", "2.0", "3", "0"])
    assert unify_ids(plain, "Drawn").equals(plain)
    assert not caplog.text


def test_a_table_that_is_not_there_is_refused(tmp_path):
    with pytest.raises(TableError, match="does not exist"):
        read_table(tmp_path / "none.csv", ["name"])
    with pytest.raises(TableError, match="cannot be read"):
        read_table(tmp_path, ["name"])


def test_numbers_and_duplicates(tmp_path):
    column = pd.Series(["1", " 2.5", "None", ""], name="bits")
    assert parse_numbers(column, "t.csv").tolist()[:2] == [1.0, 2.5]
    assert parse_numbers(column, "t.csv").isna().tolist() == [False, False, True, True]
    for wrong in ("12 bits", "1_000", "inf", "1e400", "__import__('os')"):
        with pytest.raises(TableError, match="data row 2, is no number"):
            parse_numbers(pd.Series(["1", wrong], name="bits"), "t.csv")
    with pytest.raises(TableError, match="2 rows repeat an id in column 'id', the first is 'a'"):
        refuse_duplicates(pd.Series(["a", "b", "a", "a"], name="id"), "t.csv")


@pytest.mark.parametrize(
    ("cell", "labels"),
    [
        ("['normal']", ("normal",)),
        ("[' normal', 'normal', \"it's\"]", ("normal", "it's")),
        ("[]", ()),
        ("['']", ()),
        (" [ 'a' , 'b' , ] ", ("a", "b")),
    ],
)
def test_label_lists(cell, labels):
    assert parse_labels(cell) == labels


@pytest.mark.parametrize(
    "cell",
    [
        "normal",
        "",
        "[normal]",
        "['a' 'b']",
        "['a',,'b']",
        "['a'",
        "'a']",
        "[1]",
        "['a', ['b']]",
        "[None]",
        "(('a',))",
        "[__import__('os').system('touch /tmp/owned')]",
        "['a'] + ['b']",
        "['a'.upper()]",
        "[" * 100_000,
        "['a\\', 'b']",
    ],
)
def test_other_cells_are_no_label_lists(cell):
    with pytest.raises(TableError, match="not a list of"):
        parse_labels(cell)


printable = st.characters(exclude_categories=["C"], exclude_characters="'\"\\").filter(str.isprintable)


@given(st.lists(st.text(printable, max_size=12)))
def test_label_lists_agree_with_python(labels):
    expected = tuple(dict.fromkeys(label.strip() for label in ast.literal_eval(str(labels)) if label.strip()))
    assert parse_labels(str(labels)) == expected


@pytest.mark.parametrize(
    ("listed", "expected"),
    [
        ("a/b.png", "a/b.png"),
        ("./a//b.png", "a/b.png"),
        ("a\\b.png", "a/b.png"),
        ("a/../b.png", "b.png"),
        ("/data/set/a/b.png", "a/b.png"),
    ],
)
def test_paths_below_the_root(listed, expected):
    assert inside(Path("/data/set"), listed) == expected


@pytest.mark.parametrize(
    "listed",
    [
        "../b.png",
        "a/../../b.png",
        "..\\b.png",
        "/etc/passwd",
        "/data/set2/b.png",
        "C:\\b.png",
        "C:b.png",
        "//host/b",
        "",
        " ",
        ".",
        "a/..",
        "a\0.png",
        "/data/set/../secret.png",
    ],
)
def test_paths_that_leave_the_root_are_refused(listed):
    with pytest.raises(ValueError, match=r"root|no path"):
        inside(Path("/data/set"), listed)


@given(st.text(alphabet="./\\ab:C", max_size=20))
@example("a/./../..")
def test_what_is_let_through_stays_inside(listed):
    try:
        result = inside(Path("/data/set"), listed)
    except ValueError:
        return
    resolved = os.path.normpath(f"/data/set/{result}")
    assert resolved.startswith("/data/set/")
    assert resolved == f"/data/set/{result}"


def test_absolute_paths_by_any_name_of_the_root(tmp_path, monkeypatch):
    root = tmp_path / "data/set"
    (root / "a").mkdir(parents=True)
    (tmp_path / "link").symlink_to(root, target_is_directory=True)
    (tmp_path / "upper").symlink_to(tmp_path / "data", target_is_directory=True)
    (tmp_path / "data/secret.png").write_bytes(b"x")
    monkeypatch.chdir(root)
    names = [root, tmp_path / "link", tmp_path / "upper/set", tmp_path / "data/../data/set", Path("../set"), Path()]
    for name in names:
        for other in names:
            assert inside(name, f"{other.absolute()}/a/b.png") == "a/b.png"
        assert inside(name, "../set/a/b.png") == "a/b.png"
        assert inside(name, "a/../b.png") == "b.png"
        for wrong in (
            "../secret.png",
            "../../x.png",
            f"{tmp_path}/data/secret.png",
            f"{other.absolute()}/../secret.png",
        ):
            with pytest.raises(ValueError, match="root"):
                inside(name, wrong)
        for drive in ("C:\\b.png", "C:/b.png", "\\\\host\\b.png"):
            with pytest.raises(ValueError, match="is outside the root"):
                inside(name, drive)


def test_scan_follows_links_once_and_ignores_strays(tmp_path):
    elsewhere = tmp_path / "elsewhere"
    root = tmp_path / "root"
    for path in (root / "a/x.PNG", root / "b.jpeg", elsewhere / "linked.dcm", root / ".hidden/c.png"):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"x")
    for stray in ("a/._x.png", "a/.DS_Store", "notes.txt", "__MACOSX/y.png"):
        (root / stray).parent.mkdir(exist_ok=True)
        (root / stray).write_bytes(b"x")
    (root / "link").symlink_to(elsewhere, target_is_directory=True)
    (root / "a/loop").symlink_to(root, target_is_directory=True)
    (root / "self.png").symlink_to(root / "self.png")
    scan = scan_images(root)
    assert scan.images == ["a/x.PNG", "b.jpeg", "link/linked.dcm", "self.png"]
    assert scan.ignored == 3
    assert scan.loops == ["a/loop"]
    assert sorted(scan.hidden) == [".hidden", "__MACOSX"]
    with pytest.raises(FileNotFoundError, match="does not exist"):
        scan_images(root / "none")
    with pytest.raises(NotADirectoryError, match="is a file"):
        scan_images(root / "b.jpeg")


def test_missing_files_cost_one_look_a_folder(tmp_path, monkeypatch):
    for name in ("a/1.png", "a/2.png", "b/1.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"")
    looks = []
    real = os.scandir
    monkeypatch.setattr(os, "scandir", lambda path: looks.append(str(path)) or real(path))
    listed = [f"{folder}/{i}.png" for folder in "abc" for i in range(100)]
    missing = find_missing(tmp_path, listed)
    assert sorted(set(listed) - set(missing)) == ["a/1.png", "a/2.png", "b/1.png"]
    assert len(looks) == 3


def test_selection_counts_and_names_the_filter_that_emptied_it(caplog):
    table = pd.DataFrame({"label": ["normal"] * 3 + ["abnormal"] * 2, "view": ["PA", "AP", "PA", "L", "L"]})
    selection = Selection(table, "Drawn")
    with caplog.at_level(logging.INFO, logger="anomalib_cxr"):
        selection.keep(selection.table["view"] != "AP", "not AP")
        selection.keep(selection.table["view"] == "PA", "view PA")
    assert "Drawn: view PA: 2 images, 2 normal, 0 abnormal" in caplog.text
    assert selection.emptied("abnormal") == "view PA"
    assert selection.emptied("normal") is None
    with pytest.raises(
        TableError, match=r"the filter 'children' left none of 2.*listed 3 \+ 2, not AP 2 \+ 2, view PA 2 \+ 0"
    ):
        selection.keep(selection.table["view"] == "PED", "children")
