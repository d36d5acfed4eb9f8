"""The operator for torch tensors: custom operators for the Triton kernels and for CPUs, and a plain torch reference."""
