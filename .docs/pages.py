"""Pages of the site: every document where it lies in the repository, and one page for each module's docstrings."""

from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files, InclusionLevel

ROOT = Path(__file__).parents[1]
DOCUMENTS = [
    "README.md",
    *(path.relative_to(ROOT).as_posix() for path in sorted(ROOT.glob("anomalib_cxr/**/README.md"))),
    "configs/README.md",
    ".github/CONTRIBUTING.md",
    "CHANGELOG.md",
]
#: What documents show or link that is no page.
FILES = [
    path.relative_to(ROOT).as_posix()
    for pattern in (".github/pictures/*", "configs/**/*.yaml", "notebooks/*.ipynb")
    for path in sorted(ROOT.glob(pattern))
]
MODULES = [
    ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
    for path in sorted(ROOT.glob("anomalib_cxr/**/*.py"))
    if "_startup" not in path.parts and path.stem != "__main__"
]


def page(module: str) -> str:
    """Where the page of a module is."""
    return f"reference/{module}.md"


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Documents first; then the reference, a section for each room."""
    rooms: dict[str, list[dict[str, str]]] = {}
    for module in MODULES:
        rooms.setdefault(".".join(module.split(".")[:2]), []).append({module: page(module)})
    config.nav = [*DOCUMENTS, {"API reference": ["reference/index.md", *({room: rooms[room]} for room in rooms)]}]
    return config


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add them to what lies in ``text``."""
    for name in DOCUMENTS + FILES:
        # Said outright, for names that begin with a dot are left out otherwise.
        files.append(File.generated(config, name, abs_src_path=str(ROOT / name), inclusion=InclusionLevel.INCLUDED))
    for module in MODULES:
        files.append(File.generated(config, page(module), content=f"::: {module}\n"))
    return files
