"""One socket: messages out, messages in, descriptors with them.

Requests may be pipelined: `submit` sends one and returns at once, `Pending.result` waits for its
reply. Replies come in the order of the requests. Not safe for use by several threads at a time.
"""

import array
import os
import select
import socket
import struct
import time
import warnings
from collections import deque
from collections.abc import Callable, Sequence
from types import TracebackType
from typing import Any, Generic, NamedTuple, Protocol, TypeVar

from . import wire
from .errors import Disconnected, VFIOError

T = TypeVar("T")
MAX_DESCRIPTORS = 253
"""What Linux passes in one message at most (SCM_MAX_FD)."""


class HasFileno(Protocol):
    """A file, socket, `Descriptor` or anything else with a descriptor."""

    def fileno(self) -> int: ...


def fileno(descriptor: int | HasFileno) -> int:
    return descriptor if isinstance(descriptor, int) else descriptor.fileno()


class Descriptor:
    """A file descriptor with an owner: closed by `close`, at the end of `with`, or with a warning."""

    def __init__(self, number: int) -> None:
        self._number = number

    def fileno(self) -> int:
        if self._number < 0:
            raise ValueError("descriptor is closed")
        return self._number

    def detach(self) -> int:
        """Gives up ownership: the caller closes the number."""
        number, self._number = self.fileno(), -1
        return number

    def close(self) -> None:
        if self._number >= 0:
            os.close(self.detach())

    def __enter__(self) -> "Descriptor":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __del__(self) -> None:
        if getattr(self, "_number", -1) >= 0:
            warnings.warn(f"unclosed descriptor {self._number}", ResourceWarning, source=self)
            self.close()


class Message(NamedTuple):
    """A message as it came. Its descriptors belong to whoever has the message."""

    header: wire.Header
    payload: bytes
    descriptors: list[Descriptor]

    def close(self) -> None:
        """Closes what nobody has taken."""
        while self.descriptors:
            self.descriptors.pop().close()

    def take(self, operation: str) -> Descriptor:
        """The one descriptor that the reply must have brought."""
        if not self.descriptors:
            raise Disconnected(f"{operation}: reply without a descriptor")
        descriptor = self.descriptors.pop(0)
        self.close()
        return descriptor


class Pending(Generic[T]):
    """A request that was sent; `result` waits for its reply and reads it."""

    def __init__(
        self, connection: "Connection", id: int, command: int, decode: Callable[[Message], T]
    ) -> None:
        self._connection = connection
        self.id = id
        self.command = command
        self._decode = decode
        self.reply: Message | None = None

    def result(self) -> T:
        """Raises `VFIOError` with the errno of an error reply."""
        while self.reply is None:
            self._connection.collect()
        header = self.reply.header
        if header.flags & wire.FLAG_ERROR:
            self.reply.close()
            raise VFIOError(header.error, wire.name(self.command))
        return self._decode(self.reply)


def unpack(layout: struct.Struct, payload: bytes) -> tuple[Any, ...]:
    """The structure that a reply begins with."""
    if len(payload) < layout.size:
        raise Disconnected(f"reply of {len(payload)} bytes instead of {layout.size}")
    return layout.unpack_from(payload)


def _payload(reply: Message) -> bytes:
    reply.close()
    return reply.payload


