#!/usr/bin/env python3
"""A sandbox of Galley for a framework in Python, with the standard library alone.

Start `galley serve` in a project and give this program the path that it prints:

    galley serve --socket ./galley.sock &
    python3 sandbox.py ./galley.sock

What it changes lands in the session: look at it with `galley diff`.
"""

import base64
import http.client
import json
import socket
import sys
import threading
import urllib.parse


class SandboxError(Exception):
    """An error of the contract: its code says what happened."""

    def __init__(self, error):
        super().__init__(f"{error['code']}: {error['message']}")
        self.code = error["code"]


class Connection(http.client.HTTPConnection):
    """HTTP over a unix socket."""

    def __init__(self, path):
        super().__init__("galley")
        self.path = path

    def connect(self):
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.connect(self.path)


class Sandbox:
    """The calls of docs/openapi.json. Each has a connection of its own, so that
    none waits for another."""

    def __init__(self, path):
        self.path = path

    def _send(self, method, path, body):
        conn = Connection(self.path)
        conn.request(method, "/v1" + path, None if body is None else json.dumps(body), {"Content-Type": "application/json"})
        response = conn.getresponse()
        if response.status != 200:
            raise SandboxError(json.load(response)["error"])
        return response

    def call(self, path, body=None, method="POST"):
        with self._send(method, path, body) as response:
            return json.load(response)

    def info(self):
        return self.call("/info", method="GET")

    def read(self, path, **options):
        return base64.b64decode(self.call("/read", {"path": path, **options})["content"])

    def write(self, path, content, **options):
        return self.call("/write", {"path": path, "content": base64.b64encode(content).decode(), **options})

    def edit(self, path, old, new, **options):
        encode = lambda text: base64.b64encode(text).decode()
        return self.call("/edit", {"path": path, "old": encode(old), "new": encode(new), **options})

    def exec(self, command, on_output=None, **options):
        """Runs a command and returns its exit code; on_output gets its output as it comes."""
        with self._send("POST", "/exec/stream", {"command": command, **options}) as response:
            for line in response:
                event = json.loads(line)
                if "result" in event:
                    if "error" in event["result"]:
                        raise SandboxError(event["result"]["error"])
                    return event["result"]["exit_code"]
                if on_output:
                    on_output(base64.b64decode(event.get("data", "")))
        raise ConnectionError("the server ended before the command did")

    def tool(self, name, **arguments):
        return self.call("/tools/" + urllib.parse.quote(name), arguments)


def main(path):
    sandbox = Sandbox(path)
    info = sandbox.info()
    print("sandbox", info["kind"], "session", info["session"])

    sandbox.write("notes/python.txt", b"one\ntwo\n")
    print("edited", sandbox.edit("notes/python.txt", b"two", b"2")["count"])
    print("read", sandbox.read("notes/python.txt"))

    pieces = []
    code = sandbox.exec("for i in 1 2 3; do echo line $i; done; exit 4", pieces.append)
    print("exit", code, b"".join(pieces))

    # A command that runs delays no other call.
    waiting = threading.Thread(target=sandbox.exec, args=("until [ -e go-on ]; do sleep 0.05; done",))
    waiting.start()
    sandbox.write("go-on", b"")
    waiting.join()

    try:
        sandbox.read("missing")
    except SandboxError as error:
        print("refused", error.code)
    print("review", sandbox.tool("RequestReview", message="from Python")["failed"] is False)


if __name__ == "__main__":
    main(sys.argv[1])
