"""Read, write, resume and export networks."""
