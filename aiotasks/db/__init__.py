"""PostgreSQL and Django's connections to it: connections, drivers, errors, repetition, NOTIFY.

Nothing in here knows what the statements are about.
"""
