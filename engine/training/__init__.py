"""The training loop, its step in torch and in JAX, and its logs."""
