"""A headless Chromium driven by its DevTools protocol, with the standard library alone."""

import base64
import itertools
import json
import os
import shutil
import socket
import struct
import subprocess
import tempfile
import time
import urllib.parse
import urllib.request
from pathlib import Path

NAMES = ("chromium", "chromium-browser", "google-chrome", "chrome")
FLAGS = (
    "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run",
    "--disable-background-networking", "--disable-extensions", "--remote-debugging-port=0",
    "--hide-scrollbars", "--force-color-profile=srgb",
)  # fmt: skip


def executable():
    """The browser's path, or None."""
    return next((found for name in NAMES if (found := shutil.which(name))), None)


class WebSocket:
    """As much of RFC 6455 as DevTools needs: text messages, from a client."""

    def __init__(self, address):
        parts = urllib.parse.urlsplit(address)
        self.socket = socket.create_connection((parts.hostname, parts.port), timeout=120)
        key = base64.b64encode(os.urandom(16)).decode()
        self.socket.sendall(
            f"GET {parts.path} HTTP/1.1\r\nHost: {parts.netloc}\r\nUpgrade: websocket\r\n"
            f"Connection: Upgrade\r\nSec-WebSocket-Key: {key}\r\nSec-WebSocket-Version: 13\r\n"
            "\r\n".encode()
        )
        self.file = self.socket.makefile("rb")
        assert b"101" in self.file.readline()
        while self.file.readline().strip():
            pass

    def send(self, text):
        data = text.encode()
        mask = os.urandom(4)
        length = len(data)
        head = bytes([0x81])
        if length < 126:
            head += bytes([0x80 | length])
        elif length < 2**16:
            head += bytes([0x80 | 126]) + struct.pack(">H", length)
        else:
            head += bytes([0x80 | 127]) + struct.pack(">Q", length)
        repeated = (mask * (length // 4 + 1))[:length]
        masked = (int.from_bytes(data) ^ int.from_bytes(repeated)).to_bytes(length)
        self.socket.sendall(head + mask + masked)

    def receive(self):
        parts = []
        while True:
            first, second = self.file.read(2)
            length = second & 0x7F
            if length == 126:
                (length,) = struct.unpack(">H", self.file.read(2))
            elif length == 127:
                (length,) = struct.unpack(">Q", self.file.read(8))
            data = self.file.read(length)
            if first & 0x0F in (0, 1):
                parts.append(data)
            if first & 0x80 and first & 0x0F in (0, 1):
                return b"".join(parts).decode()


class Browser:
    """One page; `run` evaluates JavaScript in it."""

    def __init__(self):
        self.folder = tempfile.mkdtemp(prefix="chromium")
        self.process = subprocess.Popen(
            [executable(), *FLAGS, f"--user-data-dir={self.folder}", "about:blank"],
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        written = Path(self.folder, "DevToolsActivePort")
        wait(lambda: written.exists() and "\n" in written.read_text(), 60)
        port = written.read_text().split()[0]
        pages = json.load(urllib.request.urlopen(f"http://127.0.0.1:{port}/json"))
        page = next(page for page in pages if page["type"] == "page")
        self.socket, self.numbers = WebSocket(page["webSocketDebuggerUrl"]), itertools.count(1)
        self.events = []
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.call(f"{domain}.enable")

    def call(self, method, **params):
        number = next(self.numbers)
        self.socket.send(json.dumps({"id": number, "method": method, "params": params}))
        while True:
            found = json.loads(self.socket.receive())
            if found.get("id") == number:
                assert "error" not in found, (method, found["error"])
                return found["result"]
            self.events.append(found)

    def run(self, script):
        found = self.call(
            "Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True
        )
        assert "exceptionDetails" not in found, found["exceptionDetails"]
        return found["result"].get("value")

    def open(self, address):
        self.call("Page.navigate", url="about:blank")
        self.call("Page.navigate", url=address)

    def wait(self, script, seconds=120):
        """Until a script is true."""
        try:
            wait(lambda: self.run(script), seconds)
        except AssertionError:
            raise AssertionError(f"{script}: {self.run('document.body.innerText')}") from None

    def key(self, name, code=0):
        for kind in ("rawKeyDown", "keyUp"):
            self.call("Input.dispatchKeyEvent", type=kind, key=name, windowsVirtualKeyCode=code)

    def drag(self, *points):
        """The pointer pressed along points (x, y) of the window."""

        def mouse(kind, x, y, **more):
            self.call("Input.dispatchMouseEvent", type=kind, x=x, y=y, button="left", **more)

        mouse("mousePressed", *points[0], buttons=1, clickCount=1)
        for point in points[1:]:
            mouse("mouseMoved", *point, buttons=1)
        mouse("mouseReleased", *points[-1], clickCount=1)

    def window(self, width, height, *, dark=False):
        self.call(
            "Emulation.setDeviceMetricsOverride",
            width=width, height=height, deviceScaleFactor=1, mobile=False,
        )  # fmt: skip
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.call("Emulation.setEmulatedMedia", features=[scheme])

    def screenshot(self, path):
        found = self.call("Page.captureScreenshot", format="png", captureBeyondViewport=True)
        with open(path, "wb") as file:
            file.write(base64.b64decode(found["data"]))

    def complaints(self):
        """Errors of scripts, blocked requests and violated policies."""
        self.run("0")
        bad = [e["params"] for e in self.events if e["method"] == "Runtime.exceptionThrown"]
        bad += [
            e["params"]["entry"] for e in self.events
            if e["method"] == "Log.entryAdded" and e["params"]["entry"]["level"] == "error"
        ]  # fmt: skip
        return bad

    def addresses(self):
        """Every address that was asked for."""
        return [
            e["params"]["request"]["url"] for e in self.events
            if e["method"] == "Network.requestWillBeSent"
        ]  # fmt: skip

    def close(self):
        self.process.terminate()
        self.process.wait(30)
        shutil.rmtree(self.folder, ignore_errors=True)


def wait(condition, seconds):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it took too long"
        time.sleep(0.05)
