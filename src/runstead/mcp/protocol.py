"""The tools and resources as an MCP server: the one module that knows the protocol's library.

It is imported when it is first needed: the library holds 36 MB.
"""

from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

import mcp_types as types
from mcp.server.context import ServerRequestContext
from mcp.server.lowlevel import Server
from mcp.shared.exceptions import MCPError

import runstead
from runstead.mcp import help, resources, tools
from runstead.mcp.hub import Hub, HubError
from runstead.mcp.outcome import Answer, Identity, Link, Result, schema

Context = ServerRequestContext[Any, Any]
HubOf = Callable[[Context], Hub]

Found = TypeVar("Found")
_TEXT = "text/plain"
_NOT_FOUND = -32002

_TOOLS = [
    types.Tool(
        name="hf_jobs",
        title="Jobs",
        description=help.DESCRIPTION,
        input_schema=tools.JOBS_INPUT,
        output_schema=schema(Result),
        # Of all that its operations do: some change, some end a job or take a schedule away, some submit anew.
        annotations=types.ToolAnnotations(
            title="Jobs", read_only_hint=False, destructive_hint=True, idempotent_hint=False, open_world_hint=True
        ),
    ),
    types.Tool(
        name="hf_whoami",
        title="Who am I",
        description=tools.WHOAMI_DESCRIPTION,
        input_schema=tools.WHOAMI_INPUT,
        output_schema=schema(Identity),
        annotations=types.ToolAnnotations(
            title="Who am I", read_only_hint=True, destructive_hint=False, idempotent_hint=True, open_world_hint=False
        ),
    ),
]


def create_server(hub_of: HubOf) -> "Server[Any]":
    """Return the server; `hub_of` says for each request whom it is for."""

    async def list_tools(_: Context, __: types.PaginatedRequestParams | None) -> types.ListToolsResult:
        return types.ListToolsResult(tools=_TOOLS)

    async def call_tool(context: Context, params: types.CallToolRequestParams) -> types.CallToolResult:
        async def report(gone: float, total: float | None, message: str) -> None:
            await context.session.report_progress(gone, total, message)

        hub = hub_of(context)
        match params.name:
            case "hf_jobs":
                return _result(await tools.call_jobs(hub, params.arguments or {}, report))
            case "hf_whoami":
                return _result(await tools.call_whoami(hub))
            case name:
                raise MCPError(
                    types.INVALID_PARAMS, f"there is no tool {name[:100]!r}; there are hf_jobs and hf_whoami"
                )

    async def list_resources(context: Context, _: types.PaginatedRequestParams | None) -> types.ListResourcesResult:
        links = await _asked(resources.recent(hub_of(context)))
        return types.ListResourcesResult(resources=[types.Resource(**_resource(link)) for link in links])

    async def list_templates(_: Context, __: types.PaginatedRequestParams | None) -> types.ListResourceTemplatesResult:
        template = types.ResourceTemplate(
            uri_template=resources.TEMPLATE, name="log", description=resources.DESCRIPTION, mime_type=_TEXT
        )
        return types.ListResourceTemplatesResult(resource_templates=[template])

    async def read_resource(context: Context, params: types.ReadResourceRequestParams) -> types.ReadResourceResult:
        text = await _asked(resources.read(hub_of(context), params.uri))
        if text is None:
            raise MCPError(_NOT_FOUND, f"there is no resource {params.uri[:200]!r} for you: {resources.TEMPLATE}")
        return types.ReadResourceResult(
            contents=[types.TextResourceContents(uri=params.uri, mime_type=_TEXT, text=text)]
        )

    return Server(
        "runstead",
        version=runstead.__version__,
        title="Runstead jobs",
        instructions=help.INSTRUCTIONS,
        get_tool_input_schema={tool.name: tool.input_schema for tool in _TOOLS}.get,
        on_list_tools=list_tools,
        on_call_tool=call_tool,
        on_list_resources=list_resources,
        on_list_resource_templates=list_templates,
        on_read_resource=read_resource,
    )


def _result(answer: Answer) -> types.CallToolResult:
    content: list[types.ContentBlock] = [types.TextContent(type="text", text=answer.text)]
    content += [types.ResourceLink(type="resource_link", **_resource(link)) for link in answer.links]
    return types.CallToolResult(content=content, structured_content=answer.structured, is_error=answer.is_error)


def _resource(link: Link) -> dict[str, Any]:
    return {"uri": link.uri, "name": link.name, "description": link.description, "mime_type": _TEXT}


async def _asked(coming: Awaitable[Found]) -> Found:
    try:
        return await coming
    except HubError as error:
        raise MCPError(types.INTERNAL_ERROR, error.message) from error
