import random

import httpx2
import pytest
from prometheus_client.parser import text_string_to_metric_families

from compress.runtime.server.metrics import ITL_SECONDS, TTFT_SECONDS
from compress.runtime.server.summary import KEPT, Facts, Recent, Step, Steps

NAMES = {
    "num_requests_running", "num_requests_waiting", "kv_cache_usage_perc", "cache_config_info",
    "prompt_tokens",
    "generation_tokens", "prompt_tokens_cached", "prefix_cache_queries", "prefix_cache_hits",
    "num_preemptions", "request_success", "admission_rejections", "spec_decode_num_drafts",
    "spec_decode_num_draft_tokens", "spec_decode_num_accepted_tokens",
    "spec_decode_num_accepted_tokens_per_pos", "time_to_first_token_seconds",
    "inter_token_latency_seconds", "request_time_per_output_token_seconds",
    "e2e_request_latency_seconds", "request_queue_time_seconds", "request_inference_time_seconds",
    "request_prefill_time_seconds", "request_decode_time_seconds", "request_prompt_tokens",
    "request_generation_tokens", "iteration_tokens_total", "request_max_num_generation_tokens",
    "request_params_n", "request_params_max_tokens", "request_prefill_kv_computed_tokens",
}  # fmt: skip


@pytest.fixture(scope="module")
def asked(scripted) -> httpx2.Client:
    """A server that has answered two requests of five tokens, and refused one."""
    with scripted.http() as http:
        for stream in (True, False):
            body = {"prompt": "abc", "max_tokens": 5, "stream": stream}
            assert http.post("/v1/completions", json=body).status_code == 200
        assert http.post("/v1/completions", json={"prompt": [1000]}).status_code == 400
        yield http


def values(http) -> dict[tuple[str, str], float]:
    """Samples by their name and the labels beside model and engine."""
    return {
        (sample.name.removeprefix("vllm:"), *sorted(
            value for key, value in sample.labels.items() if key not in ("engine", "model_name")
        )): sample.value
        for family in text_string_to_metric_families(http.get("/metrics").text)
        for sample in family.samples
    }  # fmt: skip


def test_names_are_those_of_vllm(asked):
    text = asked.get("/metrics").text
    found = {family.name for family in text_string_to_metric_families(text)}
    assert found == {f"vllm:{name}" for name in NAMES}
    assert 'model_name="tiny"' in text
    assert asked.get("/metrics").headers["content-type"].startswith("text/plain; version=0.0.4")


def test_counts(asked):
    found = values(asked)
    assert found["generation_tokens_total",] == 10
    assert found["prompt_tokens_total",] == 8
    assert found["prompt_tokens_cached_total",] == 2
    assert found["request_success_total", "length"] == 2
    assert found["admission_rejections_total", "invalid"] == 1
    assert found["time_to_first_token_seconds_count",] == 2
    assert found["inter_token_latency_seconds_count",] == 8
    assert found["e2e_request_latency_seconds_count",] == 2
    assert found["iteration_tokens_total_sum",] == 10
    assert found["spec_decode_num_accepted_tokens_per_pos_total", "0"] == 3
    assert found["request_params_max_tokens_sum",] == 10


def test_buckets_resolve_a_token_of_a_quarter_of_a_millisecond():
    assert (ITL_SECONDS[0], TTFT_SECONDS[0]) == (0.00025, 0.0005)
    assert list(ITL_SECONDS) == sorted(ITL_SECONDS)
    assert list(TTFT_SECONDS) == sorted(TTFT_SECONDS)


def test_percentiles_of_a_server(asked):
    found = asked.get("/metrics.json").json()["models"]["tiny"]
    assert found["ttft_seconds"]["count"] == found["e2e_seconds"]["count"] == 2
    assert found["itl_seconds"]["kept"] == 8
    for told in (found["ttft_seconds"], found["itl_seconds"], found["tpot_seconds"]):
        assert 0 < told["p50"] <= told["p95"] <= told["p99"] < 1


def test_what_an_engine_did(asked):
    found = asked.get("/metrics.json").json()["models"]["tiny"]
    assert found["speculation"]["accepted_at"] == [1.0, pytest.approx(1 / 3), 0.0]
    assert (found["prefix_hit_share"], found["kv_usage"]) == (0.5, 0.0)
    work = found["work"]
    assert work["steps"] == 10
    assert work["roof_share"] == pytest.approx(work["bytes_per_second"] / 1e9)


def test_bytes_of_steps():
    steps, facts = Steps(), Facts(1000, 10.0, 500, 1e6)
    assert steps.work(facts).tokens_per_second is None
    steps.add(Step(0.5, 4, 32))
    steps.add(Step(1.5, 2, 64))
    work = steps.work(facts)
    assert (work.steps, work.seconds, work.tokens_per_second) == (2, 2.0, 3.0)
    assert (work.bytes_per_second, work.flops_per_second) == ((2000 + 960) / 2, 3000.0)
    assert work.roof_share == pytest.approx(1480 / 1e6)


def test_percentiles_are_exact():
    assert Recent().summary().p50 is None
    recent, values = Recent(), [*range(1, 101)]
    random.Random(0).shuffle(values)
    for value in values:
        recent.add(value)
    told = recent.summary()
    assert (told.count, told.p50, told.p95, told.p99) == (100, 50, 95, 99)


def test_the_oldest_values_are_forgotten():
    recent = Recent()
    for value in [*[9.0] * 100, *[7.0] * KEPT]:
        recent.add(value)
    told = recent.summary()
    assert (told.count, told.kept, told.p99) == (KEPT + 100, KEPT, 7.0)
