"""What numbers were made with: versions of the packages, the device, its memory."""

from __future__ import annotations

import importlib.metadata
import platform
import resource
import sys
from pathlib import Path

import torch

PACKAGES = ("hf_fst", "torch", "torchvision", "transformers", "accelerate", "datasets")


def versions() -> dict[str, str]:
    """Versions of Python and of the packages that make the numbers."""
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            found[package] = "not installed"
    return found


def hardware(device: torch.device | str) -> str:
    """What a process computed on: the GPU's name, or the number of CPU threads and the processor's."""
    device = torch.device(device)
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    if device.type != "cpu":
        return device.type
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.is_file() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    threads = torch.get_num_threads()
    return f"{threads} CPU thread{'s' if threads > 1 else ''}" + (
        f" ({names[0]})" if names and names[0] != "unknown" else ""
    )


def peak_memory(device: torch.device) -> tuple[int, str]:
    """Most memory so far in bytes, and of what: the `GPU`, or the `process` without one."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device), "GPU"
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit, "process"
