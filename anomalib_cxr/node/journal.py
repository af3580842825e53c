"""What became of every film: an SQLite file in WAL mode, written through to the disk at each step.

A film is *received* (its file is on disk), *scored* (so are its results, and who shall get them), *sent*, *failed*
(with a reason and, unless it is given up, the time of the next try) or *ignored*. A step is one transaction, so that a
process that is killed between two of them leaves the state before or the state after. The journal holds no name and no
identifier of a patient, study or film: films are known by the SHA-256 of their SOP Instance UID.
"""

import sqlite3
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from threading import RLock
from typing import Any, Literal, NamedTuple

from filelock import FileLock, Timeout

from anomalib_cxr.checks import check_choice

State = Literal["received", "scored", "sent", "failed", "ignored"]
STATES: tuple[State, ...] = ("received", "scored", "sent", "failed", "ignored")

#: What a film is when it has just arrived.
Arrived = Literal["received", "ignored", "failed"]

#: Changes whenever this version would misread what another has written.
FORMAT = 2
#: A pause longer than any that is made: who waits longer, waits because the clock was set back.
_NEVER = 2 * 86400.0

_TABLES = """
CREATE TABLE films (
    id INTEGER PRIMARY KEY,
    uid_sha256 TEXT NOT NULL,
    digest TEXT NOT NULL,
    state TEXT NOT NULL CHECK (state IN ('received', 'scored', 'sent', 'failed', 'ignored')),
    reason TEXT,
    tries INTEGER NOT NULL DEFAULT 0,
    begun INTEGER NOT NULL DEFAULT 0,
    next_try REAL,
    received REAL NOT NULL,
    ended REAL,
    sender TEXT NOT NULL,
    arrivals INTEGER NOT NULL DEFAULT 1,
    to_score INTEGER NOT NULL,
    file TEXT,
    UNIQUE (uid_sha256, digest)
);
CREATE INDEX films_to_score ON films (begun + tries, id) WHERE to_score;
CREATE INDEX films_by_state ON films (state, received);
CREATE INDEX films_by_arrival ON films (received);
CREATE TABLE scores (
    film INTEGER NOT NULL REFERENCES films,
    model TEXT NOT NULL,
    model_sha256 TEXT NOT NULL,
    score REAL NOT NULL,
    p_value REAL,
    threshold REAL,
    abnormal INTEGER NOT NULL,
    outside INTEGER NOT NULL,
    not_assessable TEXT,
    PRIMARY KEY (film, model_sha256)
);
CREATE INDEX scores_by_model ON scores (model_sha256, film);
CREATE TABLE deliveries (
    film INTEGER NOT NULL REFERENCES films,
    object TEXT NOT NULL,
    destination TEXT NOT NULL,
    tries INTEGER NOT NULL DEFAULT 0,
    next_try REAL,
    sent REAL,
    reason TEXT,
    PRIMARY KEY (film, object, destination)
);
CREATE INDEX deliveries_waiting ON deliveries (destination, film) WHERE sent IS NULL AND next_try IS NOT NULL;
"""

#: What makes a journal of this format out of one of an earlier.
_SINCE = {1: "ALTER TABLE scores ADD COLUMN not_assessable TEXT;"}

#: Condition on films that have a file, and with which nothing is left to do.
_AT_REST = "file IS NOT NULL AND NOT to_score AND ended IS NOT NULL"


class JournalError(RuntimeError):
    """A journal that cannot be used. The message says why, and what to do."""


class Arrival(NamedTuple):
    """What an arriving film is to the journal.

    Attributes:
        state: The film's state now.
        first: Whether its pixels were never seen under its identifier.
        conflict: Whether other pixels were.
        needs_file: Whether the film's file must be kept.
    """

    state: State
    first: bool
    conflict: bool
    needs_file: bool


