# SPDX-License-Identifier: Apache-2.0
"""A process that is measured: it does one request a line and stays warm between requests.

The bench keeps one that has imported Orbax and one that knows nothing but NumPy, so that neither side pays for the
other's imports, memory or threads. A worker that hangs on a mount can be killed; the bench itself never touches one.
"""

import json
import os
import select
import subprocess
import sys
import time

HERE = os.path.dirname(os.path.abspath(__file__))


class WorkerError(RuntimeError):
    pass


class Worker:
    """The bench's end. `ask` waits at most `timeout` seconds; after a failure the next request starts it anew."""

    def __init__(self, script):
        self.script, self.process, self.buffer = script, None, b""

    def start(self):
        env = dict(os.environ, JAX_PLATFORMS="cpu", PYTHONDONTWRITEBYTECODE="1")
        self.process = subprocess.Popen(
            [sys.executable, os.path.join(HERE, self.script)], env=env, stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )
        self.buffer = b""

    def ask(self, op, timeout=120, **arguments):
        if self.process is None:
            self.start()
            self.ask("hello", timeout=120)
        request = json.dumps({"op": op, **arguments}).encode() + b"\n"
        try:
            self.process.stdin.write(request)
            self.process.stdin.flush()
            reply = json.loads(self.read_line(time.monotonic() + timeout))
        except (OSError, ValueError, WorkerError) as error:
            self.stop()
            raise WorkerError(f"{self.script}: {op}: {error}") from error
        if "error" in reply:
            raise WorkerError(f"{self.script}: {op}: {reply['error']}")
        return reply["result"]

    def read_line(self, deadline):
        while b"\n" not in self.buffer:
            left = deadline - time.monotonic()
            if left <= 0 or not select.select([self.process.stdout], [], [], left)[0]:
                raise WorkerError("no answer in time")
            piece = os.read(self.process.stdout.fileno(), 1 << 20)
            if not piece:
                raise WorkerError("it ended")
            self.buffer += piece
        line, _, self.buffer = self.buffer.partition(b"\n")
        return line

    def stop(self):
        if self.process is None:
            return
        self.process.kill()
        try:
            self.process.wait(10)
        except subprocess.TimeoutExpired:
            print(f"bench: {self.script} does not end", file=sys.stderr)
        self.process = None


def serve(operations):
    """The worker's end: `operations` are functions by name. Whatever they print goes to stderr."""
    out = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    for line in sys.stdin:
        request = json.loads(line)
        operation = operations.get(request.pop("op"), lambda: None)
        try:
            reply = {"result": operation(**request)}
        except Exception as error:  # any failure is the bench's to report, and must not end the worker
            reply = {"error": f"{type(error).__name__}: {error}"[:500]}
        print(json.dumps(reply), file=out, flush=True)
