"""Every relative link and anchor of every document leads somewhere; the README stays short; wheels carry documents."""

from pathlib import Path

import documents
import pytest

import anomalib_cxr

NAMES = [path.relative_to(documents.ROOT).as_posix() for path in documents.documents()]


@pytest.mark.parametrize("name", NAMES)
def test_links_lead_somewhere(name: str) -> None:
    assert not documents.broken_links(documents.ROOT / name)


def test_the_readme_is_short_and_links_every_document_of_the_package() -> None:
    readme = documents.ROOT / "README.md"
    text = readme.read_text(encoding="utf-8")
    assert len(text.splitlines()) <= 200
    linked = {target.partition("#")[0] for target in documents.targets(text)}
    assert {name for name in NAMES if name.startswith("anomalib_cxr/")} <= linked


def test_every_configuration_is_listed() -> None:
    folder = documents.ROOT / "configs"
    linked = set(documents.targets((folder / "README.md").read_text(encoding="utf-8")))
    assert {path.relative_to(folder).as_posix() for path in folder.rglob("*.yaml")} <= linked


def test_every_detector_has_a_document() -> None:
    from anomalib_cxr import models

    folder = Path(str(anomalib_cxr.__file__)).parent
    for name in models.__all__:
        package = getattr(models, name).__module__.split(".")[2]
        assert (folder / "models" / package / "README.md").is_file(), name


@pytest.mark.parametrize(
    ("link", "whole"),
    [
        ("[a](other.md)", True),
        ("[a](other.md#two-words)", True),
        ("[a](other.md#again-1)", True),
        ("[a](#here)", True),
        ("![a](folder/picture.png)", True),
        ("[a](folder)", True),
        ("[a](https://example.org/nowhere)", True),
        ("`[a](gone.md)`", True),
        ("```text\n[a](gone.md)\n```", True),
        ("<!-- [a](gone.md) -->", True),
        ("[a](gone.md)", False),
        ("[![a](gone.png)](other.md)", False),
        ("[a](other.md#three)", False),
        ("[a](other.md#again-2)", False),
        ("[a](other.md#in-code)", False),
        ("[a](#there)", False),
        ("![a](folder/gone.png)", False),
        ("[a][b]\n\n[b]: gone.md", False),
        ('<img src="gone.png">', False),
        ("[a](../outside.md)", False),
    ],
)
def test_broken_links_are_found(tmp_path: Path, link: str, whole: bool) -> None:
    root = tmp_path / "root"
    (root / "folder").mkdir(parents=True)
    (root / "folder" / "picture.png").touch()
    (tmp_path / "outside.md").touch()
    (root / "other.md").write_text("# *Two* `words`!\n## Again\n## Again\n```bash\n# in code\n```\n")
    (root / "page.md").write_text(f"# Here\n\n{link}\n")
    assert (not documents.broken_links(root / "page.md", root)) is whole


def test_runnable_blocks_are_those_below_the_mark(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(
        "```python\na\n```\n\n<!-- runnable -->\n```bash\nb \\\n  c\n```\n<!-- runnable -->\n```python\nd\n```\n"
    )
    assert documents.runnable_blocks(page, tmp_path) == [
        documents.Block("bash", "b \\\n  c\n", "page.md:6"),
        documents.Block("python", "d\n", "page.md:11"),
    ]
