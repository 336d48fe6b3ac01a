"""The process that a worker has to itself: command line, signals, supervisor, exit."""
