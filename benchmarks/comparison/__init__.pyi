from .compare import compare_operators as compare_operators
