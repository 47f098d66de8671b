"""A playground of a tiny run, in this process, and requests to it as a page makes them."""

import http.client
import json
import threading

import pytest


class Client:
    """Requests to a server; `headers` replace those that a page of its own would send."""

    def __init__(self, server):
        self.server, self.port = server, server.guard.port

    def request(self, method, path, body=None, *, token=None, headers=None):
        token = self.server.guard.token if token is None else token
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=120)
        sent = {"Content-Type": "application/json"} if body is not None else {}
        content = json.dumps(body) if isinstance(body, dict | list) else body
        connection.request(method, f"/{token}/{path}", content, {**sent, **(headers or {})})
        return connection.getresponse()

    def get(self, path, **how):
        response = self.request("GET", path, **how)
        return response.status, response.read()

    def post(self, path, body, **how):
        """The status and every event of the answer."""
        response = self.request("POST", f"api/{path}", body, **how)
        return response.status, [json.loads(line) for line in response.read().splitlines()]

    def events(self, name, /, **values):
        """A panel's events, which must be without an error."""
        status, events = self.post(name, values)
        assert status == 200 and not [e for e in events if "error" in e], events[-1]
        return events

    def error(self, name, /, **values):
        """The one line that a panel ends with."""
        _, events = self.post(name, values)
        line = events[-1]["error"]
        assert "\n" not in line
        return line


@pytest.fixture(scope="module")
def server(tiny_run):
    from diffjax.playground.runs import Runs
    from diffjax.playground.server import Server

    made = Server(Runs([tiny_run]), 0)
    thread = threading.Thread(target=made.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    yield made
    made.shutdown()
    thread.join()
    made.server_close()


@pytest.fixture(scope="module")
def client(server):
    return Client(server)
