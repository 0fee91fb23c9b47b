"""Who leaves, who waits, what breaks: the engine's thread and its queues."""

import concurrent.futures
import contextlib
import threading

import httpx2
import pytest

from compress.errors import ArtifactError, RequestError
from compress.runtime.request import Request
from compress.runtime.server import loop

BODY = {"prompt": "a", "max_tokens": 60, "ignore_eos": True}


@pytest.fixture
def slow(script):
    """An engine that takes a while for each letter."""
    engine = script()
    engine.seconds = 0.03
    return engine


@contextlib.contextmanager
def asked(served, body):
    """A request whose client leaves at the end."""
    with served.http() as http, http.stream("POST", "/v1/completions", json=body) as answer:
        yield answer


def test_work_stops_when_the_client_leaves_a_stream(slow, serving):
    with serving(slow) as served:
        with asked(served, {**BODY, "stream": True}) as answer:
            next(answer.iter_lines())
        served.until(lambda: slow.cancelled == [1])
        assert slow.idle
        assert slow.computed < 50


def test_work_stops_when_the_client_leaves_before_its_whole_answer(slow, serving):
    with serving(slow) as served:
        with served.http() as http, pytest.raises(httpx2.ReadTimeout):
            http.post("/v1/completions", json={**BODY, "n": 2}, timeout=0.2)
        served.until(lambda: slow.cancelled == [1, 2])
        assert slow.idle


@pytest.mark.parametrize("stream", [True, False])
def test_who_waits_and_leaves_is_never_begun(slow, serving, stream):
    with serving(slow) as served, asked(served, {**BODY, "n": 2, "stream": True}):
        served.until(lambda: len(slow.running) == 2)
        with served.http() as http, contextlib.suppress(httpx2.ReadTimeout):
            body = {**BODY, "stream": stream}
            with http.stream("POST", "/v1/completions", json=body, timeout=0.2):
                served.until(lambda: len(slow.waiting) == 1)
        served.until(lambda: slow.cancelled == [3])
        assert not slow.waiting
        assert len(slow.running) == 2


SCHEMA = {"type": "json_schema", "json_schema": {"name": "n", "schema": {"type": "integer"}}}


def test_others_are_answered_while_a_schema_is_read(script, serving):
    engine, go = script(), threading.Event()
    engine.grammars.read = go.wait
    pool = concurrent.futures.ThreadPoolExecutor(1)
    with serving(engine) as served, pool, served.http() as http:
        held = {"prompt": "a", "response_format": SCHEMA}
        waiting = pool.submit(http.post, "/v1/completions", json=held)
        assert http.post("/v1/completions", json={"prompt": "b"}).status_code == 200
        assert len(engine.asked) == 1
        go.set()
        assert waiting.result().status_code == 200
    assert len(engine.grammars.known) == 1


def test_a_schema_that_cannot_be_followed_is_the_clients_mistake(script, serving):
    def refuse():
        raise RequestError("grammar: not a JSON schema that can be followed.")

    engine = script()
    engine.grammars.read = refuse
    with serving(engine) as served, served.http() as http:
        answer = http.post("/v1/completions", json={"prompt": "a", "response_format": SCHEMA})
    assert answer.status_code == 400
    assert answer.json()["error"]["message"].startswith("grammar: not a JSON schema")
    assert not engine.asked


def test_a_step_that_does_not_end_does_not_keep_the_server(script, serving, monkeypatch):
    monkeypatch.setattr(loop, "CLOSE_SECONDS", 0.1)
    engine, go = script(), threading.Event()
    with serving(engine) as served:
        engine.step = go.wait
        served.loop._inbox.put(lambda: engine.submit(Request((1,))))
        served.until(lambda: not engine.idle)
    assert served.loop._thread.is_alive()  # and the server is not
    go.set()


def test_one_more_than_may_wait_is_refused_and_told_when_to_come_back(slow, serving):
    with serving(slow, max_queued=1) as served, served.http() as http:
        with asked(served, {**BODY, "n": 3, "stream": True}):
            served.until(lambda: len(slow.running) == 2)
            for stream in (True, False):
                answer = http.post("/v1/completions", json={**BODY, "stream": stream})
                assert answer.status_code == 503
                assert 1 <= int(answer.headers["Retry-After"]) <= 60
                assert answer.json()["error"]["code"] == "queue_full"
        served.until(lambda: slow.idle)
        slow.seconds = 0
        assert http.post("/v1/completions", json=BODY).status_code == 200
        assert (
            'admission_rejections_total{engine="0",model_name="tiny",reason="queue_full"} 2.0'
            in (http.get("/metrics").text)
        )


