"""Code shared by the entry points. Each subpackage imports only from those listed before it: runtime, guards, drawing,
checkpoints, resuming, evaluation, prediction, app, training, sweeps, commands."""
