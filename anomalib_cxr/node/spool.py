"""Where films and results lie on the disk, under names that no sender chooses."""

import re
import shutil
from collections.abc import Collection
from hashlib import sha256
from pathlib import Path

from anomalib_cxr.files import written_atomically

_FILM = re.compile(r"([0-9a-f]{2})/(\1[0-9a-f]{62})-[0-9a-f]{16}\.dcm")
_TEMPORARY = re.compile(r"\.[0-9a-f]{16}\.tmp")


class Spool:
    """The files of one node: ``films/ab/….dcm``, and what was made of each in ``results/ab/…/``.

    Args:
        folder: Folder of the node.
        reserve: Bytes of the disk that are left free.
    """

    def __init__(self, folder: Path, reserve: int = 0) -> None:
        self.films, self.results, self.reserve = folder / "films", folder / "results", reserve
        for place in (self.films, self.results):
            place.mkdir(parents=True, exist_ok=True)

    @staticmethod
    def name(uid_sha256: str, digest: str) -> str:
        """File of a film, by its identifier and its pixels."""
        return f"{uid_sha256[:2]}/{uid_sha256}-{digest[:16]}.dcm"

    def film(self, file: str) -> Path:
        """Path of a film's file."""
        return self.films / file

    def results_of(self, file: str) -> Path:
        """Folder of what was made of a film."""
        return self.results / file.removesuffix(".dcm")

    def result(self, name: str) -> Path:
        """Path of one result, by its name in the journal."""
        return self.results / name

    def has_room(self, size: int) -> bool:
        """Whether so many bytes leave the reserve free."""
        return shutil.disk_usage(self.films).free - size >= self.reserve

    def store(self, file: str, content: bytes) -> None:
        """Write a film through to the disk.

        Raises:
            OSError: If it cannot be written; nothing is left of it then.
        """
        with written_atomically(self.film(file), durable=True) as temporary:
            temporary.write_bytes(content)

    def remove(self, file: str) -> None:
        """Delete a film and its results."""
        self.film(file).unlink(missing_ok=True)
        shutil.rmtree(self.results_of(file), ignore_errors=True)

    def sweep(self, files: Collection[str]) -> list[str]:
        """Delete what a process that was killed has left half done; nothing that is not named as ours is touched.

        Args:
            files: Those of the journal.

        Returns:
            Films that the journal does not know, which are whole.
        """
        known = set(files)
        for root in (self.films, self.results):
            for path in root.rglob(".*.tmp"):
                if _TEMPORARY.fullmatch(path.name):
                    path.unlink()
        for folder in sorted(self.results.glob("*/*")):
            name = f"{folder.relative_to(self.results).as_posix()}.dcm"
            if _FILM.fullmatch(name) and name not in known:
                shutil.rmtree(folder, ignore_errors=True)
        found = (path.relative_to(self.films).as_posix() for path in sorted(self.films.glob("*/*.dcm")))
        return [name for name in found if _FILM.fullmatch(name) and name not in known]


def uid_hash(uid: str) -> str:
    """SHA-256 of an identifier, by which journal and logs know a film."""
    return sha256(uid.encode("utf-8", "surrogateescape")).hexdigest()
