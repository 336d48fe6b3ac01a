"""Workloads, each measured on a PostgreSQL of its own with durable commits."""
