"""How everything here is compiled."""

from __future__ import annotations

from numba import njit

compiled = njit(cache=True, _nrt=False)
"""Without numba's runtime: the caller keeps every array alive, and none is made inside.

With it every function counts references to each array it is given, with locked instructions: half of a run's time.
"""