class Film(NamedTuple):
    """A film that is to be scored.

    Attributes:
        id: Its row.
        uid_sha256: Of its SOP Instance UID.
        file: Name of its file.
        tries: Scorings that ended with an error.
        begun: Scorings since then that did not end at all, this one among them.
    """

    id: int
    uid_sha256: str
    file: str
    tries: int
    begun: int


class Score(NamedTuple):
    """What one model said of a film.

    Attributes:
        model: Its name in the configuration.
        model_sha256: Of its exported file.
        score: Normalised score in (0, 1).
        p_value: At the site, or None.
        threshold: Score above which films are abnormal; infinity where no rate can be promised.
        abnormal: Decision.
        outside: Whether the score is beyond those of all normal films of the site.
        not_assessable: Why the film should not be judged by its score; "" where it may be, None where nobody knows.
    """

    model: str
    model_sha256: str
    score: float
    p_value: float | None
    threshold: float
    abnormal: bool
    outside: bool
    not_assessable: str | None = None


class Delivery(NamedTuple):
    """An object that is to be sent.

    Attributes:
        film: Row of its film.
        uid_sha256: Of the film's SOP Instance UID.
        object: Name of its file.
        destination: Who shall get it.
        tries: Tries so far.
    """

    film: int
    uid_sha256: str
    object: str
    destination: str
    tries: int


