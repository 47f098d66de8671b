"""Which requests are answered, and what wrong ones are answered with; no browser is needed."""

import json
import socket
import time

import pytest

from diffjax.errors import UserError
from diffjax.playground import guard, worker


def test_the_page_and_its_files_have_the_strict_policy(client):
    for path in ("", "static/app.js", "static/style.css", "api/runs"):
        response = client.request("GET", path)
        assert response.status == 200, path
        assert response.headers["Content-Security-Policy"].startswith("default-src 'self';")
        assert response.headers["Referrer-Policy"] == "no-referrer"


def test_the_page_names_no_other_place(client):
    from importlib import resources

    for file in (resources.files("diffjax.playground") / "static").iterdir():
        text = file.read_text(encoding="utf-8").replace("http://www.w3.org/2000/svg", "")
        assert "http:" not in text and "https:" not in text, file.name
        assert "style=" not in text and "onclick=" not in text  # the policy forbids them


@pytest.mark.parametrize("token", ["", "wrong", "é"])
def test_no_answer_without_the_token(client, token):
    from urllib.parse import quote

    for method, path in (("GET", ""), ("GET", "static/app.js"), ("POST", "api/draw")):
        response = client.request(
            method, path, {} if method == "POST" else None, token=quote(token)
        )
        assert response.status == 403


@pytest.mark.parametrize(
    "headers",
    [
        {"Origin": "https://example.org"},
        {"Origin": "null"},
        {"Origin": "http://127.0.0.1:1"},
        {"Host": "example.org"},
        {"Host": "127.0.0.1"},
        {"Sec-Fetch-Site": "cross-site"},
        {"Sec-Fetch-Site": "same-site"},
    ],
)
def test_no_other_page_is_answered(client, headers):
    assert client.get("", headers=headers)[0] == 403
    assert client.post("draw", {}, headers=headers)[0] == 403


def test_its_own_page_is_answered(client):
    for host in ("127.0.0.1", "localhost"):
        own = f"{host}:{client.port}"
        headers = {"Host": own, "Origin": f"http://{own}", "Sec-Fetch-Site": "same-origin"}
        assert client.get("api/runs", headers=headers)[0] == 200


@pytest.mark.parametrize(
    "path",
    [
        "static/../server.py", "static/..%2fserver.py", "static//etc/passwd", "static/", "nothing",
        "../static/app.js", "api/draw", "grids/../config.json",
    ],
)  # fmt: skip
def test_nothing_else_is_read(client, path):
    status, content = client.get(path)
    assert status in (400, 403, 404)
    assert list(json.loads(content)) == ["error"]


def test_grids_are_of_the_run_alone(client, server, tiny_run):
    (run,) = server.runs.listed()
    name = sorted((tiny_run / "samples").iterdir())[0].name
    status, content = client.get(f"grids/{run['name']}/{name}")
    assert status == 200 and content == (tiny_run / "samples" / name).read_bytes()
    link = tiny_run / "samples" / "step_0000099.png"
    link.symlink_to("/etc/passwd")
    try:
        for bad in (link.name, "..%2fconfig.json", "%2e%2e/config.json", "step_1.txt"):
            status, content = client.get(f"grids/{run['name']}/{bad}")
            assert status in (400, 404) and b"root:" not in content
    finally:
        link.unlink()


def test_sizes_are_bounded(client):
    large = {"Content-Length": str(guard.LARGEST_BODY + 1)}
    assert client.post("draw", "", headers=large)[0] == 413
    assert client.post("draw", "", headers={"Content-Length": "9" * 40})[0] == 413
    assert client.post("draw", "", headers={"Content-Length": "-1"})[0] == 411
    assert client.post("draw", "{}", headers={"Content-Type": "text/plain"})[0] == 415
    assert client.get("x" * guard.LONGEST_PATH)[0] == 414


@pytest.mark.parametrize("body", ["{", "[" * 100_000, '"text"', "[1]", "nan"])
def test_what_is_no_request_is_one_line(client, body):
    status, events = client.post("draw", body)
    assert status in (200, 400) and "expected settings by name" in events[-1]["error"]


