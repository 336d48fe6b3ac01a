"""Running claimed tasks: coroutines on the loop, functions in threads."""
