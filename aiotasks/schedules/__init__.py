"""Schedules: the times of tasks that are enqueued again and again, and what the code declares of them."""
