"""The edu device: every register, DMA, INTx and MSI (QEMU's docs/specs/edu.rst)."""

import os

import pytest
from conftest import Edu
from support import (
    EDU_BUFFER,
    EDU_COMPUTING,
    EDU_DMA_CAUSE,
    EDU_DMA_INTERRUPTS,
    EDU_DMA_RUNNING,
    EDU_FACTORIAL_CAUSE,
    EDU_FACTORIAL_INTERRUPTS,
    EDU_TO_MEMORY,
    IOVA,
    PAGE,
    TIMEOUT,
    EduRegister,
    bus_master,
    edu_load,
    edu_start,
    edu_store,
    edu_wait,
    until,
)

import vfiod
from vfiod.wire import IRQ

MSI_CAPABILITY = 0x05
MSI_ENABLE = 1


def compute(edu: Edu, number: int) -> int:
    edu.bar.write32(EduRegister.FACTORIAL, number)
    until(lambda: not edu.bar.read32(EduRegister.STATUS) & EDU_COMPUTING, "the factorial")
    return edu.bar.read32(EduRegister.FACTORIAL)


def capability(device: vfiod.Device, wanted: int) -> int:
    """The offset of a capability in configuration space; 0 when there is none."""
    at = device.config.read8(0x34)
    for _ in range(48):
        if at == 0 or device.config.read8(at) == wanted:
            return at
        at = device.config.read8(at + 1)
    raise AssertionError("the capability list has no end")


def enable_msi(edu: Edu, event: vfiod.EventFD) -> None:
    edu.device.set_triggers(IRQ.MSI, [event])
    at = capability(edu.device, MSI_CAPABILITY)
    edu.device.config.write16(at + 2, edu.device.config.read16(at + 2) | MSI_ENABLE)


# Configuration and registers


def test_the_identity_is_qemus(edu: Edu) -> None:
    assert edu.device.config.read32(0x00) == 0x11E8_1234
    assert edu.device.config.read32(0x08) == 0x00FF_0010
    assert edu.device.config.read8(0x3D) == 1


def test_the_device_has_msi_with_one_vector(edu: Edu) -> None:
    assert capability(edu.device, MSI_CAPABILITY)
    assert edu.device.config.read16(0x06) & 0x10
    assert edu.device.irq_info(IRQ.MSI).count == 1
    assert edu.device.irq_info(IRQ.MSIX).count == 0


def test_bar_0_has_1_mib_and_is_not_mappable(edu: Edu) -> None:
    info = edu.device.region_info(0)
    assert info.size == 1 << 20
    assert info.flags == vfiod.RegionFlags.READ | vfiod.RegionFlags.WRITE
    assert info.descriptor is None


def test_a_bars_size_is_found_by_writing_ones(edu: Edu) -> None:
    edu.device.config.write32(0x10, 0xFFFF_FFFF)
    assert edu.device.config.read32(0x10) == 0xFFF0_0000


def test_the_identification_is_010000ed(edu: Edu) -> None:
    assert edu.bar.read32(EduRegister.IDENTIFICATION) == 0x0100_00ED


def test_the_identification_is_read_only(edu: Edu) -> None:
    edu.bar.write32(EduRegister.IDENTIFICATION, 0)
    assert edu.bar.read32(EduRegister.IDENTIFICATION) == 0x0100_00ED


@pytest.mark.parametrize("value", [0, 1, 0x1234_5678, 0xFFFF_FFFF])
def test_the_liveness_register_inverts(edu: Edu, value: int) -> None:
    edu.bar.write32(EduRegister.LIVENESS, value)
    assert edu.bar.read32(EduRegister.LIVENESS) == value ^ 0xFFFF_FFFF


@pytest.mark.parametrize(
    "number, factorial", [(0, 1), (1, 1), (2, 2), (5, 120), (12, 479001600), (13, 1932053504)]
)
def test_the_factorial_is_computed_modulo_2_to_the_32(edu: Edu, number: int, factorial: int) -> None:
    assert compute(edu, number) == factorial


