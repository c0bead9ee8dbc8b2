"""What SQLite leaves in its file of rows that are gone: stale bytes in the unused middle of pages.

``secure_delete`` overwrites deleted cells and pages that become free. But where pages are balanced, cells move to a
neighbour and the page they stood on is rebuilt from its end, without overwriting what is no longer used of its
middle (``rebuildPage`` of SQLite's btree.c). The unused middle is never read, so it can be overwritten in place.
"""

import os
from collections.abc import Collection

CHUNK_BYTES = 1 << 20  # Fits the caches, where the pages are looked at once more.
_FILE_HEADER_BYTES = 100
_HEADER_BYTES = {2: 12, 5: 12, 10: 8, 13: 8}  # of a page, by its kind: interior and leaf pages of indexes and tables
# Pages that are no part of a tree begin with the number of another page, whose first byte is a kind's from here on.
_MOST_PAGES = 2 << 24


def scrub(descriptor: int, pages: Collection[int] | None = None) -> int:
    """Overwrite with zeros what pages of the database do not use, durably; how many pages had anything there.

    ``pages`` are the numbers, from 1, of those to look at: all that were written to since the file was scrubbed. None
    is every page. Meanwhile nobody may write to the database, its journal must be empty, and connections that write
    later must not have pages in their caches. See "Database File Format", 1.6,
    https://www.sqlite.org/fileformat2.html.

    Raises:
        ValueError: the file is of a layout in which unused bytes cannot be told.
    """
    header = os.pread(descriptor, _FILE_HEADER_BYTES, 0)
    page_bytes = int.from_bytes(header[16:18], "big")
    page_bytes = 1 << 16 if page_bytes == 1 else page_bytes
    num_bytes = os.fstat(descriptor).st_size
    if any(header[52:56]) or num_bytes >= _MOST_PAGES * page_bytes:
        raise ValueError(f"a database of {num_bytes} bytes with pointer map {header[52:56].hex()} cannot be scrubbed")
    num_scrubbed, zeros = 0, bytes(page_bytes)
    if pages is None:
        chunks = [(first, CHUNK_BYTES) for first in range(0, num_bytes, CHUNK_BYTES)]
    else:
        chunks = [
            ((page - 1) * page_bytes, page_bytes) for page in sorted(pages) if 0 < page <= num_bytes // page_bytes
        ]
    for first, length in chunks:
        chunk = os.pread(descriptor, length, first)
        for page in range(0, len(chunk), page_bytes):
            head = page + _FILE_HEADER_BYTES if first + page == 0 else page
            if (header_bytes := _HEADER_BYTES.get(chunk[head])) is None:
                continue
            start = head + header_bytes + 2 * int.from_bytes(chunk[head + 3 : head + 5], "big")
            end = page + (int.from_bytes(chunk[head + 5 : head + 7], "big") or 1 << 16)
            if start < end and chunk[start:end] != zeros[: end - start]:
                os.pwrite(descriptor, zeros[: end - start], first + start)
                num_scrubbed += 1
    if num_scrubbed:
        os.fsync(descriptor)
    return num_scrubbed
