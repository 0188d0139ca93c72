"""`diffcdr serve` as a process: what it prints works as printed, the page has its facts, a signal ends it."""

import dataclasses
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import requests

from assets.serving import registry
from assets.serving.registry import register
from assets.serving.server import NotServed, listening
from assets.serving.versions import NotRegistered, find, require
from assets.state.tracking import MlflowTracking
from tests.assets.axes import AXES
from tests.assets.house import STRICT
from tests.assets.house import house as trained_house

PROJECT = Path(__file__).resolve().parent.parent
# With a simple row that was never trained: only force promotes.
PROFILE = dataclasses.replace(STRICT, controls=("ridge_source",))


def command(house, *arguments: str) -> subprocess.Popen:
    """The command with the house's home and registry, as a shell starts it in the background."""
    return subprocess.Popen(
        [sys.executable, "-m", "pipeline.main", "serve", *arguments],
        # Without the environment's programs: nothing may be looked for by name.
        env={
            **{name: value for name, value in os.environ.items() if name != "PATH"},
            "PATH": "/usr/bin:/bin",
            "PYTHONPATH": str(PROJECT),
            "DIFFCDR_HOME": str(house.home),
            "MLFLOW_TRACKING_URI": house.tracking.uri,
        },
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_IGN),
    )


def started(house, *arguments: str) -> tuple[subprocess.Popen, list[str]]:
    """The command once it has said how to ask it, and the lines that it said."""
    process, lines = command(house, "-t", "tiny", "--port", "0", *arguments), []
    for line in process.stdout:
        lines.append(line)
        if line.rstrip().endswith("]}'"):
            return process, lines
    raise AssertionError(process.stderr.read())


def check_end(process: subprocess.Popen, number: signal.Signals) -> None:
    """A signal ends it at once, with one line."""
    start = time.monotonic()
    process.send_signal(number)
    said = process.communicate(timeout=60)[1]
    assert (process.returncode, len(said.splitlines())) == (128 + number, 1), said
    name = {signal.SIGINT: "Ctrl-C", signal.SIGTERM: "TERM"}[number]
    assert said == f"stopped by {name}: the server is down; the same command starts it again\n"
    assert time.monotonic() - start < 15


@pytest.fixture(scope="module")
def house():
    house = trained_house()
    register(house.store, house.tracking, AXES, "tiny", PROFILE, force=True)
    return house


@pytest.fixture(scope="module")
def served(house):
    process, lines = started(house)
    yield "".join(lines)
    check_end(process, signal.SIGTERM)


@pytest.fixture(scope="module")
def address(served) -> str:
    return re.search(r"http://127\.0\.0\.1:\d+", served)[0]


def test_it_says_what_it_is_and_what_to_know_of_it(served, house):
    version = find(house.tracking, "tiny")
    assert served.startswith(f"diffcdr-tiny version {version.number}, the champion: ")
    assert "the data are synthetic" in served
    assert "PROMOTED BY FORCE" in served


def test_the_printed_command_works_as_it_is(served):
    printed = served[served.index("curl ") :]
    done = subprocess.run(["sh", "-c", printed], capture_output=True, text=True, timeout=60)
    known, new = json.loads(done.stdout)["predictions"]
    for answer in (known, new):
        assert answer["model"] in ("emcdr", "ptupcdr")
        assert [each["rank"] for each in answer["items"]] == [1, 2, 3]
        assert {"item", "score", "rating", "median"} <= set(answer["items"][0])
    history = {each["item"] for each in json.loads(printed.split("-d '")[1][:-2])["inputs"][1]["history"]}
    assert all(set(each["because"]) <= history for each in new["items"])


def test_it_is_mlflows_server(address):
    for path in ("/ping", "/health", "/version"):
        assert requests.get(address + path, timeout=10).status_code == 200
    reply = requests.post(f"{address}/invocations", json={"inputs": [{"user_id": 7.5}]}, timeout=10)
    assert reply.json() == {"predictions": [{"error": "inputs[0].user_id: Input should be a valid string"}]}
    for method, path in (("GET", "/docs"), ("GET", "/openapi.json"), ("POST", "/"), ("GET", "/page/nothing")):
        assert requests.request(method, address + path, timeout=10).status_code == 404
    large = requests.post(f"{address}/invocations", data=b"x" * (2 << 20), timeout=10)
    assert large.status_code == 413
    for path in ("/", "/ping"):
        assert requests.get(address + path, headers={"X": "x" * 20_000}, timeout=10).status_code == 431


def test_the_page_needs_nothing_from_elsewhere(address):
    reply = requests.get(f"{address}/", timeout=10)
    assert reply.headers["content-type"].startswith("text/html")
    assert "default-src 'none'" in reply.headers["content-security-policy"]
    assert "http" not in re.sub(r'lang="en"', "", reply.text)
    assert not re.search(r"<(script|link|img)[^>]+(src|href)=\"(?!data:)", reply.text)


