"""Triton kernels over the block-major pool; checked by Triton's interpreter and its compiler, never run on a GPU."""
