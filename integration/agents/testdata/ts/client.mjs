// A client that others wrote: the TypeScript SDK, driven without a head. It
// starts the command that its arguments name, and prints one line of JSON.
import { Client } from "@modelcontextprotocol/sdk/client/index.js";
import { StdioClientTransport } from "@modelcontextprotocol/sdk/client/stdio.js";

const [command, ...args] = process.argv.slice(2);
const transport = new StdioClientTransport({ command, args, env: process.env, stderr: "inherit" });
const client = new Client({ name: "ts", version: "1" });
await client.connect(transport);
const { tools } = await client.listTools();
const call = (name, args) => client.callTool({ name, arguments: args });
const written = await call("Write", { path: "from-ts.txt", content: "hello\n" });
const shell = await call("Bash", { command: "cat from-ts.txt; exit 3" });
const missing = await call("Read", { path: "missing" });
let unknown = "";
try {
  await call("Commit", {});
} catch (e) {
  unknown = String(e.message);
}
await client.close();
console.log(JSON.stringify({
  tools: tools.map((t) => t.name), written: written.content[0].text, shell: shell.content[0].text,
  exit: shell.structuredContent.exit_code, missing: missing.isError === true, unknown,
}));
