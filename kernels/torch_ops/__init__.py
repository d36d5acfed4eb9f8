"""The operator for torch tensors: custom operators that launch the kernels, and the formula in plain torch."""
