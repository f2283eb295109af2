"""What goes wrong, as one kind of exception."""

import errno as errno_numbers
import os


class VFIOError(OSError):
    """An operation that failed: `errno` as the kernel's ioctl would set it, and which operation."""

    def __init__(self, errno: int, operation: str) -> None:
        super().__init__(errno, f"{operation}: {os.strerror(errno)}")
        self.operation = operation


class Disconnected(VFIOError):
    """The server closed the connection, or sent something that isn't the protocol."""

    def __init__(self, operation: str) -> None:
        super().__init__(errno_numbers.ECONNRESET, operation)
