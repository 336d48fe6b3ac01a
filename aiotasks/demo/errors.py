class DemoError(Exception):
    """The demo can't go on; the message tells the user why."""
