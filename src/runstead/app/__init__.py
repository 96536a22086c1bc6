"""The application: builds a server out of its parts. The only place that names concrete classes."""
