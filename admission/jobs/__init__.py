"""Durable jobs that share the capacity of online requests."""
