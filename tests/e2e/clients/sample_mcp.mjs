// The MCP SDK for TypeScript, which Claude Desktop, VS Code, Cursor and MCP Inspector use.
import { Client } from "@modelcontextprotocol/sdk/client/index.js";
import { StreamableHTTPClientTransport } from "@modelcontextprotocol/sdk/client/streamableHttp.js";
import { ToolListChangedNotificationSchema } from "@modelcontextprotocol/sdk/types.js";

const url = new URL(`http://${process.env.GATEWAY_HTTP}/timbr/api/mcp`);
const transport = new StreamableHTTPClientTransport(url, { requestInit: { headers: JSON.parse(process.env.MCP_HEADERS) } });
const client = new Client({ name: "sample", version: "1" });
client.onerror = (error) => console.log("error", error.message);
const changed = new Promise((resolve) => client.setNotificationHandler(ToolListChangedNotificationSchema, resolve));
await client.connect(transport);
console.log((await client.listTools()).tools.map((tool) => tool.name).join());
console.log((await client.callTool({ name: "query_data", arguments: { prompt: "hi" } })).content[0].text);
await changed;
client.onerror = () => {};
await transport.terminateSession();
console.log("ended", transport.sessionId === undefined);
process.exit(0);
