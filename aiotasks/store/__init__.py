"""What aiotasks asks of PostgreSQL, and the ways it gets there."""
