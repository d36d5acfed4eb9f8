"""The operator for JAX arrays: primitives that are lowered to the kernels, and a reference in plain jax.numpy."""
