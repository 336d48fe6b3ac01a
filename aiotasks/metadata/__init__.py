"""The metadata of tasks: what callers and tasks note about a task beside its arguments and its result."""