@pytest.mark.parametrize(
    ("panel", "values", "expected"),
    [
        ("draw", {"run": "other"}, "run is 'other': expected one of"),
        ("draw", {"sead": 1}, "'sead' is no setting"),
        ("draw", {"seed": "x"}, "seed is 'x': expected a whole number from 0"),
        ("draw", {"seed": -1}, "seed is -1"),
        ("draw", {"seed": 2**32}, "expected a whole number from 0 to 4294967295"),
        ("draw", {"label": 10}, "label is 10: expected a whole number from -1 to 9"),
        ("draw", {"prompt": "a cat"}, "this run takes no text"),
        ("draw", {"steps": 0}, "steps is 0: expected a whole number from 1 to 1000"),
        ("draw", {"sampler": "nope"}, "sampler is 'nope': expected one of ancestral"),
        ("draw", {"sampler": "ddim(eta=9)"}, "eta"),
        ("draw", {"sampler": "os:system(command='true')"}, "expected one of ancestral"),
        ("draw", {"sampler": "ddim(eta=__import__('os'))"}, "expected 'name'"),
        ("draw", {"grid": "posixpath:join"}, "expected one of leading"),
        ("draw", {"guidance": "autoguidance(workdir='/root', scale=2)"}, "expected one of none"),
        ("draw", {"guidance": "classifier_free", "scale": "many"}, "scale is 'many'"),
        ("draw", {"guidance": "classifier_free", "scale": "1e999"}, "scale"),
        ("draw", {"negative_prompt": "x" * 3000}, "3000 letters"),
        ("compare", {"by": "colour"}, "by is 'colour': expected one of sampler"),
        ("compare", {"items": ["ddim"] * 13}, "13 pictures to compare"),
        ("mix", {"between": "walk", "seeds": "1"}, "a walk needs 2 to 8"),
        ("mix", {"count": 99}, "count is 99"),
        ("edit", {"task": "fly"}, "task is 'fly': expected one of inpaint"),
        ("edit", {"mask": "AAAA"}, "mask is not of 8x8 cells"),
        ("edit", {"picture": {"shape": [8, 8, 1], "data": "AAAA"}}, "3 bytes for 8x8"),
        ("edit", {"picture": {"shape": [8, 8, 3], "data": ""}}, "3 channels"),
        ("edit", {"picture": {"shape": [1e9, 8, 1], "data": ""}}, "no picture"),
        ("edit", {"picture": {"shape": [10**9, 10**9, 1], "data": ""}}, "1000000000"),
        ("edit", {"task": "upscale"}, "low-resolution images"),
        ("toy", {}, "0 points"),
        ("toy", {"points": "AAA?"}, "no list of points"),
        ("toy", {"points": "AAAA", "sampler": "flow_map"}, "flow map"),
        ("code", {"panel": "toy", "values": {}}, "panel is 'toy'"),
        ("code", {"panel": "draw", "values": 3}, "expected settings by name"),
    ],
)  # fmt: skip
def test_wrong_values_are_one_line(client, server, panel, values, expected):
    if panel in ("draw", "compare", "mix", "edit") and "run" not in values:
        values = {"run": server.runs.listed()[0]["name"], **values}
    assert expected in client.error(panel, **values)


def test_work_ends_when_the_page_moves_on(client, server):
    run = server.runs.listed()[0]["name"]
    body = json.dumps({"run": run, "sampler": "ddim", "steps": 1000})
    with socket.create_connection(("127.0.0.1", client.port), timeout=120) as page:
        page.sendall(
            f"POST /{server.guard.token}/api/draw HTTP/1.1\r\nHost: 127.0.0.1:{client.port}\r\n"
            f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n{body}".encode()
        )
        lines = page.makefile("rb")
        steps = 0
        while steps < 3:
            steps += b'"step"' in lines.readline()
        lines.close()
    # It would go on for hundreds of steps more; the next request would wait for them.
    stepwise = server.runs[run].stepwise()
    deadline = time.monotonic() + 60
    while server.worker.is_busy:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    assert 3 <= stepwise.evaluations < 900
    assert client.events("draw", run=run, steps=2)[-1]["evaluations"] >= 2


def test_a_job_that_was_cancelled_before_it_began_is_not_done():
    done = []
    jobs = worker.Worker()
    first = jobs.submit(lambda report: time.sleep(0.3))
    second = jobs.submit(lambda report: done.append(2))
    third = jobs.submit(lambda report: report({"third": True}))
    second.cancel()
    assert list(third.events(lambda: True)) == [{"third": True}]
    assert not done and first.begun


def test_too_many_waiting_requests_are_refused():
    jobs = worker.Worker()
    block = jobs.submit(lambda report: time.sleep(0.5))
    while not block.begun:
        time.sleep(0.01)
    for _ in range(worker.MOST_WAITING):
        jobs.submit(lambda report: None)
    with pytest.raises(UserError, match="waiting already"):
        jobs.submit(lambda report: None)


def test_an_unexpected_error_is_an_event_and_the_thread_goes_on(capsys):
    jobs = worker.Worker()
    bad = jobs.submit(lambda report: {}["nothing"])
    assert list(bad.events(lambda: True)) == [{"error": "KeyError: 'nothing'"}]
    good = jobs.submit(lambda report: report({"good": 1}))
    assert list(good.events(lambda: True)) == [{"good": 1}]