def test_every_answer_gives_its_place_back(script, serving):
    engine = script()
    with serving(engine, max_queued=6) as served, served.http() as http:

        def ask(kind):
            if kind == 0:  # refused by the engine, behind one that it takes
                body = {"prompt": [[5], [1000]], "max_tokens": 1}  # and has answered by then
            else:
                body = {**BODY, "stream": kind == 1, "n": kind}
            return http.post("/v1/completions", json=body).status_code

        with concurrent.futures.ThreadPoolExecutor(2) as pool:
            found = list(pool.map(ask, [0, 1, 2] * 8))
        assert found == [400, 200, 200] * 8
        served.until(lambda: engine.idle)
        served.until(lambda: served.loop._open == 0)
        assert not served.loop._answers


def test_nothing_is_answered_before_the_engine_is_ready(script, serving):
    go = threading.Event()

    def opener():
        go.wait(10)
        return script()

    with serving(None, opener=opener, ready=False) as served, served.http() as http:
        try:
            for answer in (http.get("/health"), http.post("/v1/completions", json={"prompt": "a"})):
                assert (answer.status_code, answer.headers["Retry-After"]) == (503, "2")
                assert answer.json()["error"]["code"] == "loading"
            assert http.get("/metrics").status_code == http.get("/").status_code == 200
        finally:
            go.set()
        served.until(lambda: http.get("/health").status_code == 200)


def test_an_engine_that_cannot_be_opened(serving):
    def opener():
        raise ArtifactError("student: holds no config.json.")

    with serving(None, opener=opener) as served, served.http() as http:
        assert http.get("/health").json()["error"]["code"] == "failed"
        assert isinstance(served.loop.error, ArtifactError)


def test_an_engine_that_breaks_ends_every_answer(slow, serving, caplog):
    with serving(slow) as served:
        with asked(served, {**BODY, "stream": True}) as answer:
            lines = answer.iter_lines()
            next(lines)
            slow.breaks = True
            rest = "".join(lines)
        assert '"error":{"message":"server: the engine has stopped' in rest
        assert "[DONE]" not in rest
        with served.http() as http:
            assert http.post("/v1/completions", json=BODY).status_code == 503
        assert isinstance(served.loop.error, ZeroDivisionError)
        assert "the engine has stopped" in caplog.text


def test_an_engine_that_panics_is_one_that_breaks(script, serving):
    class PanicException(BaseException):
        """As pyo3 has it: no Exception."""

    def panic():
        raise PanicException

    engine = script()
    engine.step = panic
    with serving(engine) as served, served.http() as http:
        assert http.post("/v1/completions", json=BODY).status_code == 500
        assert http.get("/health").status_code == 503
        assert isinstance(served.loop.error, PanicException)


def test_an_engine_that_breaks_ends_a_whole_answer_with_500(slow, serving):
    pool = concurrent.futures.ThreadPoolExecutor()
    with serving(slow) as served, pool, served.http() as http:
        answer = pool.submit(http.post, "/v1/completions", json=BODY)
        served.until(lambda: bool(slow.running))
        slow.breaks = True
        assert answer.result().status_code == 500


def test_an_engine_that_breaks_ends_a_request_that_it_has_not_taken_yet(slow, serving):
    pool, slow.seconds = concurrent.futures.ThreadPoolExecutor(), 0.3
    with serving(slow) as served, pool, served.http() as http:
        first = pool.submit(http.post, "/v1/completions", json=BODY)
        served.until(lambda: bool(slow.running))
        slow.breaks = True
        second = pool.submit(http.post, "/v1/completions", json=BODY)
        assert {first.result().status_code, second.result().status_code} == {500, 503}


def test_answers_on_their_way_are_finished_before_the_server_ends(slow, serving):
    pool, slow.seconds = concurrent.futures.ThreadPoolExecutor(), 0.01
    with serving(slow) as served, pool, served.http() as http:
        whole = pool.submit(http.post, "/v1/completions", json=BODY)  # runs
        others = [pool.submit(http.post, "/v1/completions", json=BODY) for _ in range(2)]
        served.until(lambda: len(slow.waiting) == 1)  # and one waits
        served.server.should_exit = True
        served.until(lambda: not connects(served), seconds=5)
        for one in (whole, *others):
            assert one.result().json()["usage"]["completion_tokens"] == 60


def connects(served) -> bool:
    """Whether new connections are still taken."""
    try:
        with served.http() as http:
            http.get("/health")
    except httpx2.TransportError:  # refused, or closed before it was taken
        return False
    return True
