"""The operator for torch tensors: custom operators that launch the kernels, and a reference in plain torch."""
