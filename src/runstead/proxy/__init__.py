"""Exposed ports: what a client sends to a port of a job, and back.

A connection of the server is a `door.Door`. It reads the head of each request; one that names a port of a job
(`services/port_addresses.py`) is let in or refused by `gate.py` and then goes to one of three places:

- into the job (`exchange.py`): the heads are rewritten (`rewriting.py`), bodies are passed on as they are, with their
  framing followed (`framing.py`), and after an upgrade bytes go both ways until somebody closes. Connections into jobs
  are kept for the next request (`backends.py`);
- to an application of this server that serves the port in place of the job: see `native.Native`, the seam for
  sandboxes. It is asked after the gate, so token and read access are checked. It answers as an ASGI application, with
  the address of the port cut off the path, or names where in the job the bytes of the request shall go (`Onward`);
- nowhere, with an answer that says why (`answers.py`).

Everything else on the connection is the server's own business (`own.py`) and is served as if there were no proxy, but
for the end of connections: whoever answers before the end of an upload, the rest of it is read before the connection is
closed, or the answer would be lost.
"""
