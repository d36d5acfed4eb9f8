"""Changes to Triton's interpreter, which runs kernels without a GPU: twice the speed, and a fix for Triton 3.9."""

import importlib.metadata
from dataclasses import replace

from triton import language
from triton.runtime import interpreter


def _patch_language_once(self, *arguments, original=interpreter.InterpretedFunction.__call__, **named):
    """Call a function inside a kernel. Triton patches triton.language again for each of these calls."""
    modules = [value for value in self.fn.__globals__.values() if value is language or value is language.core]
    if any(language.core.is_builtin(module.load) for module in modules):  # not patched yet
        return original(self, *arguments, **named)
    return self.rewrite()(*arguments, **named)


def _numpy_dtype(dtype, original=interpreter._get_np_dtype, known={}):  # noqa: B006
    """Return the NumPy dtype of a Triton dtype. Triton builds a table of all of them in each call."""
    if dtype.name not in known:
        known[dtype.name] = original(dtype)
    return known[dtype.name]


def _create_splat(self, block, scalar, original=interpreter.InterpreterBuilder.create_splat):
    """Keep a compared scalar a bool: Triton 3.9 makes it an int32, which its interpreter refuses as a mask."""
    made = original(self, block, scalar)
    made.data = made.data.astype(scalar.data.dtype)
    return made


interpreter.InterpretedFunction.__call__ = _patch_language_once
interpreter._get_np_dtype = _numpy_dtype
# Checks of integer arithmetic, a third of the time, whose results the interpreter drops.
interpreter.interpreter_builder.options = replace(interpreter.interpreter_builder.options, sanitize_overflow=False)
if importlib.metadata.version("triton").startswith("3.9."):
    interpreter.InterpreterBuilder.create_splat = _create_splat
