"""Lines of a file that may be huge, or compressed with gzip: one at a time, of bounded length."""

from __future__ import annotations

import gzip
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, cast

from placement.workload.errors import WorkloadError, at_line

MAX_LINE_BYTES = 64 << 20
GZIP_MAGIC = b"\x1f\x8b"
BAD_GZIP = (EOFError, gzip.BadGzipFile, zlib.error)


def open_trace(path: Path) -> BinaryIO:
    """The bytes, unpacked where the file is compressed (by what it holds, not by its name)."""
    try:
        file = path.open("rb")
        packed = file.peek(2)[:2] == GZIP_MAGIC  # a pipe cannot be read twice
    except OSError as error:
        raise WorkloadError(f"{path}: cannot be read: {error.strerror}") from None
    return cast(BinaryIO, gzip.GzipFile(fileobj=file, mode="rb")) if packed else file


def numbered_lines(path: Path) -> Iterator[tuple[int, str]]:
    """(line number from 1, text without its end) of every line that is not blank."""
    number = 0
    with open_trace(path) as file:
        while True:
            number += 1
            try:
                raw = file.readline(MAX_LINE_BYTES + 1)
            except BAD_GZIP as error:
                raise at_line(path, number, f"the compressed data is damaged: {error}") from None
            except OSError as error:
                raise at_line(path, number, f"cannot be read: {error.strerror}") from None
            if not raw:
                return
            if len(raw) > MAX_LINE_BYTES:
                raise at_line(path, number, f"the line is longer than {MAX_LINE_BYTES:,} bytes, which is the limit")
            try:
                text = raw.decode("utf-8-sig" if number == 1 else "utf-8").strip()
            except UnicodeDecodeError as error:
                raise at_line(path, number, f"byte {error.start} of the line is not UTF-8") from None
            if text:
                yield number, text
