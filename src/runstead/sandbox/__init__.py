"""The sandbox protocol (wire-sandbox), answered by the server itself."""
