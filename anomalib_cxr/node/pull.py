"""Asks an archive for new films by DICOMweb, where the archive cannot route them."""

import io
import logging
from collections.abc import Iterator
from datetime import date, timedelta
from threading import Event, Thread
from typing import Any

from anomalib_cxr.node.configuration import Pull
from anomalib_cxr.node.dicomweb import client
from anomalib_cxr.node.intake import DiskFullError, Intake
from anomalib_cxr.node.logs import event
from anomalib_cxr.node.spool import uid_hash

#: What the sender of a fetched film is called in the journal.
SENDER = "(DICOMweb)"
_STUDY, _SERIES, _INSTANCE = "0020000D", "0020000E", "00080018"


class Puller(Thread):
    """The thread that asks one archive.

    Args:
        configuration: Which films of which service.
        intake: Takes films in.

    Raises:
        ConfigurationError: If a password or token cannot be read.
    """

    def __init__(self, configuration: Pull, intake: Intake) -> None:
        super().__init__(name=f"pull {configuration.web.url}", daemon=True)
        self.configuration, self.intake = configuration, intake
        self._client, self._stopping = client(configuration.web), Event()

    def stop(self) -> None:
        """End after the film at hand."""
        self._stopping.set()

    def run(self) -> None:
        """Ask now and then until told to stop."""
        while not self._stopping.is_set():
            try:
                self.look()
            except Exception as error:  # noqa: BLE001  # the archive is asked again, whatever it was
                event("not pulled", logging.WARNING, reason=type(error).__name__)
            self._stopping.wait(self.configuration.every_s)

    def look(self) -> int:
        """Ask once for films that the journal does not know.

        Returns:
            Number of films taken in.
        """
        taken = 0
        for study, series, film in self._new():
            if self._stopping.is_set():
                break
            try:
                # As it is stored: nothing is decoded on the way.
                data = self._client.retrieve_instance(study, series, film, media_types=(("application/dicom", "*"),))
                content = io.BytesIO()
                data.save_as(content, enforce_file_format=True)
                self.intake(content.getvalue(), film, SENDER)
                taken += 1
            except DiskFullError as error:
                event("refused", logging.ERROR, sender=SENDER, reason=error.strerror)
                break
            except Exception as error:  # noqa: BLE001  # one film must not keep the others
                event("not pulled", logging.WARNING, film=uid_hash(film), reason=type(error).__name__)
        return taken

    def _new(self) -> Iterator[tuple[str, str, str]]:
        """Study, series and instance of each film that the journal does not know."""
        given, today = self.configuration, date.today()
        # A day more, for an archive whose clock or zone is ahead.
        days = f"{today - timedelta(given.days):%Y%m%d}-{today + timedelta(1):%Y%m%d}"
        for modality in given.modality:
            for part in given.body_part or (None,):
                wanted = {"Modality": modality, "StudyDate": days} | (
                    {} if part is None else {"BodyPartExamined": part}
                )
                for series in self._client.search_for_series(search_filters=wanted, get_remaining=True):
                    study_uid, series_uid = _text(series, _STUDY), _text(series, _SERIES)
                    for film in self._client.search_for_instances(study_uid, series_uid, get_remaining=True):
                        uid = _text(film, _INSTANCE)
                        if uid and not self.intake.journal.knows(uid_hash(uid)):
                            yield study_uid, series_uid, uid


def _text(found: dict[str, Any], tag: str) -> str:
    """First value of an element in DICOM JSON."""
    return str((found.get(tag, {}).get("Value") or [""])[0])