def ask(address: str, path: str, **query: str):
    reply = requests.get(f"{address}/page/{path}", params=query, timeout=10)
    assert reply.ok, reply.text
    return reply.json()


def test_the_page_knows_the_version_its_users_and_items(address, house):
    about = ask(address, "about")
    assert about["name"] == "diffcdr-tiny"
    assert about["synthetic"] is True
    assert about["forced"].startswith("there is no validation RMSE of ridge_source to compare")
    assert about["ratings"] == sorted(about["ratings"])
    [(users, items)] = house.query(
        "tiny_video", 'SELECT count(DISTINCT "user"), count(DISTINCT item) FROM ratings'
    )
    assert (about["users"], about["source_items"]) == (users, items)


def test_a_user_is_found_by_a_part_of_the_id_and_has_a_history(address, house):
    [(user, count)] = house.query(
        "tiny_video",
        'SELECT user_id, count(*) AS n FROM ratings JOIN users USING ("user") '
        "GROUP BY 1 ORDER BY 2 DESC, 1 LIMIT 1",
    )
    assert ask(address, "users", q=user.lower())[0] == {"id": user, "ratings": count}
    assert user in [each["id"] for each in ask(address, "users", q=user[-3:])]
    history = ask(address, "history", user=user)
    expected = house.query(
        "tiny_video",
        'SELECT item_id, rating FROM ratings JOIN users USING ("user") JOIN items USING (item) '
        f"WHERE user_id = '{user}'",
    )
    assert sorted((each["item"], each["rating"]) for each in history) == sorted(expected)
    assert requests.get(f"{address}/page/history", params={"user": "nobody"}, timeout=10).status_code == 404
    assert ask(address, "users", q="no such user") == []


def test_items_are_searched_the_most_rated_first(address, house):
    [(item,)] = house.query(
        "tiny_video",
        "SELECT item_id FROM ratings JOIN items USING (item) "
        "GROUP BY 1, item ORDER BY count(*) DESC, item LIMIT 1",
    )
    assert ask(address, "items")[0] == {"item": item}
    assert ask(address, "items", q=f" {item.lower()} ")[0] == {"item": item}


def test_a_page_of_another_site_cannot_ask(address):
    reply = requests.get(f"{address}/page/users", headers={"Host": "elsewhere.example"}, timeout=10)
    assert reply.status_code == 400


def test_ctrl_c_ends_it_also_in_the_background_where_a_shell_has_it_ignored(house):
    process, lines = started(house, "--no-page")
    address = re.search(r"http://127\.0\.0\.1:\d+", "".join(lines))[0]
    assert requests.get(f"{address}/", timeout=10).status_code == 404
    with requests.Session() as session:  # an idle connection holds nothing up
        session.get(f"{address}/ping", timeout=10)
        check_end(process, signal.SIGINT)


def test_a_port_that_is_taken_is_named():
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(NotServed, match=f"port {port} of 127.0.0.1 is taken: .* --port"):
            listening("127.0.0.1", port)


def test_an_answer_is_sent_without_waiting_for_the_other_side():
    with listening("127.0.0.1", 0) as server, socket.create_connection(server.getsockname()):
        connection, _ = server.accept()
        with connection:
            assert connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)


def test_an_address_that_is_none_is_named():
    with pytest.raises(NotServed, match="there is no port 99999"):
        listening("127.0.0.1", 99999)
    with pytest.raises(NotServed, match=r"cannot listen on 192\.0\.2\.1 port 5001: .* --host"):
        listening("192.0.2.1", 5001)


def test_without_a_version_it_says_how_to_make_one(house, tmp_path):
    with pytest.raises(
        NotRegistered, match=r"no champion .* `diffcdr register --task tiny_back --profile tuned`"
    ):
        require(house.tracking, "tiny_back")
    with pytest.raises(NotRegistered, match=r"no version of profile tuned .* --profile tuned`"):
        require(house.tracking, "tiny", "tuned")
    nowhere = MlflowTracking(tracking_uri=f"sqlite:///{tmp_path}/none.db", home=str(tmp_path))
    assert find(nowhere, "tiny") is None


def test_the_latest_version_of_a_profile_is_found(house):
    first = find(house.tracking, "tiny", "strict")
    register(house.store, house.tracking, AXES, "tiny", PROFILE, force=True)
    latest = find(house.tracking, "tiny", "strict")
    assert int(latest.number) == int(first.number) + 1
    assert latest == find(house.tracking, "tiny")
    assert latest.name == registry.registered_name("tiny")
