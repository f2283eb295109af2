"""Memory that a device reaches by DMA: a memfd that client and server both map."""

import mmap
import os
from collections.abc import Callable
from types import TracebackType

from .connection import Descriptor


class Memory:
    """`size` zero bytes of shared memory (a memfd); slices read and write them."""

    def __init__(self, size: int) -> None:
        self._descriptor = Descriptor(os.memfd_create("vfiod-client", os.MFD_CLOEXEC))
        try:
            os.ftruncate(self._descriptor.fileno(), size)
            self.view = mmap.mmap(self._descriptor.fileno(), size)
        except BaseException:
            self._descriptor.close()
            raise
        self.size = size

    def __getitem__(self, place: slice) -> bytes:
        return self.view[place]

    def __setitem__(self, place: slice, data: bytes) -> None:
        self.view[place] = data

    def fileno(self) -> int:
        return self._descriptor.fileno()

    def close(self) -> None:
        self.view.close()
        self._descriptor.close()

    def __enter__(self) -> "Memory":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class DMAMemory:
    """Shared memory mapped for DMA at `iova`. Closing it unmaps it.

    Slices count from the mapping's first byte: `memory[0:4]` is what the device finds at `iova`.
    """

    def __init__(
        self, memory: Memory, owned: bool, offset: int, iova: int, size: int, unmap: Callable[[], None]
    ) -> None:
        self.memory = memory
        self.offset = offset
        self.iova = iova
        self.size = size
        self._owned = owned
        self._unmap: Callable[[], None] | None = unmap

    def __getitem__(self, place: slice) -> bytes:
        return self.memory[self._place(place)]

    def __setitem__(self, place: slice, data: bytes) -> None:
        self.memory[self._place(place)] = data

    def _place(self, place: slice) -> slice:
        start, stop, step = place.indices(self.size)
        return slice(self.offset + start, self.offset + stop, step)

    def unmap(self) -> None:
        """Takes the mapping away from the device; the memory stays until `close`."""
        unmap, self._unmap = self._unmap, None
        if unmap is not None:
            unmap()

    def close(self) -> None:
        try:
            self.unmap()
        finally:
            if self._owned:
                self.memory.close()

    def __enter__(self) -> "DMAMemory":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
