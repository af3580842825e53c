"""The repository's documents as tests read them: links, anchors, and the blocks that are marked runnable."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple
from urllib.parse import unquote

ROOT = Path(__file__).parents[1]
#: What stands in the working tree: tools put documents of their own into folders like these.
_NOT_OURS = {"results", "datasets", "site", "node_modules", "venv", "build", "dist"}

_FENCE = re.compile(r"^(?P<fence>`{3,}|~{3,})(?P<language>\w*)[^\n]*\n(?P<text>.*?)^(?P=fence)[ \t]*$", re.M | re.S)
_COMMENT = re.compile(r"<!--.*?-->", re.S)
_CODE = re.compile(r"(`+)(.+?)\1")
_LINK = re.compile(r"(?<!\\)\]\((?P<target><[^>]*>|[^\s()]*(?:\([^\s()]*\)[^\s()]*)*)(?:\s+\"[^\"]*\")?\)")
_REFERENCE = re.compile(r"^\[[^\]]+\]:\s*(?P<target>\S+)", re.M)
_HTML = re.compile(r"<(?:img|a)\b[^>]*\b(?:src|href)=[\"'](?P<target>[^\"']+)[\"']")
_HEADING = re.compile(r"^#{1,6}\s+(?P<text>.+?)\s*#*$", re.M)
RUNNABLE = re.compile(r"<!-- runnable -->\n" + _FENCE.pattern.removeprefix("^"), re.M | re.S)


class Block(NamedTuple):
    """A runnable block: language ("python" or "bash"), text, and its place for messages."""

    language: str
    text: str
    place: str


def documents(root: Path = ROOT) -> list[Path]:
    """Every Markdown file, those in ``.github`` among them, in a fixed order with the root's README first."""
    found = [
        path
        for path in root.rglob("*.md")
        if not _NOT_OURS & set(path.relative_to(root).parts)
        and all(part == ".github" or not part.startswith(".") for part in path.relative_to(root).parts[:-1])
    ]
    return sorted(found, key=lambda path: (len(path.relative_to(root).parts), path.as_posix()))


def anchors(text: str) -> set[str]:
    """Anchors of the headings, by GitHub's rule: lower case, no punctuation, blanks to hyphens, repeats numbered."""
    found: set[str] = set()
    counts: dict[str, int] = {}
    for match in _HEADING.finditer(_FENCE.sub("", text)):
        words = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", match["text"]).lower()
        name = re.sub(r"[^\w\- ]", "", words).replace(" ", "-")
        count = counts.get(name, 0)
        counts[name] = count + 1
        found.add(f"{name}-{count}" if count else name)
    return found


def targets(text: str) -> Iterator[str]:
    """What the links and pictures of a text point at, code and comments left out."""
    prose = _COMMENT.sub("", _FENCE.sub("", text))
    yield from (match["target"] for match in _HTML.finditer(prose))
    prose = _CODE.sub(lambda match: "x" * len(match[0]), prose)
    for pattern in (_LINK, _REFERENCE):
        yield from (match["target"].strip("<>") for match in pattern.finditer(prose))


def broken_links(document: Path, root: Path = ROOT) -> list[str]:
    """Relative links that lead nowhere, out of the repository, or to a heading that is not there."""
    broken = []
    for target in targets(document.read_text(encoding="utf-8")):
        if re.match(r"[a-z][a-z+.-]*:", target):
            continue
        path, _, anchor = unquote(target).partition("#")
        aim = (document.parent / path).resolve() if path else document.resolve()
        known = aim.is_relative_to(root.resolve()) and aim.exists()
        if known and anchor:
            known = aim.suffix == ".md" and anchor in anchors(aim.read_text(encoding="utf-8"))
        if not known:
            broken.append(target)
    return broken


def runnable_blocks(document: Path, root: Path = ROOT) -> list[Block]:
    """Blocks right below ``<!-- runnable -->``, in their order."""
    text = document.read_text(encoding="utf-8")
    return [
        Block(
            match["language"],
            match["text"],
            f"{document.relative_to(root)}:{text.count(chr(10), 0, match.start()) + 2}",
        )
        for match in RUNNABLE.finditer(text)
    ]
