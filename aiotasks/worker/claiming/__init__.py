"""Claiming tasks: when, how many, and from which queues."""
