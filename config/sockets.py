"""Daphne's sockets, held to what a page may ask of a server."""

from __future__ import annotations

from typing import Any

from daphne.ws_protocol import WebSocketProtocol

from sessions_app.readers import OUT_OF_STEP

MOST_WAITING = 200
LONGEST_REASON = 123


class Socket(WebSocketProtocol):
    """One page's socket: short messages, few at a time, and closed with any code and its reason."""

    def onMessage(self, payload: bytes, isBinary: bool) -> None:  # noqa: N802, N803
        # What comes in is queued without end; a flood would outrun whoever works the queue off.
        if self.state != self.STATE_OPEN:
            return
        if self.application_queue.qsize() >= MOST_WAITING:
            self._close(OUT_OF_STEP, "Too many messages at once.")
        else:
            super().onMessage(payload, isBinary)

    def serverSend(self, content: Any, binary: bool = False) -> None:  # noqa: N802
        """Send whatever its length: the limit that is set is for what comes in."""
        if self.state != self.STATE_OPEN:
            raise ConnectionError("The socket is closed.")
        payload = content if binary else content.encode()
        self.sendFrame(opcode=2 if binary else 1, payload=payload)

    def handle_reply(self, message: dict[str, Any]) -> None:
        if message["type"] == "websocket.close" and self.state == self.STATE_OPEN:
            self._close(message.get("code") or 1000, message.get("reason") or "")
        else:
            super().handle_reply(message)

    def _close(self, code: int, reason: str) -> None:
        # Daphne's own way refuses the codes that ask to come back, and drops the reason. A peer
        # that does not answer is cut off a second later, with what it has not read.
        cut = reason.encode()[:LONGEST_REASON].decode(errors="ignore")
        self.sendCloseFrame(code=code, reasonUtf8=cut.encode())