class Journal:
    """The journal of one node; a second node on it is refused.

    Args:
        path: SQLite file; its folder is made.

    Raises:
        JournalError: If another node has it, or it is no journal of this version.
    """

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self.path = path
        # Held as long as the process lives; the system lets it go when that is killed.
        self._owner = FileLock(path.with_name(f"{path.name}.lock"))
        try:
            self._owner.acquire(timeout=0)
        except Timeout as error:
            msg = f"{path} is in use by another node: stop that one, or give this one a folder of its own."
            raise JournalError(msg) from error
        self.lock = RLock()
        try:
            self._db = sqlite3.connect(path, check_same_thread=False, isolation_level=None)
            self._db.row_factory = sqlite3.Row
            self._open()
        except sqlite3.DatabaseError as error:
            self._owner.release()
            msg = f"{path} cannot be opened as a journal ({error}): move it away, and keep it."
            raise JournalError(msg) from error
        except JournalError:
            self.close()
            raise

    def _open(self) -> None:
        self._db.execute("PRAGMA journal_mode = WAL")
        # FULL: a commit has returned only when it is on the disk, so that a loss of power undoes no answer.
        self._db.execute("PRAGMA synchronous = FULL")
        self._db.execute("PRAGMA foreign_keys = ON")
        (version,) = self._db.execute("PRAGMA user_version").fetchone()
        if version == 0:
            self._db.executescript(f"BEGIN; {_TABLES} PRAGMA user_version = {FORMAT}; COMMIT;")
        elif version in _SINCE:
            self._db.executescript(f"BEGIN; {_SINCE[version]} PRAGMA user_version = {FORMAT}; COMMIT;")
        elif version != FORMAT:
            msg = f"{self.path} is a journal of format {version}, this version reads {FORMAT}: start with a new folder."
            raise JournalError(msg)

    def close(self) -> None:
        """Close the file and let other nodes have it."""
        with self.lock:
            self._db.close()
        self._owner.release()

    @contextmanager
    def _step(self) -> Iterator[sqlite3.Connection]:
        """One transaction, on the disk when the block has ended well."""
        with self.lock:
            self._db.execute("BEGIN IMMEDIATE")
            try:
                yield self._db
                self._db.execute("COMMIT")
            except BaseException:
                if self._db.in_transaction:
                    self._db.execute("ROLLBACK")
                raise

    def query(self, statement: str, *values: Any) -> list[sqlite3.Row]:
        """Read.

        Args:
            statement: SQL with ``?`` for values.
            *values: The values.
        """
        with self.lock:
            return self._db.execute(statement, values).fetchall()

    # Arrival

    def arrived(
        self,
        uid_sha256: str,
        digest: str,
        sender: str,
        file: str,
        state: Arrived = "received",
        reason: str | None = None,
        models: Sequence[str] = (),
    ) -> Arrival:
        """Note a film that has arrived; when this returns, the note is on the disk.

        A film whose identifier is known with other pixels is kept under a row of its own and named as failed. One that
        is known as it is counts as another arrival, and is scored again if its last scoring was given up, if it was
        ignored and is no longer, or if a model has come that has not scored it.

        Args:
            uid_sha256: Of the SOP Instance UID.
            digest: Of the pixels.
            sender: Who sent it.
            file: Name that its file has.
            state: ``"received"``, or ``"ignored"`` or ``"failed"`` with a reason.
            reason: Why.
            models: SHA-256 of the models in use.

        Raises:
            ValueError: If ``state`` is none of these.
        """
        check_choice("state", state, Arrived)
        with self._step() as db:
            row = db.execute("SELECT * FROM films WHERE uid_sha256 = ? AND digest = ?", (uid_sha256, digest)).fetchone()
            if row is not None:
                return self._again(db, row, file, state, reason, models)
            others = "SELECT 1 FROM films WHERE uid_sha256 = ? AND state <> 'ignored'"
            conflict = state != "ignored" and db.execute(others, (uid_sha256,)).fetchone() is not None
            if conflict:
                state, reason = "failed", "another film has the same SOP Instance UID and other pixels: both are kept"
            now = time.time()
            keep = None if state == "ignored" else file
            db.execute(
                "INSERT INTO films (uid_sha256, digest, state, reason, received, ended, sender, to_score, file) "
                "VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)",
                (
                    uid_sha256,
                    digest,
                    state,
                    reason,
                    now,
                    None if state == "received" else now,
                    sender,
                    state == "received",
                    keep,
                ),
            )
            return Arrival(state, True, conflict, keep is not None)

    def _again(
        self,
        db: sqlite3.Connection,
        row: sqlite3.Row,
        file: str,
        state: State,
        reason: str | None,
        models: Sequence[str],
    ) -> Arrival:
        db.execute("UPDATE films SET arrivals = arrivals + 1 WHERE id = ?", (row["id"],))
        conflict = row["state"] == "failed" and bool(
            db.execute(
                "SELECT 1 FROM films WHERE uid_sha256 = ? AND id < ? AND state <> 'ignored'",
                (row["uid_sha256"], row["id"]),
            ).fetchone()
        )
        known = {
            sha for (sha,) in db.execute("SELECT model_sha256 FROM scores WHERE film = ?", (row["id"],)).fetchall()
        }
        given_up = row["state"] == "failed" and row["next_try"] is None
        no_results = given_up and (not known or row["file"] is None)
        unscored = row["state"] == "ignored" or no_results or bool(known and set(models) - known)
        if state == "received" and unscored and not conflict and not row["to_score"]:
            db.execute(
                "UPDATE films SET state = 'received', reason = NULL, tries = 0, begun = 0, next_try = NULL, "
                "ended = NULL, to_score = 1, file = ? WHERE id = ?",
                (file, row["id"]),
            )
            return Arrival("received", False, False, True)
        if given_up and known:  # its results lie here and were not sent
            db.execute(
                "UPDATE deliveries SET tries = 0, next_try = 0 WHERE film = ? AND sent IS NULL AND next_try IS NULL",
                (row["id"],),
            )
            self._settle(db, row["id"])
        return Arrival(row["state"], False, conflict, row["file"] is not None)

    # Scoring

    def next_to_score(self, now: float | None = None) -> Film | None:
        """Take the next film, the one that was begun and failed the fewest times first.

        It is noted before it begins: a film on which the process dies does not come first again, and at last is given
        up.

        Args:
            now: Time; None takes the clock's.
        """
        now = time.time() if now is None else now
        with self._step() as db:
            row = db.execute(
                "SELECT id, uid_sha256, file, tries, begun FROM films WHERE to_score "
                "AND (next_try IS NULL OR next_try <= ? OR next_try > ?) ORDER BY begun + tries, id LIMIT 1",
                (now, now + _NEVER),
            ).fetchone()
            if row is None:
                return None
            db.execute("UPDATE films SET begun = begun + 1 WHERE id = ?", (row["id"],))
            return Film(row["id"], row["uid_sha256"], row["file"], row["tries"], row["begun"] + 1)

    def offered(self, film: int) -> set[str]:
        """Names of the results of a film that somebody has got or shall get: they stay as they are."""
        return {row[0] for row in self.query("SELECT DISTINCT object FROM deliveries WHERE film = ?", film)}

    def scored(self, film: int, scores: Sequence[Score], objects: Sequence[str], destinations: Sequence[str]) -> State:
        """Note the scores of a film whose results are on the disk, and who shall get them.

        Args:
            film: Its row.
            scores: One a model.
            objects: Names of the files of the results.
            destinations: Everybody gets all of them.

        Returns:
            ``"scored"``; ``"sent"`` if there are destinations and nothing is to be sent.
        """
        with self._step() as db:
            db.executemany(
                "INSERT OR REPLACE INTO scores VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)", [(film, *score) for score in scores]
            )
            db.executemany(
                "INSERT OR IGNORE INTO deliveries (film, object, destination, next_try) VALUES (?, ?, ?, 0)",
                [(film, name, destination) for name in objects for destination in destinations],
            )
            db.execute("UPDATE films SET to_score = 0, tries = 0, begun = 0, next_try = NULL WHERE id = ?", (film,))
            if destinations:
                return self._settle(db, film)
            db.execute("UPDATE films SET state = 'scored', reason = NULL, ended = ? WHERE id = ?", (time.time(), film))
            return "scored"

    def not_scored(self, film: int, reason: str, next_try: float | None) -> None:
        """Note that a film could not be scored.

        Args:
            film: Its row.
            reason: Why, without names.
            next_try: Time of the next try; None gives it up.
        """
        ended = None if next_try is not None else time.time()
        with self._step() as db:
            db.execute(
                "UPDATE films SET state = 'failed', reason = ?, next_try = ?, ended = ?, to_score = ?, begun = 0, "
                "tries = tries + 1 WHERE id = ?",
                (reason, next_try, ended, next_try is not None, film),
            )

    # Sending

    def due(self, destination: str, limit: int = 50, now: float | None = None) -> list[Delivery]:
        """Objects that are to be sent now.

        Args:
            destination: To whom.
            limit: At most so many.
            now: Time; None takes the clock's.
        """
        now = time.time() if now is None else now
        rows = self.query(
            "SELECT film, uid_sha256, object, destination, deliveries.tries FROM deliveries "
            "JOIN films ON films.id = film WHERE destination = ? AND sent IS NULL "
            "AND deliveries.next_try IS NOT NULL AND (deliveries.next_try <= ? OR deliveries.next_try > ?) "
            "ORDER BY film, object LIMIT ?",
            destination,
            now,
            now + _NEVER,
            limit,
        )
        return [Delivery(*row) for row in rows]

    def delivered(self, delivery: Delivery) -> State:
        """Note that an object has been taken; returns the film's state."""
        with self._step() as db:
            db.execute(
                "UPDATE deliveries SET sent = ?, reason = NULL, next_try = NULL, tries = tries + 1 "
                "WHERE film = ? AND object = ? AND destination = ?",
                (time.time(), delivery.film, delivery.object, delivery.destination),
            )
            return self._settle(db, delivery.film)

    def not_delivered(self, delivery: Delivery, reason: str, next_try: float | None) -> State:
        """Note that an object was not taken; returns the film's state.

        Args:
            delivery: Which.
            reason: Why, without names.
            next_try: Time of the next try; None gives it up.
        """
        with self._step() as db:
            db.execute(
                "UPDATE deliveries SET reason = ?, next_try = ?, tries = tries + 1 "
                "WHERE film = ? AND object = ? AND destination = ?",
                (reason, next_try, delivery.film, delivery.object, delivery.destination),
            )
            return self._settle(db, delivery.film)

    def abandon(self, destinations: Sequence[str]) -> int:
        """Give up what waits for destinations that are no longer configured.

        Args:
            destinations: Those that are.

        Returns:
            Number of objects.
        """
        marks = ", ".join("?" * len(destinations))
        lost = [
            Delivery(row["film"], "", row["object"], row["destination"], 0)
            for row in self.query(
                "SELECT film, object, destination FROM deliveries WHERE sent IS NULL AND next_try IS NOT NULL "
                f"AND destination NOT IN ({marks})",
                *destinations,
            )
        ]
        for delivery in lost:
            self.not_delivered(delivery, f"destination {delivery.destination} is no longer configured", None)
        return len(lost)

    def _settle(self, db: sqlite3.Connection, film: int) -> State:
        """Make the state of a scored film follow from its deliveries."""
        rows = db.execute(
            "SELECT destination, next_try, reason FROM deliveries WHERE film = ? AND sent IS NULL", (film,)
        ).fetchall()
        waiting = [row["next_try"] for row in rows if row["next_try"] is not None]
        reasons = sorted({f"{row['destination']}: {row['reason']}" for row in rows if row["reason"]})
        state: State = "failed" if reasons else "scored" if rows else "sent"
        db.execute(
            "UPDATE films SET state = ?, reason = ?, next_try = ?, ended = ? WHERE id = ?",
            (
                state,
                "; ".join(reasons) or None,
                min(waiting) if waiting and reasons else None,
                None if waiting else time.time(),
                film,
            ),
        )
        return state

    # Looking back

    def counts(self, since: float = 0) -> dict[State, int]:
        """Films in each state.

        Args:
            since: Received at or after this time.
        """
        found = dict.fromkeys(STATES, 0)
        rows = self.query("SELECT state, COUNT(*) FROM films WHERE received >= ? GROUP BY state", since)
        return found | {row[0]: row[1] for row in rows}

    def not_assessable(self, since: float = 0) -> int:
        """Films that a model called not assessable.

        Args:
            since: Received at or after this time.
        """
        (count,) = self.query(
            "SELECT COUNT(DISTINCT film) FROM scores JOIN films ON films.id = film "
            "WHERE not_assessable <> '' AND received >= ?",
            since,
        )[0]
        return int(count)

    def knows(self, uid_sha256: str) -> bool:
        """Whether a film of this identifier has ever arrived."""
        return bool(self.query("SELECT 1 FROM films WHERE uid_sha256 = ? LIMIT 1", uid_sha256))

    def waiting(self) -> dict[str, int]:
        """What waits: films ``"to score"``, and objects of each destination by its name."""
        (films,) = self.query("SELECT COUNT(*) FROM films WHERE to_score")[0]
        rows = self.query(
            "SELECT destination, COUNT(*) FROM deliveries WHERE sent IS NULL AND next_try IS NOT NULL "
            "GROUP BY destination"
        )
        return {"to score": films} | {row[0]: row[1] for row in rows}

    def files(self) -> Iterator[tuple[int, str]]:
        """Row and file of every film that has one."""
        yield from ((row[0], row[1]) for row in self.query("SELECT id, file FROM films WHERE file IS NOT NULL"))

    def ended_before(self, moment: float) -> list[tuple[int, str]]:
        """Row and file of films that nothing more is to happen to since a time."""
        rows = self.query(f"SELECT id, file FROM films WHERE {_AT_REST} AND ended < ?", moment)
        return [(row[0], row[1]) for row in rows]

    def forget_file(self, film: int) -> bool:
        """Note that file and results of a film are to go, unless something is to be done with them again.

        Returns:
            Whether they are to go.
        """
        with self._step() as db:
            changed = db.execute(f"UPDATE films SET file = NULL WHERE id = ? AND {_AT_REST}", (film,)).rowcount
            if changed:
                db.execute("DELETE FROM deliveries WHERE film = ?", (film,))
            return bool(changed)
