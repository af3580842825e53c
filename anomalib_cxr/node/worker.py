"""Scores films one after the other, and lays their results down before it says so."""

import io
import logging
import time
from threading import Event

from anomalib_cxr.files import written_atomically
from anomalib_cxr.imaging import RadiographError, read_radiograph
from anomalib_cxr.node.arriving import look_at
from anomalib_cxr.node.configuration import Configuration
from anomalib_cxr.node.finding import Finding
from anomalib_cxr.node.journal import Film, Journal
from anomalib_cxr.node.logs import event
from anomalib_cxr.node.pictures import write_pictures
from anomalib_cxr.node.results import MAKERS
from anomalib_cxr.node.shelf import Shelf
from anomalib_cxr.node.spool import Spool
from anomalib_cxr.node.working import Working

#: Scorings of a film on which the process may die before it is given up.
DEATHS = 8


class NotAssessableError(ValueError):
    """A film that no try will score."""


class Worker(Working):
    """The thread that scores.

    Args:
        configuration: Of the node.
        journal: Its journal.
        spool: Its files.
        shelf: Its models.
        done: Called when results are to be sent.

    Attributes:
        wake: Set when a film has arrived.
    """

    def __init__(
        self, configuration: Configuration, journal: Journal, spool: Spool, shelf: Shelf, done: "Event | None" = None
    ) -> None:
        super().__init__("worker", "worker")
        self.configuration, self.journal, self.spool, self.shelf = configuration, journal, spool, shelf
        self._done = done or Event()

    def work(self) -> bool:
        """Score the next film; returns whether there was one."""
        film = self.journal.next_to_score()
        if film is None:
            return False
        if film.begun > DEATHS:
            self._give_up(film, f"the process ended {DEATHS} times while it was scored")
            return True
        started = time.perf_counter()
        try:
            findings, objects = self._score(film)
        except NotAssessableError as error:
            self._give_up(film, str(error))
        except Exception as error:  # noqa: BLE001  # one film must not end the others
            reason = f"scoring ended with {type(error).__name__}"
            retry, tries = self.configuration.retry, film.tries + 1
            if tries >= retry.tries:
                self._give_up(film, reason)
            else:
                pause = retry.pause(tries)
                self.journal.not_scored(film.id, reason, time.time() + pause)
                event("not scored", logging.WARNING, film=film.uid_sha256, reason=reason, pause_s=pause)
        else:
            destinations = [one.name for one in self.configuration.destinations]
            state = self.journal.scored(film.id, [finding.score for finding in findings], objects, destinations)
            event("scored", film=film.uid_sha256, state=state, seconds=round(time.perf_counter() - started, 3),
                  scores={finding.model.name: round(finding.prediction.score, 6) for finding in findings},
                  not_assessable={finding.model.name: finding.verdict.not_assessable for finding in findings
                                  if finding.verdict.not_assessable})  # fmt: skip
            self._done.set()
        return True

    def _give_up(self, film: Film, reason: str) -> None:
        self.journal.not_scored(film.id, reason, None)
        event("failed", logging.WARNING, film=film.uid_sha256, reason=reason)

    def _score(self, film: Film) -> tuple[list[Finding], list[str]]:
        """Findings, and the names of the objects that lie on the disk."""
        path = self.spool.film(film.file)
        try:
            image = read_radiograph(path)
            header = look_at(path.read_bytes()).header
        except RadiographError as error:
            # Without the path, which says nothing to anybody.
            raise NotAssessableError(str(error).replace(str(path), "the film")) from error
        except ValueError as error:
            raise NotAssessableError(str(error)) from error
        folder, offered = self.spool.results_of(film.file), self.journal.offered(film.id)
        findings, objects = [], []
        for model in self.shelf.models:
            try:
                (prediction,) = model.detector.predict([image])
            except ValueError as error:
                msg = f"{model.name}: the model's score or heat map is not finite"
                raise NotAssessableError(msg) from error
            verdict = model.judge(prediction.score, prediction.abnormal, prediction.assessment)
            finding = Finding(path, header, image, model, prediction, verdict)
            findings.append(finding)
            for kind in self.configuration.results:
                path_of_result = folder / f"{kind}-{model.sha256[:16]}.dcm"
                name = path_of_result.relative_to(self.spool.results).as_posix()
                # What was sent once under an identifier is never another object.
                made = None if name in offered else MAKERS[kind](finding)
                if made is not None:
                    content = io.BytesIO()
                    made.save_as(content, enforce_file_format=True)
                    with written_atomically(path_of_result, durable=True) as temporary:
                        temporary.write_bytes(content.getvalue())
                    objects.append(name)
            write_pictures(finding, folder)  # for the page: they wait for no disk
        return findings, objects
