"""A module of tasks whose import fails, as a deploy gone wrong makes them."""

raise RuntimeError("this module is broken")
