"""The sandbox protocol, answered by this server in place of the program that clients would download into the job.

What clients of huggingface_hub expect of port 49983 of a sandbox job (protocol 3): commands, processes, files, ports,
and the sandboxes of a pool's host. The proxy lets callers in by their access token and hands their requests to
`native.SandboxPort`; the token of the sandbox itself is checked here. Nothing runs inside but what was asked for.
"""
