"""Requests to come: traces read, distributions drawn from, and what both are made into."""

from placement.workload.arrivals import Arrivals, Constant, Gamma, GapTable, Piecewise, Poisson, Replay
from placement.workload.errors import WorkloadError
from placement.workload.files import Format, ReadOptions, iter_requests, read_workload, write_workload
from placement.workload.generate import generate
from placement.workload.lengths import Empirical, Fixed, Lengths, Lognormal, ObservedPairs, Pairs, Quantiles, Uniform
from placement.workload.presets import PRESETS, Preset
from placement.workload.request import WorkloadRequest
from placement.workload.source import WorkloadSource, load_workload
from placement.workload.spec import WorkloadSpec, parse_workload_spec
from placement.workload.workload import Labels, Prefixes, Workload

__all__ = [
    "PRESETS",
    "Arrivals",
    "Constant",
    "Empirical",
    "Fixed",
    "Format",
    "Gamma",
    "GapTable",
    "Labels",
    "Lengths",
    "Lognormal",
    "ObservedPairs",
    "Pairs",
    "Piecewise",
    "Poisson",
    "Prefixes",
    "Preset",
    "Quantiles",
    "ReadOptions",
    "Replay",
    "Uniform",
    "Workload",
    "WorkloadError",
    "WorkloadRequest",
    "WorkloadSource",
    "WorkloadSpec",
    "generate",
    "iter_requests",
    "load_workload",
    "parse_workload_spec",
    "read_workload",
    "write_workload",
]  # fmt: skip
