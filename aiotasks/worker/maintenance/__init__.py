"""What a worker does periodically for its whole backend."""
