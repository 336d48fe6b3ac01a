class DemoError(Exception):
    """The demo can't go on; the message is for the user."""
