"""The search for the fastest tile sizes on a GPU: candidates, parallel compilation, timing, and the table they fill."""
