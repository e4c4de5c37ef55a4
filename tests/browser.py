"""A real browser without a window, spoken to in its own protocol over a pipe.

Chrome DevTools Protocol: messages of JSON, each ended by a zero byte.
"""

from __future__ import annotations

import base64
import json
import os
import select
import shutil
import subprocess
import sys
import time
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

NAMES = ("chromium-headless-shell", "chromium", "chromium-browser", "google-chrome")
# `make check` unpacks here what a package manager did not install.
UNPACKED = Path(__file__).parents[1] / ".venv" / "chromium" / "usr" / "lib"
OPTIONS = (
    "--headless", "--no-sandbox", "--remote-debugging-pipe", "--hide-scrollbars",
    "--window-size=900,700", "--use-angle=swiftshader", "--enable-unsafe-swiftshader",
    "--host-resolver-rules=MAP * ~NOTFOUND", "--no-first-run", "--disable-background-networking",
)  # fmt: skip
# The protocol is spoken on descriptors 3 and 4, whatever the pipes are here.
LAUNCHER = """
import fcntl, os, sys
ends = [fcntl.fcntl(int(end), fcntl.F_DUPFD, 100) for end in sys.argv[1:3]]
for end, number in zip(ends, (3, 4)):
    os.dup2(end, number)
    os.close(end)
os.execv(sys.argv[3], sys.argv[3:])
"""
PATIENCE = 240.0  # seconds: WebGL without a GPU, perhaps beside other tests


def find() -> tuple[str, dict[str, str]] | None:
    """The command of a browser and the environment that it needs; None if there is none."""
    for name in NAMES:
        if (found := shutil.which(name)) is not None:
            return found, dict(os.environ)
    program = UNPACKED / "chromium" / "chromium-headless-shell"
    if not program.is_file():
        return None
    libraries = [str(p) for p in UNPACKED.glob("*-linux-gnu")]
    libraries += [f"{folder}/pulseaudio" for folder in libraries]
    return str(program), {**os.environ, "LD_LIBRARY_PATH": os.pathsep.join(libraries)}


class Browser:
    """One page at a time; everything that it reports is in `events`."""

    def __init__(self, folder: Path) -> None:
        found = find()
        if found is None:
            pytest.skip("needs Chromium")
        command, environment = found
        theirs_in, self._out = os.pipe()
        self._in, theirs_out = os.pipe()
        ends = [str(theirs_in), str(theirs_out)]
        self._process = subprocess.Popen(
            [sys.executable, "-c", LAUNCHER, *ends, command, *OPTIONS, f"--user-data-dir={folder}"],
            pass_fds=(theirs_in, theirs_out), env=environment, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        os.close(theirs_in)
        os.close(theirs_out)
        self._buffer, self._sent, self._session = b"", 0, None
        self.events: list[dict] = []
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        attached = self.call("Target.attachToTarget", targetId=target, flatten=True)
        self._session = attached["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.call(f"{domain}.enable")

    def call(self, method: str, **params: Any) -> dict:
        """Send a command and wait for its answer."""
        self._sent += 1
        message = {"id": self._sent, "method": method, "params": params}
        if self._session is not None:
            message["sessionId"] = self._session
        os.write(self._out, json.dumps(message).encode() + b"\0")
        while True:
            answer = self._receive()
            if answer.get("id") == self._sent:
                assert "error" not in answer, answer
                return answer["result"]
            self.events.append(answer)

    def _receive(self) -> dict:
        deadline = time.monotonic() + PATIENCE
        while b"\0" not in self._buffer:
            ready, _, _ = select.select([self._in], [], [], max(0.0, deadline - time.monotonic()))
            assert ready, "the browser does not answer"
            part = os.read(self._in, 1 << 16)
            assert part, "the browser has ended"
            self._buffer += part
        message, _, self._buffer = self._buffer.partition(b"\0")
        return json.loads(message)

    def open(self, path: Path) -> None:
        """Load a file; events of earlier ones are forgotten."""
        self.events.clear()
        self.call("Page.navigate", url=path.as_uri())
        while not self.found("Page.loadEventFired"):
            self.events.append(self._receive())

    def found(self, *methods: str) -> list[dict]:
        """What was reported under these names."""
        return [e["params"] for e in self.events if e.get("method") in methods]

    def evaluate(self, expression: str) -> Any:
        """The value of JavaScript, promises waited for."""
        answer = self.call(
            "Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True
        )
        assert "exceptionDetails" not in answer, answer
        return answer["result"].get("value")

    def pixels(self) -> np.ndarray:
        """What is on the screen, ``(height, width, 3)``."""
        shot = self.call("Page.captureScreenshot", format="png")["data"]
        return np.asarray(Image.open(BytesIO(base64.b64decode(shot))).convert("RGB"))

    def close(self) -> None:
        """End the browser."""
        self._session = None
        try:
            self.call("Browser.close")
        finally:
            os.close(self._out)
            os.close(self._in)
            try:
                self._process.wait(20)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
