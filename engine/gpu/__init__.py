"""The engine's path on NVIDIA GPUs: Triton kernels, CUDA graphs, sampling on the device. NOT YET RUN ON HARDWARE.

Its parts are imported one by one: what needs Triton (`kernels/`, `attention.py`) is not pulled in by what does not.
"""
