"""Exposed ports: what a client sends to a port of a job, and back."""
