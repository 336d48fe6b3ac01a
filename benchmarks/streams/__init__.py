"""Streams of Server-Sent Events: how old an update is that arrives, and how a server with many streams
stops."""
