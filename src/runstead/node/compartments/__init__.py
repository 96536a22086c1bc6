"""Divides a running attempt: many small parts in it, each closed off from the others and from the attempt.

A compartment has a user id, a home, control groups below the attempt's, and namespaces of its own for processes,
mounts, network and IPC; it has no capabilities. Its first process is an agent as the attempt's own is
(`inside/agent.py`), reached by a socket whose name says what there is to know (`entry.py`):

    <attempt>/compartments/next         the user id of the next one
    <attempt>/compartments/<id>-...     the socket of the agent of one; it is there when this is
    <attempt>/compartments/.<id>        the same while it is made

It is one file and no more because files cost: on ext4, those made soon after others were deleted most of all.

They are made on behalf of the attempt's supervisor, which is outside and privileged: when somebody connects to
<attempt>/divide it forks a maker, which does what is asked for, one after the other, and goes when nothing is asked for
a while. A maker goes into the attempt's namespaces and back with the machine's rights, so it trusts nothing there:
paths are walked without following links, nothing is imported. It is among the attempt's processes, a child of its
first one, and so are the compartments' when it is gone.
"""
