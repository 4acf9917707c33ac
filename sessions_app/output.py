"""What a command prints: a head and a tail in memory, all of it in a file when it is long."""

from __future__ import annotations

import codecs
import io
import tempfile
from typing import BinaryIO

from .events import HEAD_BYTES, TAIL_BYTES, Output

INLINE_BYTES = 64 * 1024
MOST_BYTES = 1024**3


class Capture:
    """Collects output in constant memory.

    Up to `INLINE_BYTES` it is kept whole. Beyond, the event keeps a head and a tail, and `whole`
    is the file that an artifact is made of, cut at `MOST_BYTES`.
    """

    def __init__(self) -> None:
        self.size = 0
        self._start = bytearray()
        self._tail = bytearray()
        self._file: BinaryIO | None = None

    def feed(self, chunk: bytes) -> None:
        self._tail += chunk
        del self._tail[:-TAIL_BYTES]
        if self._file is None and self.size + len(chunk) <= INLINE_BYTES:
            self._start += chunk
        elif self.size < MOST_BYTES:
            if self._file is None:
                self._file = tempfile.TemporaryFile()  # noqa: SIM115
                self._file.write(self._start)
                self._start += chunk[: HEAD_BYTES - min(HEAD_BYTES, len(self._start))]
                del self._start[HEAD_BYTES:]
            self._file.write(chunk[: MOST_BYTES - self.size])
        self.size += len(chunk)

    @property
    def whole(self) -> BinaryIO | None:
        """The file with everything, at its beginning; None when the event shows it all."""
        if self._file is not None:
            self._file.seek(0)
            return self._file
        return io.BytesIO(self._start) if self._binary else None

    @property
    def _binary(self) -> bool:
        return b"\x00" in self._start

    def close(self) -> None:
        if self._file is not None:
            self._file.close()

    def tail(self) -> str:
        """The last lines, for the live view."""
        return text_of(bytes(self._tail))

    def output(self, artifact_id: str | None = None) -> Output:
        """What the event says of it."""
        if self._binary:
            note = "The output is binary and is not shown."
            return Output(size=self.size, binary=True, artifact_id=artifact_id, note=note)
        if self._file is None:
            return Output(head=text_of(bytes(self._start)), size=self.size)
        note = ""
        if self.size > MOST_BYTES:
            note = f"The file holds the first {MOST_BYTES} bytes only."
        return Output(
            head=text_of(bytes(self._start)),
            tail=text_of(bytes(self._tail)),
            size=self.size,
            artifact_id=artifact_id,
            note=note,
        )


def text_of(raw: bytes) -> str:
    """Decode output; a character cut in two at either end is dropped, other faults are shown."""
    start = 0
    while start < min(3, len(raw)) and raw[start] & 0xC0 == 0x80:
        start += 1
    decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
    return decoder.decode(raw[start:], final=False)