def test_a_huge_factorial_holds_nobody_up(edu: Edu) -> None:
    edu.bar.write32(EduRegister.FACTORIAL, 0xFFFF_FFFF)
    assert edu.bar.read32(EduRegister.IDENTIFICATION) == 0x0100_00ED


def test_only_the_interrupt_bit_of_the_status_register_can_be_written(edu: Edu) -> None:
    edu.bar.write32(EduRegister.STATUS, 0xFFFF_FFFF)
    assert edu.bar.read32(EduRegister.STATUS) == EDU_FACTORIAL_INTERRUPTS
    edu.bar.write32(EduRegister.STATUS, 0)
    assert edu.bar.read32(EduRegister.STATUS) == 0


@pytest.mark.parametrize(
    "register", [EduRegister.DMA_SOURCE, EduRegister.DMA_DESTINATION, EduRegister.DMA_COUNT]
)
def test_dma_registers_hold_64_bits(edu: Edu, register: int) -> None:
    edu.bar.write64(register, 0x0123_4567_89AB_CDEF)
    assert edu.bar.read64(register) == 0x0123_4567_89AB_CDEF


def test_what_is_raised_shows_in_the_interrupt_status_until_acknowledged(edu: Edu) -> None:
    edu.bar.write32(EduRegister.INTERRUPT_RAISE, 0x11)
    edu.bar.write32(EduRegister.INTERRUPT_RAISE, 0x02)
    assert edu.bar.read32(EduRegister.INTERRUPT_STATUS) == 0x13
    edu.bar.write32(EduRegister.INTERRUPT_ACKNOWLEDGE, 0x10)
    assert edu.bar.read32(EduRegister.INTERRUPT_STATUS) == 0x03
    edu.bar.write32(EduRegister.INTERRUPT_ACKNOWLEDGE, 0xFFFF_FFFF)
    assert edu.bar.read32(EduRegister.INTERRUPT_STATUS) == 0


def test_the_interrupt_status_is_read_only(edu: Edu) -> None:
    edu.bar.write32(EduRegister.INTERRUPT_STATUS, 0xFF)
    assert edu.bar.read32(EduRegister.INTERRUPT_STATUS) == 0


# INTx


def test_raising_an_interrupt_signals_intx(edu: Edu) -> None:
    with vfiod.EventFD() as event:
        edu.device.set_triggers(IRQ.INTX, [event])
        edu.bar.write32(EduRegister.INTERRUPT_RAISE, 1)
        assert event.wait(TIMEOUT) == 1


def test_intx_is_signalled_once_until_it_is_unmasked(edu: Edu) -> None:
    with vfiod.EventFD() as event:
        edu.device.set_triggers(IRQ.INTX, [event])
        edu.bar.write32(EduRegister.INTERRUPT_RAISE, 1)
        edu.bar.write32(EduRegister.INTERRUPT_RAISE, 2)
        assert event.wait(TIMEOUT) == 1
        edu.bar.write32(EduRegister.INTERRUPT_ACKNOWLEDGE, 3)
        edu.bar.write32(EduRegister.INTERRUPT_RAISE, 4)
        assert event.count() == 0
        edu.device.unmask_irqs(IRQ.INTX)
        assert event.wait(TIMEOUT) == 1


def test_unmasking_intx_that_is_still_asserted_signals_it_again(edu: Edu) -> None:
    with vfiod.EventFD() as event:
        edu.device.set_triggers(IRQ.INTX, [event])
        edu.bar.write32(EduRegister.INTERRUPT_RAISE, 1)
        assert event.wait(TIMEOUT) == 1
        edu.device.unmask_irqs(IRQ.INTX)
        assert event.wait(TIMEOUT) == 1
        edu.bar.write32(EduRegister.INTERRUPT_ACKNOWLEDGE, 1)
        edu.device.unmask_irqs(IRQ.INTX)
        assert event.count() == 0


def test_masked_intx_is_signalled_when_unmasked(edu: Edu) -> None:
    with vfiod.EventFD() as event:
        edu.device.set_triggers(IRQ.INTX, [event])
        edu.device.mask_irqs(IRQ.INTX)
        edu.bar.write32(EduRegister.INTERRUPT_RAISE, 1)
        assert event.count() == 0
        edu.device.unmask_irqs(IRQ.INTX)
        assert event.wait(TIMEOUT) == 1


