"""An object of VFIO's, which is a descriptor."""

from types import TracebackType
from typing import TypeVar

from .connection import Connection

Self = TypeVar("Self", bound="Handle")


class Handle:
    """A connection with the operations of one kind of object."""

    def __init__(self, connection: Connection) -> None:
        self.connection = connection

    def fileno(self) -> int:
        return self.connection.fileno()

    @property
    def closed(self) -> bool:
        return self.connection.closed

    def close(self) -> None:
        self.connection.close()

    def __enter__(self: Self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
