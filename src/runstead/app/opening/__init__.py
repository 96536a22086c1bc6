"""Opens parts of a server for one command, whether the server runs or not.

A module each, for a command should not wait for what it does not need.
"""
