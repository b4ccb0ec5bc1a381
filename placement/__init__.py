"""Sizes the pools: workloads, hardware, the latency model fitted, the simulator and the search for a plan."""
