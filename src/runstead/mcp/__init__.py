"""The `hf_jobs` tool for agents, over MCP."""
