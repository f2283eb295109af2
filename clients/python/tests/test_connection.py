"""The client's connection, against a peer in this process instead of a server."""

import errno
import os
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator

import pytest
from support import TIMEOUT, refused

import vfiod
from vfiod import wire

Pair = tuple[vfiod.Connection, socket.socket]


@pytest.fixture
def pair() -> Iterator[Pair]:
    ours, theirs = socket.socketpair()
    with vfiod.Connection(ours, TIMEOUT) as connection, theirs:
        yield connection, theirs


def reply(id: int, command: int, payload: bytes = b"", error: int = 0) -> bytes:
    flags = wire.TYPE_REPLY | (wire.FLAG_ERROR if error else 0)
    return wire.HEADER.pack(id, command, 16 + len(payload), flags, error) + payload


def submit(connection: vfiod.Connection, command: int = 9) -> vfiod.Pending[bytes]:
    return connection.submit(command, b"", (), lambda message: message.payload)


def test_an_error_reply_is_an_exception_with_errno_and_operation(pair: Pair) -> None:
    connection, peer = pair
    peer.send(reply(1, 0x3B66, error=errno.EBUSY))
    with pytest.raises(vfiod.VFIOError) as caught:
        connection.call(0x3B66)
    assert caught.value.errno == errno.EBUSY
    assert caught.value.operation == "SET_IOMMU"
    assert str(caught.value) == "[Errno 16] SET_IOMMU: Device or resource busy"
    assert isinstance(caught.value, OSError)


def test_pipelined_requests_get_their_own_replies(pair: Pair) -> None:
    connection, peer = pair
    pending = [submit(connection) for _ in range(3)]
    peer.send(b"".join(reply(number, 9, bytes([number])) for number in (1, 2, 3)))
    assert [each.result() for each in reversed(pending)] == [b"\3", b"\2", b"\1"]


def test_a_reply_out_of_order_is_an_error(pair: Pair) -> None:
    connection, peer = pair
    submit(connection)
    submit(connection)
    peer.send(reply(2, 9))
    with pytest.raises(vfiod.Disconnected):
        connection.collect()


def test_message_ids_wrap_at_16_bits(pair: Pair) -> None:
    connection, peer = pair
    for _ in range(65536):
        connection.post(9)
        peer.recv(4096)
    peer.send(reply(1, 9, b"x"))
    assert connection.call(9) == b"x"


def test_a_message_in_pieces_is_put_together(pair: Pair) -> None:
    connection, peer = pair

    def dribble() -> None:
        for byte in reply(1, 9, b"hello"):
            peer.send(bytes([byte]))

    thread = threading.Thread(target=dribble)
    thread.start()
    assert connection.call(9) == b"hello"
    thread.join()


def test_descriptors_go_to_the_message_that_brought_them(pair: Pair) -> None:
    connection, peer = pair
    first, second = submit(connection), connection.submit(9, b"", (), lambda message: message)
    peer.send(reply(1, 9))
    socket.send_fds(peer, [reply(2, 9)], [peer.fileno()])
    assert first.result() == b""
    message = second.result()
    assert len(message.descriptors) == 1
    message.close()


def test_received_descriptors_are_closed_on_exec(pair: Pair) -> None:
    connection, peer = pair
    socket.send_fds(peer, [reply(1, 9)], [peer.fileno()])
    with connection.request(9).take("test") as descriptor:
        assert not os.get_inheritable(descriptor.fileno())


def test_descriptors_of_a_message_that_never_ended_are_closed() -> None:
    before = len(os.listdir("/proc/self/fd"))
    ours, theirs = socket.socketpair()
    with vfiod.Connection(ours, 0.05) as connection, theirs:
        socket.send_fds(theirs, [reply(1, 9)[:3]], [theirs.fileno(), theirs.fileno()])
        with pytest.raises(TimeoutError):
            connection.receive()
    assert len(os.listdir("/proc/self/fd")) == before


def test_a_descriptor_without_an_owner_warns() -> None:
    descriptor = vfiod.Descriptor(os.dup(0))
    with pytest.warns(ResourceWarning):
        del descriptor


def test_the_end_of_the_stream_is_an_error(pair: Pair) -> None:
    connection, peer = pair
    peer.close()
    with refused(errno.ECONNRESET):
        connection.receive()


def test_a_reply_shorter_than_a_header_is_an_error(pair: Pair) -> None:
    connection, peer = pair
    peer.send(struct.pack("=HHIII", 1, 9, 8, 1, 0))
    with refused(errno.ECONNRESET):
        connection.receive()


