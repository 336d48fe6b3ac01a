"""The worker's lease in the database, and the thread that renews it."""
