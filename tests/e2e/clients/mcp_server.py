"""An MCP server of the MCP SDK at the path of timbr-api, with one tool, in place of Timbr's: mcp_server.py PORT"""
import sys

from mcp.server.fastmcp import Context, FastMCP

server = FastMCP("timbr", host="127.0.0.1", port=int(sys.argv[1]), streamable_http_path="/timbr/api/mcp")


@server.tool()
async def query_data(prompt: str, context: Context) -> str:
    """Answers a question."""
    await context.report_progress(1, 2)
    await context.session.send_tool_list_changed()
    return f"rows for {prompt}"


server.run(transport="streamable-http")
