"""Training steps in torch and JAX, the choice between them, and the handling of non-finite steps."""
