"""The operator on a CPU, as torch custom operators: blocks of images, lines of an axis, and matrix products."""
