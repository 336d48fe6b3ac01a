"""RunningMetadata: the metadata of one attempt, between its body and the part that saves them."""

from contextlib import suppress
from threading import Lock
from time import monotonic
from typing import Any, Protocol
from uuid import UUID

from .progress import KEY, Meter, Report
from .values import (
    MAX_SIZE,
    Metadata,
    changed,
    check_size,
    dump_metadata,
    dump_row,
    public,
    read_row,
)

__all__ = ["INTERVAL", "RunningMetadata", "Saves"]

# Seconds between two saves of the same task, at least.
INTERVAL = 0.1

# Bytes that an attempt may add to a row that other code has made larger than MAX_SIZE: its progress.
ROOM = 4096


class Saves(Protocol):
    """The part that saves the metadata of running attempts."""

    def save_soon(self, metadata: "RunningMetadata") -> None:
        """Save what ``metadata.begin()`` finds to be new. May be called in any thread."""


class RunningMetadata:
    """The metadata of one attempt.

    The body's side, in any thread, but one at a time: ``values``, ``save()`` and ``progress()``, which mostly
    only notes its arguments: the saver looks at them an INTERVAL after each save.

    The saver's side, in one thread, which may be another one: ``begin()`` merges what the body has changed
    since the last save into the row as it was ``seen`` last; then ``text`` is to be written, if the row still
    is as it was seen. ``written()``, ``refused()`` or ``perhaps_written()`` says what became of it.

    id, claim_id: the row's, which is to be written under that claim alone. seen, text: JSON; None: NULL.
    """

    __slots__ = (
        "_asked",
        "_closed",
        "_due",
        "_in_values",
        "_in_wanted",
        "_is_refused",
        "_latest",
        "_limit",
        "_lock",
        "_meter",
        "_row",
        "_saved",
        "_saves",
        "_shown",
        "_unsure",
        "_values",
        "_wanted",
        "_writing",
        "claim_id",
        "id",
        "seen",
        "settled",
        "text",
    )

    def __init__(self, id: UUID, claim_id: UUID | None, seen: str | None, saves: Saves) -> None:
        self.id = id
        self.claim_id = claim_id
        self.seen = seen
        self.text: str | None = None
        self.settled = False  # for the saver: the last state is written, or never will be
        self._saves = saves
        size = len(seen or "")
        self._limit = MAX_SIZE if size <= MAX_SIZE else size + ROOM
        self._lock = Lock()  # for what both sides write: the meter, and what is wanted
        self._asked = False  # the saver was asked, and hasn't begun
        self._closed = False
        # Of the body.
        self._values: Metadata | None = None  # None: it hasn't asked for them
        self._due = 0.0  # when progress() saves again, by time.monotonic()
        self._latest: Report | None = None
        self._in_values: Report | None = None  # the report that the values have
        # Of both.
        self._meter: Meter | None = None
        self._shown: tuple[Report, dict[str, Any]] | None = None  # by the meter, of the last report
        self._wanted: Metadata | None = None  # the body's values at its last save()
        self._in_wanted: Report | None = None
        # Of the saver.
        self._row: Metadata = {}  # of ``seen``
        self._saved: Metadata = {}  # the body's values that ``seen`` has
        self._writing: tuple[Metadata, Metadata] | None = None  # the body's values, and the row, of ``text``
        self._is_refused = False  # the last state couldn't be written, which was raised
        self._unsure: list[Metadata] = []  # the body's values that tries may have written since ``seen``

    # --- The body's side

    @property
    def values(self) -> Metadata:
        """The body's values, which it changes in place. Raises InvalidRow."""
        values = self._own_values()
        with suppress(TypeError, ValueError):  # of a report that was only noted
            self._show_latest(values)
        return values

    def own(self, key: str) -> Any:
        """The value of one of the keys that are aiotasks' own; None without it. Raises InvalidRow."""
        self._own_values()
        return self._row.get(key)

    def _own_values(self) -> Metadata:
        if self._values is None:
            self._row = read_row(self.seen, self.id)
            self._saved = public(self._row)
            self._values = public(read_row(self.seen, self.id))  # shares nothing with those
        return self._values

    def _show_latest(self, values: Metadata) -> None:
        """Have the latest report in the values. Raises TypeError or ValueError for a bad one."""
        latest = self._latest
        if latest is not None and latest is not self._in_values:
            with self._lock:
                values[KEY] = dict(self._show(latest))  # the body may change it
            self._in_values = latest

    def save(self) -> None:
        """Have the values saved soon. Raises TypeError or ValueError if they can't be.

        Does nothing once the attempt has ended: its last state is taken.
        """
        if not self._closed:
            self._take()
            if not self._asked:
                self._asked = True
                self._saves.save_soon(self)

    def progress(self, done: Any, total: Any, message: Any) -> None:
        """Note a progress, and save it soon: at the latest an INTERVAL later, or with the attempt's end.

        Raises TypeError or ValueError for a bad one that isn't only noted.
        """
        now = monotonic()
        self._latest = (done, total, message, now)
        if now >= self._due:
            self._due = now + INTERVAL
            if not self._closed:
                self._show_latest(self._own_values())
            self.save()

    def current(self) -> str | None:
        """Return the text of the row as it would be saved now; as it is if the values can't be saved."""
        if self.is_untouched:
            return self.seen
        try:
            values, _ = dump_metadata(self.values, self._limit)
            return dump_row(changed(self._row, self._saved, values))
        except Exception:  # whatever values the body has put there  # noqa: BLE001
            return self.seen

    def _take(self) -> None:
        values = self.values
        plain, _ = dump_metadata(values, self._limit)
        with self._lock:
            self._wanted, self._in_wanted = plain, self._in_values

    def _show(self, report: Report) -> dict[str, Any]:
        """The metadata of a report. A bad one is forgotten: it must keep nothing else from being saved."""
        if self._shown is None or self._shown[0] is not report:
            if self._meter is None:
                self._meter = Meter()
            try:
                self._shown = report, self._meter.show(report)
            except (TypeError, ValueError):
                if self._latest is report:
                    self._latest = self._in_values
                raise
        return self._shown[1]

    # --- The saver's side

    @property
    def is_untouched(self) -> bool:
        """Whether the body hasn't asked for them."""
        return self._values is None and self._latest is None

    def begin(self) -> bool:
        """Set ``text`` to what is to be written; False if all is written, or can't be.

        Raises ValueError or RecursionError, once, if with what others have written it is too large, or nested
        too deep.
        """
        self._asked = False  # before the look: what comes from now on asks again
        if self._values is None:  # the row can't be read
            return False
        with self._lock:
            latest = self._latest
            if latest is not None and latest is not self._in_wanted:
                wanted = self._saved if self._wanted is None else self._wanted
                with suppress(TypeError, ValueError):
                    self._wanted = {**wanted, KEY: self._show(latest)}
                    self._in_wanted = latest
            new = self._wanted
        if new is None or (new is self._saved and not self._unsure):
            return False
        try:
            row = changed(self._row, self._saved, new)
            for before in self._unsure:
                row = changed(row, before, new)
            text = dump_row(row)
            check_size(text, self.seen, self.id, self._limit)
        except (ValueError, RecursionError):
            if self._is_refused:
                return False
            self._is_refused = True
            raise
        self._is_refused = False
        if row is self._row and not self._unsure:
            self._saved = new
            return False
        self.text = text
        self._writing = new, row
        return True

    def written(self) -> None:
        """The row has ``text``."""
        self.seen = self.text
        self._unsure.clear()
        if self._writing is not None:
            self._saved, self._row = self._writing

    def perhaps_written(self) -> None:
        """A try to write ``text`` has failed, and the row may have it all the same."""
        if self._writing is not None and all(self._writing[0] is not values for values in self._unsure):
            self._unsure.append(self._writing[0])

    def refused(self, there: str | None) -> None:
        """The row has ``there``, which others have written. Raises InvalidRow if that can't be merged."""
        if self._unsure and there == self.text:
            self.written()
            return
        self._row = read_row(there, self.id)
        self.seen = there

    def close(self) -> Exception | None:
        """Take the body's last state: the attempt has ended. What the body still does is ignored.

        Returns the error if it can't be saved: then that of the last save() counts, with the latest progress.
        """
        if self._closed:
            return None
        self._closed = True
        try:
            self._take()
        except Exception as error:  # the body may change them at this moment, in a thread  # noqa: BLE001
            return error
        return None
