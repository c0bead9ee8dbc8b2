"""Which pages of a database have been written to, told by its journal: the write-ahead log of SQLite.

A log is a header of 32 bytes and frames: 24 bytes and a page. The 24 begin with the number of the page, the size of the
database if the frame ends a commit, else 0, and the salt of the log, which is another one whenever it begins anew. See
"WAL File Format", https://www.sqlite.org/fileformat2.html#the_write_ahead_log.
"""

import os
from pathlib import Path

_HEADER_BYTES = 32
_FRAME_HEADER_BYTES = 24


class Journal:
    """Collects the pages in one database's log. For the thread that holds the writer's lock."""

    def __init__(self, path: Path, page_bytes: int) -> None:
        self._path = path
        self._frame_bytes = _FRAME_HEADER_BYTES + page_bytes
        self._salt = b""
        # Frames up to the last commit that was seen.
        self._num_seen = 0
        self._pages: set[int] | None = None

    @property
    def pages(self) -> frozenset[int] | None:
        """The pages seen since ``forget``, counted from 1. None is any page: nothing was forgotten yet."""
        return None if self._pages is None else frozenset(self._pages)

    def look(self) -> int:
        """See what was committed since the last look; how many frames there are. To be called before anything is taken
        out of the log."""
        if not self._path.exists():
            return 0
        log = os.open(self._path, os.O_RDONLY)
        try:
            salt = os.pread(log, _HEADER_BYTES, 0)[16:24]
            if salt != self._salt:
                self._salt, self._num_seen = salt, 0
            frame, pages = self._num_seen, set()
            while len(header := os.pread(log, _FRAME_HEADER_BYTES, _HEADER_BYTES + frame * self._frame_bytes)) == (
                _FRAME_HEADER_BYTES
            ) and (header[8:16] == salt):
                frame += 1
                pages.add(int.from_bytes(header[:4], "big"))
                if any(header[4:8]):
                    self._num_seen = frame
                    if self._pages is not None:
                        self._pages |= pages
                    pages = set()
        finally:
            os.close(log)
        return self._num_seen

    def forget(self) -> None:
        """From now on only what is written later counts. The log must be empty."""
        self._pages, self._salt, self._num_seen = set(), b"", 0
