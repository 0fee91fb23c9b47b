import json


def test_a_chat_whole(scripted):
    with scripted.http() as http:
        answer = http.post(
            "/v1/chat/completions",
            json={"model": "tiny", "messages": [{"role": "user", "content": "Hi"}]},
        )
    print(answer.text)
    assert answer.status_code == 200


def test_stream(scripted):
    with scripted.http() as http:
        answer = http.post(
            "/v1/chat/completions",
            json={"messages": [{"role": "user", "content": "Hi"}], "stream": True, "stream_options": {"include_usage": True}, "logprobs": True, "top_logprobs": 2, "n": 2, "max_tokens": 3},
        )
        print(answer.text)
        print(http.get("/metrics").text)
        print(json.dumps(http.get("/metrics.json").json()))
        print(json.dumps(http.get("/openapi.json").json())[:1000])
        print(http.get("/nothing").text, http.put("/health").text, http.get("/v1/models").text)
        for body in ({"prompt": []}, {"prompt": "a", "tools": []}, {"prompt": "a", "max_tokens": -1}, {"prompt": "a", "max_tokens": "5", "temperature": -1}, {}, {"prompt": [[1],[2,"a"]]}, {"prompt": {}}, {"prompt":"a","stop":[""]}, {"prompt": "a", "logit_bias": {"x": 3, "4": 300}}, {"prompt": "a", "response_format": {"type": "json_schema"}}, {"prompt": "a", "response_format": {"type": "xml"}}, {"prompt": "a" * 100}, {"prompt": [1000]}, {"prompt":"a", "model": "gpt"}, {"prompt":"a", "stream_options": {}}):
            print(http.post("/v1/completions", json=body).text)
    assert answer.status_code == 200
