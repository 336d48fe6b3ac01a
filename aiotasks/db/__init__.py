"""PostgreSQL and Django's connections to it: nothing in here knows a task."""
