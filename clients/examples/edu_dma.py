#!/usr/bin/env python3
"""The whole way to a device and back, as a VFIO program goes it.

Opens a container and a group, chooses an IOMMU, takes the `edu` device, maps memory for DMA, lets the
device copy it to and fro, takes its interrupt, checks the data and closes everything. Each step is
printed with the kernel call that it would be with /dev/vfio.

    vfiod --directory /tmp/v &
    clients/examples/edu_dma.py --directory /tmp/v
"""

import argparse
import os
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "python"))

import vfiod

GROUP = 26
DEVICE = "0000:06:0d.0"

# edu's registers in BAR0 (QEMU's docs/specs/edu.rst).
BAR0 = 0
IDENTIFICATION = 0x00
LIVENESS = 0x04
INTERRUPT_STATUS = 0x24
INTERRUPT_ACKNOWLEDGE = 0x64
DMA_SOURCE = 0x80
DMA_DESTINATION = 0x88
DMA_COUNT = 0x90
DMA_COMMAND = 0x98

DMA_START = 0x01
DMA_TO_MEMORY = 0x02
DMA_INTERRUPTS = 0x04
DMA_DONE = 0x100
"""The cause that the interrupt status names after a copy."""

BUFFER = 0x40000
"""Where edu keeps its 4 KiB buffer, in its own address space."""

IOVA = 0x100_0000
"""edu has 28 address lines: whatever is mapped for it must lie below 256 MiB."""
SIZE = 0x2000
COUNT = 4096


def step(what: str, call: str) -> None:
    print(f"{what:<44} {call}")


def copy(device: vfiod.Device, interrupt: vfiod.EventFD, source: int, destination: int, command: int) -> None:
    """One copy by the device, from its start to the end of its interrupt."""
    bar = device.region(BAR0)
    bar.write64(DMA_SOURCE, source)
    bar.write64(DMA_DESTINATION, destination)
    bar.write64(DMA_COUNT, COUNT)
    bar.write64(DMA_COMMAND, command | DMA_START | DMA_INTERRUPTS)
    step(f"start a copy of {COUNT} bytes to {destination:#x}", "pwrite(device, ...)")

    if not interrupt.wait(timeout=10):
        raise SystemExit("no interrupt came within 10 seconds")
    causes = bar.read32(INTERRUPT_STATUS)
    if causes != DMA_DONE:
        raise SystemExit(f"the interrupt has the cause {causes:#x} instead of {DMA_DONE:#x}")
    step(f"interrupt with cause {causes:#x}", "read(eventfd, ...); pread(device, ...)")

    # INTx is a level and masks itself: first the device lets go of the line, then it is unmasked.
    bar.write32(INTERRUPT_ACKNOWLEDGE, causes)
    device.unmask_irqs(vfiod.IRQ.INTX)
    step("acknowledge it, unmask INTx", "ioctl(device, VFIO_DEVICE_SET_IRQS, UNMASK)")


def main() -> None:
    parser = argparse.ArgumentParser(description="Drive edu's DMA through vfiod.")
    parser.add_argument("--directory", required=True, help="the server's directory")
    directory = parser.parse_args().directory

    with vfiod.connect(directory, timeout=10) as root:
        container = root.open_container()
        step("open a container", 'open("/dev/vfio/vfio")')
        with container:
            version = container.api_version()
            step(f"API version {version}", "ioctl(container, VFIO_GET_API_VERSION)")

            group = root.open_group(GROUP)
            step(f"open group {GROUP}", f'open("/dev/vfio/{GROUP}")')
            with group:
                if not group.status() & vfiod.GroupStatus.VIABLE:
                    raise SystemExit(f"group {GROUP} isn't viable: a device has a foreign driver")
                step("the group is viable", "ioctl(group, VFIO_GROUP_GET_STATUS)")
                group.set_container(container)
                step("put it into the container", "ioctl(group, VFIO_GROUP_SET_CONTAINER)")
                container.set_iommu(vfiod.IOMMUType.TYPE1v2)
                step("choose the IOMMU driver type1 v2", "ioctl(container, VFIO_SET_IOMMU)")

                memory = container.map_dma(IOVA, SIZE)
                step(f"map {SIZE:#x} bytes at {IOVA:#x}", "ioctl(container, VFIO_IOMMU_MAP_DMA)")
                device = group.open_device(DEVICE)
                step(f"take the device {DEVICE}", "ioctl(group, VFIO_GROUP_GET_DEVICE_FD)")
                with device, memory, vfiod.EventFD() as interrupt:
                    drive(device, memory, interrupt)
                    device.disable_irqs(vfiod.IRQ.INTX)
                    step("disable the interrupt", "ioctl(device, VFIO_DEVICE_SET_IRQS, NONE)")
                    memory.unmap()
                    step("unmap the memory", "ioctl(container, VFIO_IOMMU_UNMAP_DMA)")
    step("close the device, the group, the container", "close(...)")
    print("the data came back unharmed")


def drive(device: vfiod.Device, memory: vfiod.DMAMemory, interrupt: vfiod.EventFD) -> None:
    """Everything between taking the device and letting go of it."""
    info = device.info()
    what = f"{info.regions} regions, {info.interrupts} kinds of interrupt"
    step(what, "ioctl(device, VFIO_DEVICE_GET_INFO)")

    bar = device.region(BAR0)
    step(f"identification {bar.read32(IDENTIFICATION):#010x}", "pread(device, ...)")
    bar.write32(LIVENESS, 0x1234_5678)
    if bar.read32(LIVENESS) != 0xEDCB_A987:
        raise SystemExit("the liveness register doesn't invert")

    device.enable_bus_master()
    step("enable bus mastering", "pwrite(device, config space, COMMAND)")
    device.set_triggers(vfiod.IRQ.INTX, [interrupt])
    step("INTx shall signal an eventfd", "ioctl(device, VFIO_DEVICE_SET_IRQS, EVENTFD)")

    # Out: the first page to the device's buffer. Back: the buffer to the second page.
    data = os.urandom(COUNT)
    memory[0:COUNT] = data
    copy(device, interrupt, IOVA, BUFFER, 0)
    copy(device, interrupt, BUFFER, IOVA + COUNT, DMA_TO_MEMORY)
    if memory[COUNT : 2 * COUNT] != data:
        raise SystemExit("the data came back changed")


if __name__ == "__main__":
    main()
