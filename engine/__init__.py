"""What the entry points share, in rooms; each imports only from rooms named before it:
runtime, guards, drawing, checkpoints, evaluation, training, sweeps."""
