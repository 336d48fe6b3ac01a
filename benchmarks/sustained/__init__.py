"""Weeks of load in minutes: ``python -m benchmarks.sustained`` runs tasks whose rows are soon deleted."""
