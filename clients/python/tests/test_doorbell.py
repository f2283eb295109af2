"""The doorbell device: writes for which eventfds stand."""

import errno

import pytest
import vfiod
from support import DOORBELL, DOORBELL_ONLY, Server, refused
from vfiod.wire import IRQ


@pytest.mark.vfiod(DOORBELL_ONLY)
def test_its_doorbells_ring_by_eventfd(server: Server) -> None:
    with server.device(DOORBELL) as device:
        bar = device.region(0)
        doorbells = bar.doorbells()
        assert [(bell.offset, bell.size, bell.value) for bell in doorbells] == [
            (4, 4, None),
            *((8, 4, value) for value in range(8)),
        ]
        with vfiod.EventFD() as event:
            device.set_triggers(IRQ.MSIX, [event], start=5)
            doorbells[0].ring()
            doorbells[6].ring()
            assert event.wait(20) == 1
        assert bar.read32(0) == 1
        for bell in doorbells:
            bell.close()
        assert device.region(4).doorbells() == []
        with refused(errno.EINVAL):
            device.region(5).doorbells()
