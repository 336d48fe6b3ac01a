"""Template tags, for ``{% load aiotasks %}``."""