def test_a_reply_without_its_structure_is_an_error(pair: Pair) -> None:
    connection, peer = pair
    container = vfiod.Container(connection)
    peer.send(reply(1, wire.Operation.GET_API_VERSION, b"\0"))
    with refused(errno.ECONNRESET):
        container.api_version()


def test_a_reply_that_lacks_its_descriptor_is_an_error(pair: Pair) -> None:
    connection, peer = pair
    peer.send(reply(1, wire.Operation.OPEN_CONTAINER))
    with refused(errno.ECONNRESET):
        vfiod.Root(connection).open_container()


def test_a_wait_ends_at_its_timeout() -> None:
    ours, theirs = socket.socketpair()
    with vfiod.Connection(ours, 0.01) as connection, theirs, pytest.raises(TimeoutError):
        connection.receive()


@pytest.mark.parametrize("call", [vfiod.Root.remove_device, vfiod.Root.unbind_driver])
def test_the_time_that_a_removal_may_take_is_no_timeout_of_the_connection(
    call: Callable[..., None],
) -> None:
    ours, theirs = socket.socketpair()
    with vfiod.Root(vfiod.Connection(ours, 0.02)) as root, theirs:

        def answer_late() -> None:
            header = wire.Header(*wire.HEADER.unpack_from(theirs.recv(4096)))
            time.sleep(0.1)
            theirs.send(reply(header.id, header.command))

        thread = threading.Thread(target=answer_late)
        thread.start()
        call(root, "0000:07:00.0", timeout=10)
        thread.join()
        with pytest.raises(TimeoutError):
            root.topology()


def test_a_posted_request_says_that_it_wants_no_reply(pair: Pair) -> None:
    connection, peer = pair
    connection.post(10, b"data")
    header = wire.Header(*wire.HEADER.unpack_from(peer.recv(64)))
    assert header.flags == wire.FLAG_NO_REPLY
    assert header.size == 20


def test_dma_by_message_is_served_while_waiting_for_a_reply(pair: Pair) -> None:
    connection, peer = pair
    device = vfiod.Device(connection, wire.Version(0, 0, {}))
    memory = bytearray(range(16))
    peer.send(reply(1, wire.Command.DMA_MAP))
    device.map_dma_by_message(0x1000, memory)
    peer.recv(4096)

    def request(command: int, address: int, count: int, data: bytes = b"") -> bytes:
        payload = wire.DMA_ACCESS.pack(address, count) + data
        return wire.HEADER.pack(7, command, 16 + len(payload), 0, 0) + payload

    peer.send(request(wire.Command.DMA_READ, 0x1004, 4))
    peer.send(request(wire.Command.DMA_WRITE, 0x1000, 2, b"ab"))
    peer.send(request(wire.Command.DMA_READ, 0x100F, 2))
    peer.send(request(wire.Command.DMA_WRITE, 0x1000, 2, b"abc"))
    peer.send(request(wire.Command.DEVICE_RESET, 0x1000, 2))
    peer.send(reply(2, wire.Command.DEVICE_RESET))
    device.reset()
    assert bytes(memory[:4]) == b"ab\2\3"
    answers = peer.recv(4096)[16:]
    assert answers[:36] == reply(7, 11, wire.DMA_ACCESS.pack(0x1004, 4) + b"\4\5\6\7")
    assert answers[36:68] == reply(7, 12, wire.DMA_ACCESS.pack(0x1000, 2))
    assert answers[68:84] == reply(7, 11, error=errno.EFAULT)
    assert answers[84:100] == reply(7, 12, error=errno.EINVAL)
    assert answers[100:] == reply(7, 13, error=errno.EOPNOTSUPP)
    assert len(memory) == 16


def test_two_full_sockets_do_not_wait_for_each_other(pair: Pair) -> None:
    connection, peer = pair
    payload = bytes(1 << 16)

    def echo() -> None:
        for number in range(1, 101):
            peer.recv(16 + len(payload), socket.MSG_WAITALL)
            peer.sendall(reply(number, 9, payload))

    thread = threading.Thread(target=echo)
    thread.start()
    decode = lambda message: len(message.payload)  # noqa: E731
    pending = [connection.submit(9, payload, (), decode) for _ in range(100)]
    assert [each.result() for each in pending] == [len(payload)] * 100
    thread.join()


def test_an_eventfd_counts_signals_and_gives_up_after_its_timeout() -> None:
    with vfiod.EventFD() as event:
        assert event.wait(0) == 0
        event.signal()
        event.signal()
        assert event.wait(1) == 2
        assert event.count() == 0


def test_memory_is_shared_by_its_descriptor() -> None:
    with vfiod.Memory(4096) as memory:
        memory[10:15] = b"hello"
        assert os.pread(memory.fileno(), 5, 10) == b"hello"
