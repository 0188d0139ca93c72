import errno
import gzip
import hashlib
import logging
import random
import re
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import fsspec
import pytest
import tenacity

from assets.data import download
from assets.data.download import DownloadError, Fetched, fetch

NO_WAIT = tenacity.wait_none()
CONTENT = random.Random(0).randbytes(600_000)
GZIP = gzip.compress(b"".join(b'{"n": %d}\n' % n for n in range(20_000)))


class Server:
    """Serves `content` as `answers` say, one a request and the last for the rest; notes what was sent."""

    def __init__(self):
        self.content, self.etag = CONTENT, '"v1"'
        self.answers = ["whole"]
        self.requests, self.sent = [], []

    def answer(self, handler):
        kind = self.answers[min(len(self.requests), len(self.answers) - 1)]
        self.requests.append(dict(handler.headers))
        if isinstance(kind, int):
            return self.send(handler, kind, b"no", {"Content-Length": "2"})
        body, status, headers = self.content, 200, {}
        span = re.fullmatch(r"bytes=(\d+)-", handler.headers.get("Range", ""))
        if span and kind != "no ranges" and handler.headers.get("If-Range") == self.etag:
            start = int(span[1])
            if start >= len(body):
                return self.send(handler, 416, b"", {"Content-Range": f"bytes */{len(body)}"})
            headers["Content-Range"] = f"bytes {start}-{len(body) - 1}/{len(body)}"
            body, status = body[start:], 206
        headers |= {"Content-Length": str(len(body)), "ETag": self.etag}
        if kind == "half":
            body = body[: len(body) // 2]
        if kind == "change":
            body, self.content, self.etag = body[: len(body) // 2], GZIP, '"v2"'
        if kind == "longer than announced":
            headers["Content-Length"] = str(len(body) // 2)
        if kind == "labelled as an encoding":
            headers["Content-Encoding"] = "gzip"
        return self.send(handler, status, body, headers)

    def send(self, handler, status, body, headers):
        handler.send_response(status)
        for name, value in headers.items():
            handler.send_header(name, value)
        handler.end_headers()
        handler.wfile.write(body)
        self.sent.append(len(body))


@pytest.fixture
def server(monkeypatch):
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    state = Server()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            state.answer(self)

        def log_message(self, *args):
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as http:
        thread = threading.Thread(target=http.serve_forever, args=(0.01,))
        thread.start()
        state.url = f"http://127.0.0.1:{http.server_port}/reviews.bin"
        yield state
        http.shutdown()
        thread.join()


@pytest.fixture
def path(tmp_path):
    return tmp_path / "raw" / "reviews.bin"


def _get(server, path, **options):
    return fetch(server.url, path, wait=NO_WAIT, **options)


def _left(path):
    return sorted(file.name for file in path.parent.iterdir() if file.suffix != ".lock")


def test_a_file_arrives_whole_and_alone(server, path):
    got = _get(server, path)
    assert path.read_bytes() == CONTENT
    assert got == Fetched(server.url, 600_000, hashlib.sha256(CONTENT).hexdigest(), got.fetched_at)
    assert got.fetched_at.endswith("+00:00")
    assert _left(path) == ["reviews.bin"]


def test_a_dropped_connection_goes_on_where_it_stopped(server, path):
    server.answers = ["half", "whole"]
    _get(server, path)
    assert path.read_bytes() == CONTENT
    start = int(server.requests[1]["Range"].removeprefix("bytes=").removesuffix("-"))
    assert start > 200_000
    assert server.sent == [300_000, 600_000 - start]
    assert server.requests[1]["If-Range"] == '"v1"'


def test_the_next_call_goes_on_from_what_an_earlier_one_left(server, path):
    server.answers = ["half", "whole"]
    with pytest.raises(DownloadError, match=r"tried 1 times.*bytes are kept in .*reviews\.bin\.part"):
        _get(server, path, attempts=1)
    assert not path.exists()
    assert _left(path) == ["reviews.bin.part", "reviews.bin.part.json"]
    _get(server, path, attempts=1)
    assert path.read_bytes() == CONTENT
    assert server.sent[1] < 400_000


def test_a_download_that_had_all_bytes_is_only_checked(server, path):
    server.answers = ["half"]
    with pytest.raises(DownloadError):
        _get(server, path, attempts=1)
    path.with_name("reviews.bin.part").write_bytes(CONTENT)
    _get(server, path)
    assert path.read_bytes() == CONTENT
    assert server.sent[1:] == [0]


def test_a_partial_file_of_another_url_is_not_continued(server, path):
    server.answers = ["half", "whole"]
    with pytest.raises(DownloadError):
        _get(server, path, attempts=1)
    server.url += "?edition=2"
    _get(server, path)
    assert "Range" not in server.requests[1]
    assert path.read_bytes() == CONTENT


@pytest.mark.parametrize("answers", [["half", "no ranges"], ["change", "whole"]])
def test_starts_over_without_ranges_or_when_the_file_changed(server, path, answers):
    server.answers = answers
    _get(server, path)
    assert "Range" in server.requests[1]
    assert path.read_bytes() == server.content
    assert server.sent[-1] == len(server.content)


def test_starts_over_when_the_server_ignores_if_range(server, path, monkeypatch):
    """A part of the new version must not be glued to a part of the old one."""
    server.answers = ["half", "whole"]
    with pytest.raises(DownloadError):
        _get(server, path, attempts=1)
    server.content, etag = CONTENT[::-1], server.etag
    monkeypatch.setattr(server, "send", _with_etag(server.send, '"v2"'))
    _get(server, path)
    assert server.requests[1]["If-Range"] == etag
    assert "Range" not in server.requests[2]
    assert path.read_bytes() == CONTENT[::-1]


def _with_etag(send, etag):
    return lambda handler, status, body, headers: send(handler, status, body, headers | {"ETag": etag})


def test_a_weak_etag_is_no_ground_to_go_on(server, path):
    server.etag, server.answers = 'W/"v1"', ["half", "whole"]
    _get(server, path)
    assert "Range" not in server.requests[1]
    assert path.read_bytes() == CONTENT


def test_a_body_shorter_than_announced_is_never_used(server, path):
    server.answers = ["half"]
    server.etag = 'W/"v1"'
    with pytest.raises(DownloadError, match=r"http://.*tried 3 times"):
        _get(server, path, attempts=3)
    assert len(server.requests) == 3
    assert not path.exists()


def test_a_body_longer_than_announced_is_found_out_by_its_gzip_stream(server, path):
    server.content, server.answers = GZIP, ["longer than announced"]
    with pytest.raises(DownloadError, match="gzip stream ends early"):
        _get(server, path)
    assert not path.exists()


def test_not_found_is_one_error_at_once(server, path):
    server.answers = [404]
    with pytest.raises(DownloadError, match=r"reviews\.bin: HTTP 404 Not Found; check the domain's url"):
        _get(server, path)
    assert len(server.requests) == 1


@pytest.mark.parametrize("status", [503, 429])
def test_a_busy_server_is_asked_again(server, path, status):
    server.answers = [status, status, "whole"]
    _get(server, path)
    assert path.read_bytes() == CONTENT
    assert len(server.requests) == 3


def test_no_server_is_tried_again_and_named(path, caplog):
    with pytest.raises(DownloadError, match=r"http://127\.0\.0\.1:1/x: the connection failed"):
        fetch("http://127.0.0.1:1/x", path, attempts=3, wait=NO_WAIT)
    assert caplog.text.count("trying again") == 2


def test_backoff_grows_and_is_bounded():
    state = tenacity.RetryCallState(None, None, (), {})

    def wait(attempt):
        state.attempt_number = attempt
        return download.backoff(state)

    assert 1 <= wait(1) <= 2
    assert 8 <= wait(4) <= 9
    assert wait(50) == 60


def test_a_wrong_sha256_is_set_aside(server, path):
    with pytest.raises(DownloadError, match=hashlib.sha256(CONTENT).hexdigest()):
        _get(server, path, sha256="0" * 64)
    assert _left(path) == ["reviews.bin.bad"]
    _get(server, path, sha256=hashlib.sha256(CONTENT).hexdigest())
    assert path.read_bytes() == CONTENT
    assert _left(path) == ["reviews.bin"]


@pytest.mark.parametrize("cut", [8, 5_000])
def test_a_truncated_gzip_file_says_how_much_was_readable(server, path, cut):
    server.content = GZIP[:-cut]
    with pytest.raises(DownloadError) as caught:
        _get(server, path)
    size, lines = re.search(r"unpack to ([\d,]+) bytes, ([\d,]+) whole lines", str(caught.value)).groups()
    whole = gzip.decompress(GZIP)
    size, lines = int(size.replace(",", "")), int(lines.replace(",", ""))
    assert whole[:size].count(b"\n") == lines
    assert (lines == 20_000) is (cut == 8)
    assert lines > 10_000
    assert server.url in str(caught.value)
    assert _left(path) == ["reviews.bin.bad"]


def test_a_corrupt_gzip_file_is_refused(server, path):
    server.content = GZIP[:-8] + bytes(4) + GZIP[-4:]
    with pytest.raises(DownloadError, match="gzip stream is corrupt"):
        _get(server, path)


def test_a_page_in_place_of_a_gzip_file_is_refused(server, path):
    server.content = b"<html>please log in</html>"
    server.url = server.url.replace(".bin", ".json.gz")
    with pytest.raises(DownloadError, match="not a gzip file, it begins with b'<html>please log in</html>'"):
        _get(server, path)


def test_an_empty_body_is_refused(server, path):
    server.content = b""
    with pytest.raises(DownloadError, match="the file is empty"):
        _get(server, path)


def test_a_gzip_file_labelled_as_an_encoding_stays_packed(server, path):
    server.content, server.answers = GZIP, ["labelled as an encoding"]
    _get(server, path)
    assert path.read_bytes() == GZIP


def test_a_full_disk_keeps_the_part_and_says_so(server, path, monkeypatch):
    server.answers = ["half", "whole"]
    with pytest.raises(DownloadError):
        _get(server, path, attempts=1)
    kept = path.with_name("reviews.bin.part").stat().st_size

    class Full:
        def __enter__(self):
            return self

        def __exit__(self, *error):
            pass

        def write(self, chunk):
            raise OSError(errno.ENOSPC, "No space left on device")

    real_open = type(path).open
    monkeypatch.setattr(
        type(path), "open", lambda self, mode="r", **k: Full() if "a" in mode else real_open(self, mode, **k)
    )
    with pytest.raises(DownloadError, match=r"reviews\.bin\.part: No space left on device; free some space"):
        _get(server, path)
    assert path.with_name("reviews.bin.part").stat().st_size == kept


def test_a_download_that_takes_long_is_logged_where_there_is_no_terminal(
    server, path, caplog, capsys, monkeypatch
):
    with caplog.at_level(logging.INFO, logger="diffcdr"):
        _get(server, path)
        assert caplog.text == ""
        monkeypatch.setattr(download, "LOG_EVERY", 0)
        _get(server, path)
    assert "reviews.bin" in caplog.text
    assert "600k/600k" in caplog.text
    caplog.clear()
    with caplog.at_level(logging.INFO, logger="diffcdr"):
        _get(server, path, progress=False)
    assert caplog.text == ""
    assert capsys.readouterr().err == ""


def test_other_schemes_go_through_fsspec(path):
    with fsspec.open("memory://bucket/a.json.gz", "wb") as file:
        file.write(GZIP)
    got = fetch("memory://bucket/a.json.gz", path)
    assert path.read_bytes() == GZIP
    assert (got.source, got.size) == ("memory://bucket/a.json.gz", len(GZIP))


@pytest.mark.parametrize("scheme", ["file://", ""])
def test_local_files_are_copied_and_checked(path, tmp_path, scheme):
    source = tmp_path / "a.json.gz"
    source.write_bytes(GZIP)
    fetch(f"{scheme}{source}", path)
    source.write_bytes(GZIP[:-100])
    assert path.read_bytes() == GZIP
    with pytest.raises(DownloadError, match="ends early"):
        fetch(f"{scheme}{source}", path)
    assert path.read_bytes() == GZIP  # what was there stays


def test_a_missing_local_file_is_named(path, tmp_path):
    with pytest.raises(DownloadError, match=r"absent\.csv.*check the domain's url"):
        fetch(str(tmp_path / "absent.csv"), path)


def test_a_missing_driver_package_is_named(path):
    fsspec.register_implementation("nodriver", "no_such_package.FileSystem", errtxt="Install no_such_package")
    with pytest.raises(
        DownloadError, match="reading nodriver: needs another package: Install no_such_package"
    ):
        fetch("nodriver://bucket/a", path)


def test_an_unknown_scheme_is_named(path):
    with pytest.raises(DownloadError, match="nosuchscheme"):
        fetch("nosuchscheme://bucket/a", path)
