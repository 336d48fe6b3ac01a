"""A demonstration of aiotasks at work: `python -m aiotasks.demo` (needs the extra `demo`)."""
