"""Pictures, videos and tables."""
