"""The description of the API at `/openapi.json`: what FastAPI derives, with errors and streams as they really are."""

from typing import Any, cast

from fastapi import FastAPI

Schema = dict[str, Any]

_ERROR: Schema = {
    "type": "object",
    "properties": {"error": {"type": "string", "description": "What is wrong, for the person who made the request."}},
    "required": ["error"],
}
_FAILED: Schema = {
    "description": "Refused or failed; also told in the headers X-Error-Code and X-Error-Message.",
    "content": {"application/json": {"schema": {"$ref": "#/components/schemas/Error"}}},
}
_EVENTS: Schema = {"description": "Server-sent events.", "content": {"text/event-stream": {}}}
_BYTES: Schema = {"description": "The file, or the part that was asked for.", "content": {"*/*": {}}}
_STREAMS = ("/logs", "/metrics", "/events")
_OPEN = ("/healthz", "/api/agent-harnesses", "/api/jobs/hardware")


def install(app: FastAPI) -> None:
    """Make the application describe itself so."""
    derive = app.openapi

    def described() -> Schema:
        if app.openapi_schema is None:
            _complete(derive())
        return cast("Schema", app.openapi_schema)

    app.openapi = described


def _complete(schema: Schema) -> None:
    components = schema.setdefault("components", {})
    schemas = components.setdefault("schemas", {})
    for name in ("HTTPValidationError", "ValidationError"):
        schemas.pop(name, None)
    schemas["Error"] = _ERROR
    components["securitySchemes"] = {"token": {"type": "http", "scheme": "bearer"}}
    for path, operations in schema["paths"].items():
        for operation in operations.values():
            _complete_operation(path, operation)


def _complete_operation(path: str, operation: Schema) -> None:
    responses = operation["responses"]
    responses.pop("422", None)
    if path.endswith(_STREAMS):
        responses["200"] = _EVENTS
    elif "/resolve/" in path:
        responses["200"] = _BYTES
    responses["default"] = _FAILED
    operation["security"] = [] if path in _OPEN else [{"token": []}]
