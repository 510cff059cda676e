"""Triton kernels, each beside the torch twin that it must equal."""