def test_the_pci_status_register_follows_intx(edu: Edu) -> None:
    assert not edu.device.config.read16(0x06) & 0x08
    edu.bar.write32(EduRegister.INTERRUPT_RAISE, 1)
    assert edu.device.config.read16(0x06) & 0x08
    edu.bar.write32(EduRegister.INTERRUPT_ACKNOWLEDGE, 1)
    assert not edu.device.config.read16(0x06) & 0x08


def test_a_finished_factorial_interrupts_if_asked_to(edu: Edu) -> None:
    with vfiod.EventFD() as event:
        edu.device.set_triggers(IRQ.INTX, [event])
        assert compute(edu, 5) == 120
        assert event.count() == 0
        edu.bar.write32(EduRegister.STATUS, EDU_FACTORIAL_INTERRUPTS)
        edu.bar.write32(EduRegister.FACTORIAL, 6)
        assert event.wait(TIMEOUT) == 1
        assert edu.bar.read32(EduRegister.INTERRUPT_STATUS) == EDU_FACTORIAL_CAUSE
        assert edu.bar.read32(EduRegister.FACTORIAL) == 720


# MSI


def test_msi_replaces_intx(edu: Edu) -> None:
    with vfiod.EventFD() as msi:
        enable_msi(edu, msi)
        edu.bar.write32(EduRegister.INTERRUPT_RAISE, 1)
        assert msi.wait(TIMEOUT) == 1
        assert not edu.device.config.read16(0x06) & 0x08


def test_each_raise_is_a_message_of_its_own(edu: Edu) -> None:
    with vfiod.EventFD() as msi:
        enable_msi(edu, msi)
        for _ in range(3):
            edu.bar.write32(EduRegister.INTERRUPT_RAISE, 1)
            assert msi.wait(TIMEOUT) == 1
            edu.bar.write32(EduRegister.INTERRUPT_ACKNOWLEDGE, 1)


def test_dma_interrupts_by_msi(edu: Edu) -> None:
    with vfiod.EventFD() as msi, edu.container.map_dma(IOVA, PAGE):
        enable_msi(edu, msi)
        edu_start(edu.device, IOVA, EDU_BUFFER, 64, EDU_DMA_INTERRUPTS)
        assert msi.wait(TIMEOUT) == 1
        assert edu.bar.read32(EduRegister.INTERRUPT_STATUS) == EDU_DMA_CAUSE


# DMA


@pytest.mark.parametrize("count", [1, 3, 64, 4095, 4096])
def test_a_copy_goes_to_the_buffer_and_back(edu: Edu, count: int) -> None:
    with edu.container.map_dma(IOVA, 2 * PAGE) as memory:
        data = os.urandom(count)
        memory[0:count] = data
        edu_load(edu.device, IOVA, count)
        edu_store(edu.device, IOVA + PAGE, count)
        assert memory[PAGE : PAGE + count] == data
        assert memory[PAGE + count : 2 * PAGE] == bytes(PAGE - count)


def test_a_copy_may_use_a_part_of_the_buffer(edu: Edu) -> None:
    with edu.container.map_dma(IOVA, PAGE) as memory:
        memory[0:8] = b"abcdefgh"
        edu_load(edu.device, IOVA, 8, at=4000)
        edu_store(edu.device, IOVA + 100, 4, at=4002)
        assert memory[100:104] == b"cdef"


def test_a_copy_clears_its_start_bit_and_interrupts_if_asked_to(edu: Edu) -> None:
    with edu.container.map_dma(IOVA, PAGE), vfiod.EventFD() as event:
        edu.device.set_triggers(IRQ.INTX, [event])
        edu_load(edu.device, IOVA, 64)
        assert event.count() == 0
        edu_start(edu.device, IOVA, EDU_BUFFER, 64, EDU_DMA_INTERRUPTS)
        assert event.wait(TIMEOUT) == 1
        assert edu.bar.read32(EduRegister.INTERRUPT_STATUS) == EDU_DMA_CAUSE
        assert not edu.bar.read32(EduRegister.DMA_COMMAND) & EDU_DMA_RUNNING


