"""The operator for JAX arrays: primitives that are lowered to the kernels, and the formula in plain jax.numpy."""