class Connection:
    """Owns a connected Unix stream socket.

    `timeout` bounds each wait in seconds (None: for ever) and raises `TimeoutError`. `on_command`
    answers what the server asks of the client (DMA_READ, DMA_WRITE) while the client waits for replies.
    """

    def __init__(self, sock: socket.socket, timeout: float | None = None) -> None:
        self._socket = sock
        self.timeout = timeout
        self.on_command: Callable[[Message], None] | None = None
        self._next_id = 0
        self._waiting: deque[Pending[object]] = deque()
        self._inbox: deque[Message] = deque()
        # The message whose beginning has come: its bytes so far, and its descriptors.
        self._partial = bytearray()
        self._partial_descriptors: list[Descriptor] = []

    @classmethod
    def open(cls, path: str | os.PathLike[str], timeout: float | None = None) -> "Connection":
        """Connects to the socket at `path`."""
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
        try:
            sock.connect(os.fspath(path))
        except BaseException:
            sock.close()
            raise
        return cls(sock, timeout)

    @classmethod
    def adopt(cls, descriptor: Descriptor | int, timeout: float | None = None) -> "Connection":
        """Takes over a descriptor that the server, or another process, has handed out."""
        number = descriptor if isinstance(descriptor, int) else descriptor.detach()
        return cls(socket.socket(fileno=number), timeout)

    # Requests and replies

    def request(
        self, command: int, payload: bytes = b"", descriptors: Sequence[int | HasFileno] = ()
    ) -> Message:
        """Sends a request and waits for its reply, whose descriptors the caller takes over."""
        return self.submit(command, payload, descriptors, decode=lambda reply: reply).result()

    def call(
        self, command: int, payload: bytes = b"", descriptors: Sequence[int | HasFileno] = ()
    ) -> bytes:
        """Sends a request and waits for its reply's payload."""
        return self.submit(command, payload, descriptors, decode=_payload).result()

    def submit(
        self,
        command: int,
        payload: bytes,
        descriptors: Sequence[int | HasFileno],
        decode: Callable[[Message], T],
    ) -> Pending[T]:
        """Sends a request and returns at once; several may be on their way."""
        pending = Pending(self, self._new_id(), command, decode)
        self.send_raw(_message(pending.id, command, payload, 0), descriptors)
        self._waiting.append(pending)  # type: ignore[arg-type]
        return pending

    def post(
        self, command: int, payload: bytes = b"", descriptors: Sequence[int | HasFileno] = ()
    ) -> None:
        """Sends a request with No_reply: nothing comes back, not even an error."""
        self.send_raw(_message(self._new_id(), command, payload, wire.FLAG_NO_REPLY), descriptors)

    def collect(self) -> None:
        """Receives one message: the reply to the oldest request, or a command for `on_command`."""
        message = self.receive()
        if message.header.flags & wire.TYPE_MASK == wire.TYPE_COMMAND:
            if self.on_command is None:
                message.close()
            else:
                self.on_command(message)
            return
        if not self._waiting:
            message.close()
            raise Disconnected(f"reply {message.header.id} without a request")
        pending = self._waiting.popleft()
        if (message.header.id, message.header.command) != (pending.id, pending.command):
            message.close()
            raise Disconnected(f"{wire.name(pending.command)}: reply to another request")
        pending.reply = message

    def serve(self, until: HasFileno, timeout: float | None = None) -> None:
        """Collects messages until another descriptor is readable, or `timeout` s have passed."""
        deadline = None if timeout is None else time.monotonic() + timeout
        poll = select.poll()
        for descriptor in (until, self):
            poll.register(descriptor.fileno(), select.POLLIN)
        while True:
            while self._inbox:
                self.collect()
            left = None if deadline is None else max(0.0, deadline - time.monotonic()) * 1000
            ready = [number for number, _ in poll.poll(left)]
            if until.fileno() in ready or not ready:
                return
            self.collect()

    def reply(self, request: Message, payload: bytes = b"", error: int = 0) -> None:
        """Answers a command of the server's."""
        flags = wire.TYPE_REPLY | (wire.FLAG_ERROR if error else 0)
        self.send_raw(_message(request.header.id, request.header.command, payload, flags, error))

    def _new_id(self) -> int:
        self._next_id = (self._next_id + 1) & 0xFFFF
        return self._next_id

    # Bytes

    def send_raw(self, data: bytes, descriptors: Sequence[int | HasFileno] = ()) -> None:
        """Sends bytes as they are; descriptors go with the first of them.

        While the server takes no more, replies are received, so that two full sockets never wait
        for each other.
        """
        view = memoryview(data)
        ancillary: list[tuple[int, int, bytes]] = []
        if descriptors:
            numbers = array.array("i", [fileno(descriptor) for descriptor in descriptors])
            ancillary = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, numbers.tobytes())]
        deadline = self._deadline()
        while view:
            try:
                flags = socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL
                sent = self._socket.sendmsg([view], ancillary, flags)
            except BlockingIOError:
                if self._wait(select.POLLIN | select.POLLOUT, deadline) & select.POLLIN:
                    if (message := self._read_some()) is not None:
                        self._inbox.append(message)
                continue
            except (BrokenPipeError, ConnectionResetError):
                raise Disconnected("send") from None
            view, ancillary = view[sent:], []

    def receive(self) -> Message:
        """The next message, whatever it is. Raises `Disconnected` at the stream's end."""
        deadline = self._deadline()
        while not self._inbox:
            self._wait(select.POLLIN, deadline)
            if (message := self._read_some()) is not None:
                self._inbox.append(message)
        return self._inbox.popleft()

    def _read_some(self) -> Message | None:
        """Takes what has arrived of one message, never of the next: so descriptors, which come with
        a message's first byte, need no sorting. Returns the message once it is whole."""
        have = len(self._partial)
        if have < wire.HEADER.size:
            wanted = wire.HEADER.size - have
        else:
            wanted = wire.HEADER.unpack_from(self._partial)[2] - have
        if wanted > 0:
            space = socket.CMSG_SPACE(MAX_DESCRIPTORS * 4)
            flags = socket.MSG_DONTWAIT | socket.MSG_CMSG_CLOEXEC
            try:
                data, ancillary, _, _ = self._socket.recvmsg(min(wanted, 1 << 20), space, flags)
            except BlockingIOError:
                return None
            except ConnectionResetError:
                raise Disconnected("receive") from None
            for level, kind, content in ancillary:
                if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
                    numbers = array.array("i", content[: len(content) // 4 * 4])
                    self._partial_descriptors += [Descriptor(number) for number in numbers]
            if not data:
                raise Disconnected("receive")
            self._partial += data
        if len(self._partial) < wire.HEADER.size:
            return None
        header = wire.Header(*wire.HEADER.unpack_from(self._partial))
        if header.size < wire.HEADER.size:
            raise Disconnected(f"{wire.name(header.command)}: reply of {header.size} bytes")
        if len(self._partial) < header.size:
            return None
        message = Message(header, bytes(self._partial[wire.HEADER.size :]), self._partial_descriptors)
        self._partial, self._partial_descriptors = bytearray(), []
        return message

    def _deadline(self) -> float | None:
        return None if self.timeout is None else time.monotonic() + self.timeout

    def _wait(self, events: int, deadline: float | None) -> int:
        poll = select.poll()
        poll.register(self._socket, events)
        milliseconds = None if deadline is None else max(0.0, deadline - time.monotonic()) * 1000
        ready = poll.poll(milliseconds)
        if not ready:
            raise TimeoutError("the server didn't answer in time")
        return ready[0][1]

    # Ownership

    def fileno(self) -> int:
        return self._socket.fileno()

    @property
    def closed(self) -> bool:
        return self._socket.fileno() < 0

    def close(self) -> None:
        self._socket.close()
        messages = [*self._inbox, *(p.reply for p in self._waiting if p.reply is not None)]
        for message in messages:
            message.close()
        self._inbox.clear()
        self._waiting.clear()
        while self._partial_descriptors:
            self._partial_descriptors.pop().close()

    def __enter__(self) -> "Connection":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _message(id: int, command: int, payload: bytes, flags: int, error: int = 0) -> bytes:
    return wire.HEADER.pack(id, command, wire.HEADER.size + len(payload), flags, error) + payload


def negotiate(connection: Connection) -> wire.Version:
    """VERSION: proposes what this client can do, and returns what the server said."""
    proposal = wire.Version(
        wire.MAJOR,
        wire.MINOR,
        {
            "max_msg_fds": 16,
            "max_data_xfer_size": wire.DEFAULT_MAX_DATA_XFER_SIZE,
            "max_dma_maps": 65535,
            "pgsizes": 4096,
            "write_multiple": True,
        },
    )
    return wire.Version.unpack(connection.call(wire.Command.VERSION, proposal.pack()))
