"""Divides a running attempt: many small parts in it, each closed off from the others and from the attempt.

A compartment has a user id, a home, control groups below the attempt's, and namespaces of its own for processes,
mounts, network and IPC; it has no capabilities. Its first process is an agent as the attempt's own is
(`inside/agent.py`), reached by a socket in a directory of its own:

    <attempt>/compartments/next               the user id of the next one
    <attempt>/compartments/<id>/facts.json    what it is; it is there when this is
    <attempt>/compartments/<id>/inside        the socket of its agent

They are made by the attempt's supervisor, which is outside and privileged: it takes connections on <attempt>/divide,
one after the other, and forks a process for each. That process and its children enter the attempt's namespaces with
the machine's rights, so they trust nothing there: paths are walked without following links, nothing is imported. They
are among the attempt's processes from the beginning: whatever a supervisor forks is.
"""