def test_a_command_without_its_start_bit_does_nothing(edu: Edu) -> None:
    with edu.container.map_dma(IOVA, PAGE) as memory:
        memory[0:4] = b"data"
        edu.bar.write64(EduRegister.DMA_SOURCE, EDU_BUFFER)
        edu.bar.write64(EduRegister.DMA_DESTINATION, IOVA)
        edu.bar.write64(EduRegister.DMA_COUNT, 4)
        edu.bar.write64(EduRegister.DMA_COMMAND, EDU_TO_MEMORY)
        edu_wait(edu.device)
        assert memory[0:4] == b"data"


def test_addresses_are_cut_to_28_bits(edu: Edu) -> None:
    with edu.container.map_dma(IOVA, PAGE) as memory:
        memory[0:4] = b"data"
        edu_load(edu.device, 1 << 28 | IOVA, 4)
        edu_store(edu.device, 0xFFFF_FFFF_F000_0000 | IOVA + 8, 4)
        assert memory[8:12] == b"data"


def test_without_bus_mastering_there_is_no_dma(edu: Edu) -> None:
    with edu.container.map_dma(IOVA, PAGE) as memory:
        memory[0:4] = b"data"
        edu_load(edu.device, IOVA, 4)
        memory[0:4] = b"keep"
        bus_master(edu.device, False)
        edu_store(edu.device, IOVA, 4)
        assert memory[0:4] == b"keep"
        bus_master(edu.device)
        edu_store(edu.device, IOVA, 4)
        assert memory[0:4] == b"data"


@pytest.mark.parametrize(
    "at, count",
    [
        pytest.param(EDU_BUFFER - 1, 4, id="before the buffer"),
        pytest.param(EDU_BUFFER + 4093, 4, id="across its end"),
        pytest.param(EDU_BUFFER + 4096, 4, id="after it"),
        pytest.param(EDU_BUFFER, 4097, id="more than it holds"),
        pytest.param(EDU_BUFFER, (1 << 64) - 1, id="nearly 2^64 bytes"),
        pytest.param(EDU_BUFFER + 8, (1 << 64) - 4, id="a range that wraps"),
        pytest.param((1 << 64) - 4, 8, id="an address that wraps"),
        pytest.param(0, 4, id="address 0"),
    ],
)
def test_a_copy_beyond_the_buffer_harms_nobody(edu: Edu, at: int, count: int) -> None:
    with edu.container.map_dma(IOVA, 2 * PAGE) as memory:
        memory[0:4] = b"keep"
        edu_start(edu.device, IOVA, at, count, 0)
        edu_wait(edu.device)
        edu_start(edu.device, at, IOVA, count, EDU_TO_MEMORY)
        edu_wait(edu.device)
        edu_load(edu.device, IOVA + PAGE, 4)
        assert edu.bar.read32(EduRegister.IDENTIFICATION) == 0x0100_00ED


def test_closing_during_a_copy_harms_nobody(edu: Edu) -> None:
    with edu.container.map_dma(IOVA, PAGE):
        for _ in range(20):
            edu_start(edu.device, IOVA, EDU_BUFFER, PAGE, EDU_DMA_INTERRUPTS)
            edu_wait(edu.device)
        edu_start(edu.device, IOVA, EDU_BUFFER, PAGE, 0)


def test_a_reset_ends_a_copy_and_a_computation(edu: Edu) -> None:
    with edu.container.map_dma(IOVA, PAGE):
        edu_start(edu.device, IOVA, EDU_BUFFER, PAGE, EDU_DMA_INTERRUPTS)
        edu.bar.write32(EduRegister.STATUS, EDU_FACTORIAL_INTERRUPTS)
        edu.bar.write32(EduRegister.FACTORIAL, 1000)
        edu.device.reset()
        assert edu.bar.read32(EduRegister.INTERRUPT_STATUS) == 0
        assert edu.bar.read32(EduRegister.STATUS) == 0
        assert compute(edu, 5) == 120
        assert edu.bar.read32(EduRegister.INTERRUPT_STATUS) == 0
