"""The MCP SDK for Python: lists and calls tools, and receives messages of the server."""
import asyncio
import json
import os

from mcp import ClientSession
from mcp.client.streamable_http import streamablehttp_client


async def main(url, headers):
    heard = []

    async def hear(message):
        heard.append(str(message))

    async with (streamablehttp_client(url, headers=headers) as (read, write, _),
                ClientSession(read, write, message_handler=hear) as session):
        await session.initialize()
        print([tool.name for tool in (await session.list_tools()).tools])
        print((await session.call_tool("query_data", {"prompt": "hi"})).content[0].text)
        while not any("list_changed" in message for message in heard):
            await asyncio.sleep(0.02)
        print("the server's message has arrived")


headers = json.loads(os.environ["MCP_HEADERS"])
asyncio.run(asyncio.wait_for(main(f"http://{os.environ['GATEWAY_HTTP']}/timbr/api/mcp", headers), 20))
