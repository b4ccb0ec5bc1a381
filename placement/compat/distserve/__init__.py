"""DistServe's simulator and placement search, by its rules (docs/compat-simulators.md)."""

from placement.compat.distserve.configurations import (
    Affinity,
    Configuration,
    enumerate_colocated,
    enumerate_configurations,
)
from placement.compat.distserve.profile import ModelProfile, Parallel, parse_profile, read_profile

__all__ = [
    "Affinity", "Configuration", "ModelProfile", "Parallel", "enumerate_colocated", "enumerate_configurations",
    "parse_profile", "read_profile",
]  # fmt: skip
