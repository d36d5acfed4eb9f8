"""What the entry points share: metrics, checkpoints, evaluation, figures, logging."""
