"""Our models against the types of the official package, and the old event names."""

from __future__ import annotations

import json
import typing

import pytest
from live import live

from antiphon.null_engine import NullSpec
from antiphon.server.chat_schema import DEFAULTS, ChatRequest
from antiphon.server.realtime.schema import ClientEvent

pytest.importorskip("openai", reason="the openai package is not installed")


def test_every_field_of_a_chat_request_is_known():
    from openai.types.chat import completion_create_params as official

    fields = set(typing.get_type_hints(official.CompletionCreateParamsBase)) | {"stream"}
    assert fields <= set(ChatRequest.model_fields), fields - set(ChatRequest.model_fields)
    assert set(DEFAULTS) <= fields


def test_every_client_event_is_known():
    from openai.types.realtime import RealtimeClientEvent

    def kinds(union):
        members = typing.get_args(typing.get_args(union)[0])
        return {typing.get_args(member.model_fields["type"].annotation)[0] for member in members}

    assert kinds(RealtimeClientEvent) == kinds(ClientEvent) and len(kinds(ClientEvent)) == 11


def test_answers_have_no_field_that_the_package_does_not_know(client, demo_server):
    from openai.types.chat import ChatCompletion

    audio = {"modalities": ["text", "audio"], "audio": {"voice": "alloy", "format": "pcm16"}}
    for more in ({}, audio):
        body = {"model": "demo", "messages": [{"role": "user", "content": "thank you"}], "max_tokens": 20} | more
        answer = ChatCompletion.model_validate(demo_server.http("/v1/chat/completions", body)[2])
        assert not answer.model_extra and not answer.choices[0].model_extra
        assert not answer.choices[0].message.model_extra and not answer.usage.model_extra


@pytest.mark.parametrize("field", sorted(DEFAULTS))
def test_fields_without_use_may_hold_their_default_and_nothing_else(null_server, field):
    body = {"model": "null", "messages": [{"role": "user", "content": "x"}]}
    for value in (None, *DEFAULTS[field]):
        assert null_server.http("/v1/chat/completions", body | {field: value})[0] == 200
    status, _, answer = null_server.http("/v1/chat/completions", body | {field: "something else"})
    assert status == 400 and answer["error"]["param"] == field


def test_old_event_names_for_those_who_ask():
    connect = pytest.importorskip("websockets.sync.client").connect
    with live(NullSpec(), served_name="null", realtime_beta=True) as server:
        address = server.url.replace("http", "ws") + "/v1/realtime"
        kinds = {}
        for beta, headers in ((True, {"OpenAI-Beta": "realtime=v1"}), (False, {})):
            with connect(address, additional_headers=headers) as socket:
                item = {"type": "message", "role": "user", "content": [{"type": "input_text", "text": "x"}]}
                socket.send(json.dumps({"type": "conversation.item.create", "item": item}))
                socket.send('{"type": "response.create"}')
                events = []
                while not events or events[-1]["type"] != "response.done":
                    events.append(json.loads(socket.recv(timeout=30)))
                kinds[beta] = {event["type"] for event in events}
                content = events[-1]["response"]["output"][0]["content"][0]["type"]
                assert content == ("audio" if beta else "output_audio")
        assert {"conversation.created", "conversation.item.created", "response.audio.delta"} <= kinds[True]
        assert {"conversation.item.added", "conversation.item.done", "response.output_audio.delta"} <= kinds[False]
        assert not kinds[True] & {"conversation.item.added", "conversation.item.done", "response.output_audio.delta"}
