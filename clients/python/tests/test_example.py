"""The example runs as its first comment says."""

import subprocess
import sys
from pathlib import Path

from support import Server

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"


def test_edu_dma_goes_the_whole_way(server: Server) -> None:
    result = subprocess.run(
        [sys.executable, "-W", "error", EXAMPLES / "edu_dma.py", "--directory", server.directory],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert result.returncode == 0, result.stderr
    assert result.stderr == ""
    assert result.stdout.splitlines()[-1] == "the data came back unharmed"
    for call in ("VFIO_SET_IOMMU", "VFIO_IOMMU_MAP_DMA", "VFIO_GROUP_GET_DEVICE_FD"):
        assert call in result.stdout
