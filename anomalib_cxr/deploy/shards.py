"""A folder divided among many runs, and their tables joined (ours).

A film's shard follows from its path below the folder alone, so that it is the same on every machine and in every run.
"""

import csv
import io
import json
import re
from collections.abc import Mapping, Sequence
from hashlib import sha256
from pathlib import Path
from typing import Any, NamedTuple

from anomalib_cxr.csv_tables import csv_text, restored
from anomalib_cxr.files import folder_below, write_bytes, write_text
from anomalib_cxr.run_folder import PREDICTIONS, UNREADABLE

SHARDS = "shards"
"""Folder of the shards' tables in the output folder."""
RECORD = "shard.json"
"""Written when a shard is done, beside its tables."""


class ShardError(ValueError):
    """Shards that cannot be made or joined. The message says why, and what to do."""


class Shard(NamedTuple):
    """One of the parts that a folder is divided into.

    Attributes:
        number: From 1 to ``parts``.
        parts: How many there are.
    """

    number: int
    parts: int

    @classmethod
    def parse(cls, text: str) -> "Shard":
        """Read a shard as a command line names it.

        Args:
            text: ``"3/8"`` is the third of eight.

        Returns:
            The shard.

        Raises:
            ShardError: If it names none.

        Examples:
            >>> Shard.parse("3/8")
            Shard(number=3, parts=8)
        """
        found = re.fullmatch(r"([0-9]+)/([0-9]+)", text)
        if not found or not 1 <= int(found[1]) <= int(found[2]):
            msg = f"{text!r} names no shard: give i/n with i from 1 to n, as 3/8 for the third of eight."
            raise ShardError(msg)
        return cls(int(found[1]), int(found[2]))

    def holds(self, name: str) -> bool:
        """Whether a film is of this shard: by the first 16 digits of its path's SHA-256, modulo the number of shards.

        Args:
            name: Path below the folder, with forward slashes, as it is on disk.

        Returns:
            True for one of all shards.
        """
        digits = sha256(name.encode("utf-8", "surrogateescape")).hexdigest()[:16]
        return int(digits, 16) % self.parts == self.number - 1

    def folder(self, output: Path) -> Path:
        """Where its tables lie, in the output folder that all shards share."""
        return output / SHARDS / f"{self.number}-of-{self.parts}"


def listing_digest(names: Sequence[str]) -> str:
    """SHA-256 that says whether two runs saw the same folder.

    Args:
        names: All films, in any order.

    Returns:
        64 hexadecimal digits.
    """
    return sha256("\0".join(sorted(names)).encode("utf-8", "surrogateescape")).hexdigest()


def begin(shard: Shard, output: Path) -> Path:
    """Make the folder of a shard's tables; what a run that was cut off left of them is removed.

    Args:
        shard: The shard.
        output: Output folder of all shards.

    Returns:
        The folder.

    Raises:
        FileExistsError: If the shard is done.
        OSError: If the folder cannot be made.
    """
    place = shard.folder(output)
    if (place / RECORD).exists():
        msg = f"{place / RECORD} exists, the shard is done: name another output folder, or move {place} away."
        raise FileExistsError(msg)
    folder_below(output, SHARDS, place.name)
    for name in (PREDICTIONS, UNREADABLE):
        (place / name).unlink(missing_ok=True)
    return place


def finish(shard: Shard, output: Path, made_with: Mapping[str, Any]) -> None:
    """Note that a shard is done.

    Args:
        shard: The shard.
        output: Output folder of all shards.
        made_with: What must be the same in all of them, by what people call it.
    """
    place = shard.folder(output)
    tables = {name: sha256((place / name).read_bytes()).hexdigest() for name in (PREDICTIONS, UNREADABLE)}
    record = {"number": shard.number, "parts": shard.parts, "made_with": dict(made_with), "tables": tables}
    write_text(place / RECORD, json.dumps(record, indent=1) + "\n")


