// A sandbox of Galley for a framework in TypeScript, on Node alone.
//
// Start `galley serve` in a project and give this program the path that it
// prints:
//
//     galley serve --socket ./galley.sock &
//     npm install typescript @types/node && PATH=$PWD/node_modules/.bin:$PATH
//     tsc --module nodenext --target es2022 --types node sandbox.mts && node sandbox.mjs ./galley.sock
//
// What it changes lands in the session: look at it with `galley diff`.
import * as http from "node:http";

interface Failure {
  code: string;
  message: string;
}

interface ExecResult {
  exit_code: number;
  error?: Failure;
}

/** An error of the contract: its code says what happened. */
class SandboxError extends Error {
  readonly code: string;

  constructor(error: Failure) {
    super(`${error.code}: ${error.message}`);
    this.code = error.code;
  }
}

const encode = (text: string): string => Buffer.from(text).toString("base64");
const decode = (data: string): Buffer => Buffer.from(data, "base64");

/** The calls of docs/openapi.json. */
class Sandbox {
  constructor(private readonly socketPath: string) {}

  private send(method: string, path: string, body?: unknown): Promise<http.IncomingMessage> {
    return new Promise((resolve, reject) => {
      const request = http.request(
        { socketPath: this.socketPath, method, path: "/v1" + path, headers: { "Content-Type": "application/json" } },
        resolve,
      );
      request.on("error", reject);
      request.end(body === undefined ? undefined : JSON.stringify(body));
    });
  }

  async call<T>(path: string, body?: unknown, method = "POST"): Promise<T> {
    const response = await this.send(method, path, body);
    let text = "";
    for await (const piece of response) text += piece;
    const answer = JSON.parse(text);
    if (response.statusCode !== 200) throw new SandboxError(answer.error);
    return answer as T;
  }

  info(): Promise<{ kind: string; session: string }> {
    return this.call("/info", undefined, "GET");
  }

  async read(path: string): Promise<Buffer> {
    return decode((await this.call<{ content: string }>("/read", { path })).content);
  }

  write(path: string, content: string): Promise<{ digest: string }> {
    return this.call("/write", { path, content: encode(content) });
  }

  edit(path: string, before: string, after: string): Promise<{ count: number }> {
    return this.call("/edit", { path, old: encode(before), new: encode(after) });
  }

  /** Runs a command and returns its exit code; onOutput gets its output as it comes. */
  async exec(command: string, onOutput: (data: Buffer) => void = () => {}): Promise<number> {
    const response = await this.send("POST", "/exec/stream", { command });
    let rest = "";
    response.setEncoding("utf8");
    for await (const piece of response) {
      const lines = (rest + piece).split("\n");
      rest = lines.pop() ?? "";
      for (const line of lines) {
        const event = JSON.parse(line) as { data?: string; result?: ExecResult; error?: Failure };
        const failure = event.error ?? event.result?.error;
        if (failure) throw new SandboxError(failure);
        if (event.result) return event.result.exit_code;
        onOutput(decode(event.data ?? ""));
      }
    }
    throw new Error("the server ended before the command did");
  }

  tool(name: string, args: object): Promise<{ failed: boolean; text: string }> {
    return this.call("/tools/" + encodeURIComponent(name), args);
  }
}

async function main(socketPath: string): Promise<void> {
  const sandbox = new Sandbox(socketPath);
  const info = await sandbox.info();
  console.log("sandbox", info.kind, "session", info.session);

  await sandbox.write("notes/typescript.txt", "one\ntwo\n");
  console.log("edited", (await sandbox.edit("notes/typescript.txt", "two", "2")).count);
  console.log("read", JSON.stringify((await sandbox.read("notes/typescript.txt")).toString()));

  const pieces: Buffer[] = [];
  const code = await sandbox.exec("for i in 1 2 3; do echo line $i; done; exit 4", (data) => pieces.push(data));
  console.log("exit", code, JSON.stringify(Buffer.concat(pieces).toString()));

  // A command that runs delays no other call.
  const waiting = sandbox.exec("until [ -e go-on ]; do sleep 0.05; done");
  await sandbox.write("go-on", "");
  await waiting;

  try {
    await sandbox.read("missing");
  } catch (error) {
    console.log("refused", (error as SandboxError).code);
  }
  console.log("review", !(await sandbox.tool("RequestReview", { message: "from TypeScript" })).failed);
}

await main(process.argv[2] as string);
