"""An eventfd, which the server signals when a device interrupts."""

import os
import select
from types import TracebackType

from .connection import Descriptor


class EventFD:
    """A counter that one process signals and another waits for: a new one, or one that came."""

    def __init__(self, descriptor: Descriptor | None = None) -> None:
        self._descriptor = descriptor or Descriptor(os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK))

    def wait(self, timeout: float | None = None) -> int:
        """Waits until it was signalled; returns how often since the last look, 0 after `timeout` s."""
        poll = select.poll()
        poll.register(self.fileno(), select.POLLIN)
        poll.poll(None if timeout is None else timeout * 1000)
        return self.count()

    def count(self) -> int:
        """How often it was signalled since the last look; doesn't wait."""
        try:
            return os.eventfd_read(self.fileno())
        except BlockingIOError:
            return 0

    def signal(self) -> None:
        os.eventfd_write(self.fileno(), 1)

    def fileno(self) -> int:
        return self._descriptor.fileno()

    def close(self) -> None:
        self._descriptor.close()

    def __enter__(self) -> "EventFD":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