def merge_shards(output: str | Path) -> tuple[int, int]:
    """Join the tables of all shards: ``predictions.csv`` and ``unreadable.csv`` as one run would have written them.

    Args:
        output: Output folder that the shards shared, or that their folders were copied into.

    Returns:
        Images scored, and rows of ``unreadable.csv``.

    Raises:
        FileExistsError: If the tables have been joined already.
        ShardError: If a shard is missing, not done, there twice, of another folder or model, or changed.
    """
    output = Path(output)
    for name in (PREDICTIONS, UNREADABLE):
        if (output / name).exists():
            msg = f"{output / name} exists: move it away to join the shards again."
            raise FileExistsError(msg)
    places = sorted(place for place in (output / SHARDS).glob("*") if place.is_dir())
    if not places:
        msg = f"There are no shards in {output}: make them with --shard."
        raise ShardError(msg)
    records = {place: _read_record(place) for place in places}
    shards = _check_together(records)
    joined: dict[str, bytes] = {}
    lengths = []
    for name in (PREDICTIONS, UNREADABLE):
        header: list[str] = []
        rows: list[list[str]] = []
        for place, shard in shards.items():
            header, *own = _read_table(place / name, records[place]["tables"][name])
            _refuse_strangers(own, shard, place / name)
            rows += own
        rows.sort(key=lambda row: restored(row[0]))
        lengths.append(len(rows))
        joined[name] = csv_text([header, *([restored(cell) for cell in row] for row in rows)]).encode(
            "utf-8", "surrogateescape"
        )
    for name, content in joined.items():
        write_bytes(output / name, content)
    return lengths[0], lengths[1]


def _read_record(place: Path) -> dict[str, Any]:
    try:
        record = json.loads((place / RECORD).read_text(encoding="utf-8"))
        Shard(int(record["number"]), int(record["parts"])), record["made_with"].items()
        record["tables"][PREDICTIONS], record["tables"][UNREADABLE]
    except FileNotFoundError as error:
        msg = f"The shard in {place} was not done: run it again."
        raise ShardError(msg) from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        msg = f"{place / RECORD} cannot be read ({error}): move {place} away and run the shard again."
        raise ShardError(msg) from error
    return dict(record)


def _check_together(records: Mapping[Path, Mapping[str, Any]]) -> dict[Path, Shard]:
    """The shards, if they are all there is of one folder, each once, and all made in the same way."""
    (first, reference), *_ = records.items()
    shards: dict[Path, Shard] = {}
    for place, record in records.items():
        shard = Shard(int(record["number"]), int(record["parts"]))
        if shard.parts != reference["parts"]:
            msg = (
                f"{place} is one of {shard.parts} shards and {first} one of {reference['parts']}, so that films would "
                "be there twice: move the shards of one division away."
            )
            raise ShardError(msg)
        if shard in shards.values():
            other = next(other for other, one in shards.items() if one == shard)
            msg = f"{place} and {other} are both shard {shard.number} of {shard.parts}: move one of them away."
            raise ShardError(msg)
        for what, value in reference["made_with"].items():
            if record["made_with"].get(what) != value:
                msg = (
                    f"{place} was made with another {what} than {first} ({record['made_with'].get(what)}, {value}): "
                    "run all shards in the same way."
                )
                raise ShardError(msg)
        shards[place] = shard
    missing = sorted(set(range(1, reference["parts"] + 1)) - {shard.number for shard in shards.values()})
    if missing:
        listed = ", ".join(map(str, missing[:10])) + (" ..." if len(missing) > 10 else "")
        msg = f"Of {reference['parts']} shards {len(missing)} are not there ({listed}): run them first."
        raise ShardError(msg)
    return shards


def _read_table(path: Path, digest: str) -> list[list[str]]:
    try:
        content = path.read_bytes()
    except FileNotFoundError as error:
        msg = f"{path} is missing: move {path.parent} away and run the shard again."
        raise ShardError(msg) from error
    if sha256(content).hexdigest() != digest:
        msg = f"{path} was changed since its shard was done: move {path.parent} away and run the shard again."
        raise ShardError(msg)
    return list(csv.reader(io.StringIO(content.decode("utf-8", "surrogateescape"), newline="")))


def _refuse_strangers(rows: Sequence[Sequence[str]], shard: Shard, path: Path) -> None:
    for row in rows:
        if not shard.holds(restored(row[0])):
            msg = f"{path} lists {row[0]}, which is of another shard: its folder was renamed, or its record changed."
            raise ShardError(msg)
