// Clients of the TypeScript SDK, v1 and v2: SDK, transport and URL in, a tool's result out.
const [sdk, way, url] = process.argv.slice(2);

let client, transport;
if (sdk === "v1") {
  const { Client } = await import("@modelcontextprotocol/sdk/client/index.js");
  const { StreamableHTTPClientTransport } = await import(
    "@modelcontextprotocol/sdk/client/streamableHttp.js"
  );
  const { SSEClientTransport } = await import("@modelcontextprotocol/sdk/client/sse.js");
  client = new Client({ name: "tests", version: "1" });
  const Transport = way === "sse" ? SSEClientTransport : StreamableHTTPClientTransport;
  transport = new Transport(new URL(url));
} else {
  const sdk2 = await import("@modelcontextprotocol/client");
  const mode = way === "modern" ? "auto" : "legacy";
  client = new sdk2.Client({ name: "tests", version: "1" }, { versionNegotiation: { mode } });
  const Transport = way === "sse" ? sdk2.SSEClientTransport : sdk2.StreamableHTTPClientTransport;
  transport = new Transport(new URL(url));
}
await client.connect(transport);
const tools = await client.listTools();
console.log(tools.tools.map((tool) => tool.name).sort().join(" "));
const result = await client.callTool({ name: "compare", arguments: { a: "Bergen", b: "Sydney" } });
console.log(result.content[0].text);
await transport.terminateSession?.();
await client.close();
