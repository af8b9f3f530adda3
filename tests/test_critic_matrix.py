"""Whatever a critic's server does: a text that is right, a failed call with its reason, or a stop.

Each mode is played by a server of each kind. One call is asked, and in another test as many as a
run looks at before it stops: it goes on with the texts, or ends with the reason in two lines.
"""

import gzip
import json
import re
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from typing import Any

import pytest
from support import fake_bedrock
from support import fake_server as wire
from support.critics import PROVIDERS, TRIES, call, critic_at
from support.fake_server import Body, Fault, Loopback, free_port

from mlxreflect.config.recipe import load_recipe
from mlxreflect.core.errors import UserError
from mlxreflect.critics import client
from mlxreflect.critics.base import Call
from mlxreflect.critics.http import REPLY_BYTES
from mlxreflect.critics.verdicts import Judgement, parse
from mlxreflect.methods.base import Try
from mlxreflect.methods.session import FEW, Session
from mlxreflect.tasks import TASKS

SAID = "Step 2 is wrong."
ANSWERED = "<think>1 + 2 = 3</think><answer>1 + 2</answer>"
VERDICT = '{"step": "2", "why": "the sum", "verdict": "wrong"}'
OLLAMA, OPENAI, BEDROCK = ALL = ("ollama", "openai", "bedrock")
SERVED = (OLLAMA, OPENAI)
USED = {"prompt": 10, "completion": 4}


def reply(
    name: str, text: Any = SAID, thought: str = "", reason: Any = "stop", used: Any = USED
) -> Body:
    """A reply in the form of a provider. used: its counts of tokens, by our names or anything."""
    message: Body = {"role": "assistant", "content": text}
    counts = used if isinstance(used, dict) else {}
    prompt, completion = counts.get("prompt"), counts.get("completion")
    if name == OLLAMA:
        message |= {"thinking": thought} if thought else {}
        return {"model": "critic", "message": message, "done": True, "done_reason": reason,
                "prompt_eval_count": prompt, "eval_count": completion}  # fmt: skip
    if name == OPENAI:
        message |= {"reasoning_content": thought} if thought else {}
        found: Body = {"choices": [{"index": 0, "message": message, "finish_reason": reason}]}
        table = {"prompt_tokens": prompt, "completion_tokens": completion}
        return found | {"usage": table if isinstance(used, dict) else used}
    blocks = [{"reasoningContent": {"reasoningText": {"text": thought}}}] if thought else []
    blocks += [{"text": text}] if text is not None else []
    stop = {"stop": "end_turn", "length": "max_tokens"}.get(reason, reason)
    usage = {"inputTokens": prompt, "outputTokens": completion}
    return {"output": {"message": {"role": "assistant", "content": blocks}}, "stopReason": stop,
            "usage": usage if isinstance(used, dict) else used}  # fmt: skip


def says(*text: Any, **fields: Any) -> Callable[[str], Fault]:
    return lambda name: wire.ok(reply(name, *text, **fields))


def refuses(status: int, words: str = "the words") -> Callable[[str], Fault]:
    """A refusal as the provider words it."""
    return lambda name: Fault(status, json.dumps({
        OLLAMA: {"error": words}, OPENAI: {"error": {"message": words, "code": None}},
        BEDROCK: {"message": words},
    }[name]).encode())  # fmt: skip


def aws(code: str, words: str = "the words") -> Callable[[str], Fault]:
    return lambda name: fake_bedrock.aws(code, words)


def body(content: Any, status: int = 200, **headers: str) -> Callable[[str], Fault]:
    """The same of each provider: bytes, a text, or what is written as JSON."""
    if not isinstance(content, bytes):
        content = (content if isinstance(content, str) else json.dumps(content)).encode()
    return lambda name: Fault(status, content, headers)


def raw(content: bytes) -> Callable[[str], Fault]:
    return lambda name: Fault(body=content, action="raw")


def packed(pack: Callable[[bytes], bytes], encoding: str, content: bytes = b"") -> Any:
    def made(name: str) -> Fault:
        plain = content or json.dumps(reply(name)).encode()
        return Fault(body=pack(plain), headers={"Content-Encoding": encoding})

    return made


def does(fault: Fault) -> Callable[[str], Fault]:
    return lambda name: fault


def unless(part: Callable[[str, Body], Any], fault: Callable[[str], Fault]) -> Any:
    """Answers requests without a part, and refuses others."""
    return lambda name: lambda sent: fault(name) if part(name, sent) else SAID


def has(word: str) -> Callable[[str, Body], Any]:
    return lambda name, sent: f'"{word}"' in json.dumps(sent)


@dataclass(frozen=True)
class Mode:
    """What a server does, and what comes of it.

    answers: to the requests in turn; the last one is for all others. text: of the reply, where it
    is right; kind, words: of the error, where it failed. role: of the call; judge has a schema.
    on: the providers that can do so. settings: of the critic.
    """

    name: str
    answers: Sequence[Any]
    text: str = ""
    kind: str = ""
    words: str = ""
    role: Any = "critique"
    on: tuple[str, ...] = ALL
    settings: tuple[tuple[str, Any], ...] = ()


def right(name: str, *answers: Any, text: str = SAID, **how: Any) -> Mode:
    return Mode(name, answers or [says(text)], text, **how)


def failed(name: str, kind: str, words: str, *answers: Any, **how: Any) -> Mode:
    return Mode(name, answers, kind=kind, words=words, **how)


BIG = 10**400
FORM = "not a reply in the provider's format"
# boto3 reads Bedrock's bodies: where one is none of its format, its words are not known.
RIGHT = [
    right("plain"),
    right("space around", says(f"\n  {SAID}\n"), text=f"\n  {SAID}\n"),
    right("letters of all kinds", text="Schritt 2 ist falsch: ½ ≠ 0.2, 你好 🙂"),
    right("half an emoji", text="wrong \ud83d"),
    right("a NUL", text="wrong\x00"),
    right("a code fence", text="```\nStep 2 is wrong.\n```"),
    right("long", text="Step 2 is wrong. " * 900),
    right("cut with words", says(reason="length")),
    right("a thought before", says(f"<think>hm\n</think>\n\n{SAID}")),
    right("a thought that the prompt began", says(f"hm\n</think>\n\n{SAID}")),
    right("a thought that ends before a letter", says(f"hm</think>{SAID}")),
    right("the tag in a sentence", text="Close </think> before the answer."),
    right("the opening tag in a sentence", text="The <think> tag is missing."),
    right("a thought in a field", says(thought="hm")),
    right("all in the field of the thought", says("", thought=SAID)),
    right("all in that field, no content", says(None, thought=SAID)),
    right("a rewrite", text=ANSWERED, role="rewrite"),
    right("a rewrite after a thought", says(f"<think>hm</think>\n{ANSWERED}"), text=ANSWERED,
          role="rewrite"),
    right("a rewrite after a thought that the prompt began", says(f"hm\n</think>\n\n{ANSWERED}"),
          text=ANSWERED, role="rewrite"),
    right("a rewrite whose own thought the prompt began",
          says(ANSWERED.removeprefix("<think>")), text=ANSWERED, role="rewrite"),
    right("a rewrite whose own thought is in a field",
          says("<answer>1 + 2</answer>", thought="1 + 2 = 3"), text=ANSWERED, role="rewrite"),
    right("all of a rewrite in that field", says("", thought=ANSWERED), text=ANSWERED,
          role="rewrite"),
    right("all of a rewrite in that field, without a thought",
          says("", thought="<answer>1 + 2</answer>"), text="<answer>1 + 2</answer>",
          role="rewrite"),
    right("a continuation that ends a thought", text="= 3</think><answer>3</answer>",
          role="continue"),
    right("a verdict", text=VERDICT, role="judge"),
    right("a verdict in a fence", text=f"```json\n{VERDICT}\n```", role="judge"),
    right("a verdict after a thought", says(f"<think>hm</think>{VERDICT}"), text=VERDICT,
          role="judge"),
    right("a verdict after a thought that the prompt began", says(f"hm\n</think>\n{VERDICT}"),
          text=VERDICT, role="judge"),
    right("a verdict in the field of the thought", says("", thought=VERDICT), text=VERDICT,
          role="judge"),
    *(right(f"counts: {name}", says(used=used)) for name, used in {
        "missing": {}, "null": {"prompt": None, "completion": None}, "no table": None,
        "below zero": {"prompt": -5, "completion": -1}, "huge": {"prompt": BIG, "completion": BIG},
        "a part": {"prompt": 10},
    }.items()),
    *(right(f"counts: {name}", says(used=used), on=SERVED) for name, used in {
        "texts": {"prompt": "10", "completion": "4"}, "fractions": {"prompt": 1.5},
        "true": {"prompt": True, "completion": True}, "a word": "many",
    }.items()),
    right("no reason to finish", says(reason=None)),
    right("an unknown reason", says(reason="because")),
    right("a reason that is no text", says(reason=7), on=SERVED),
    right("more fields", lambda name: wire.ok(reply(name) | {"more": [{"of": "them"}]})),
    right("gzip", packed(gzip.compress, "gzip")),
    right("deflate", packed(zlib.compress, "deflate")),
    right("in chunks", lambda name: Fault(body=chunked(json.dumps(reply(name)).encode()),
                                          action="raw")),
    right("as text/plain", lambda name: replace(wire.ok(reply(name)),
                                                headers={"Content-Type": "text/plain"})),
    right("a byte order mark", lambda name: Fault(
        body=b"\xef\xbb\xbf" + json.dumps(reply(name)).encode()), on=SERVED),
    *(right(f"right after {status}", refuses(status), says())
      for status in (408, 429, 500, 502, 503, 504, 529)),
    right("right after a 409", refuses(409), says(), on=SERVED),
    right("right after throttling", aws("ThrottlingException"), says(), on=(BEDROCK,)),
    right("right after a wait", lambda name: replace(
        refuses(429)(name), headers={"Retry-After": "0.01"}), says()),
    *(right(f"right after: {fault.action}", does(fault), says())
      for fault in (wire.HANG_UP, wire.RESET, wire.SHORT)),
    right("right after an empty body", does(wire.EMPTY_BODY), says()),
    right("right after half a body", body(b'{"message": {"ro'), says()),
    right("right after no word", says(""), says()),
    right("no temperature", unless(has("temperature"), refuses(400, "no temperature here")),
          on=(OPENAI, BEDROCK)),
    right("no system role", unless(has("system"), refuses(400, "System role not supported")),
          on=(OPENAI,)),
    right("no system messages", unless(has("system"), aws(
        "ValidationException", "This model doesn't support system messages. Try again without a "
        "system message or use a model that supports system messages.")), on=(BEDROCK,)),
    right("no bounds in a schema", lambda name: lambda sent: refuses(
        400, "Invalid schema: 'maxLength' is not permitted.")(name)
        if has("maxLength")(name, sent) else VERDICT, text=VERDICT, role="judge", on=(OPENAI,)),
]  # fmt: skip
NESTED = json.dumps({"error": {"code": 400, "message": "the words"}})
CLIENT_ERRORS = (400, 401, 402, 403, 404, 405, 406, 410, 411, 413, 414, 415, 418, 422, 431, 451)
FAILED = [
    *(failed(f"status {status}", f"http_{status}", f"HTTP {status}: the words", refuses(status))
      for status in (*CLIENT_ERRORS, 408, 429, 500, 501, 502, 503, 504, 507, 520, 529, 599)),
    failed("status 409", "http_409", "the words", refuses(409)),
    failed("a refusal without words", "http_400", "HTTP 400", body(b"", 400), on=SERVED),
    failed("a refusal of two lines", "http_400", "one two", refuses(400, "one\n\n  two")),
    failed("a long refusal", "http_400", "the words", refuses(400, "the words " * 10_000)),
    failed("an error page", "http_502", "HTTP 502: (502 )?Bad Gateway",
           body("<html><h1>Bad Gateway</h1></html>", 502), on=SERVED),
    failed("an error as plain text", "http_503", "HTTP 503: try later", body("try later", 503),
           on=SERVED),
    *(failed(f"sent on with {status}", f"http_{status}", "http://127.0.0.1:9/x",
             body(b"", status, Location="http://127.0.0.1:9/x"), on=SERVED)
      for status in (301, 302, 303, 307, 308)),
    failed("sent on, nowhere", "http_307", "HTTP 307", body(b"", 307), on=SERVED),
    failed("not modified", "http_304", "HTTP 304", raw(b"HTTP/1.1 304 No\r\n\r\n"), on=SERVED),
    failed("no content", "invalid", FORM, raw(b"HTTP/1.1 204 No\r\n\r\n"), on=SERVED),
    failed("an error in JSON in JSON", "http_400", "HTTP 400: the words$", refuses(400, NESTED)),
    failed("an error in JSON in JSON in JSON", "http_400", "HTTP 400: the words$",
           refuses(400, json.dumps({"error": NESTED})), on=SERVED),
    failed("200 with an error", "http_500", "the words", body({"error": "the words"}),
           on=(OLLAMA,)),
    failed("200 with an error", "http_502", "the words", body({"error": "the words"}),
           on=(OPENAI,)),
    failed("200 with an error and a code", "http_402", "HTTP 402: the words",
           body({"error": {"code": 402, "message": "the words"}}), on=(OPENAI,)),
    failed("an error of the provider behind", "http_400", "HTTP 400: the words$",
           body({"error": {"code": 400, "message": "Provider returned error",
                           "metadata": {"raw": NESTED}}}), on=(OPENAI,)),
    failed("an error in a choice", "http_502", "HTTP 502: the words",
           lambda name: wire.ok({"choices": [
               {"error": {"code": 502, "message": "the words"}, "finish_reason": "error",
                "message": {"content": ""}}]}), on=(OPENAI,)),
    failed("a page", "invalid", f"{FORM}: Sign in Sign in here",
           body("<!DOCTYPE html><title>Sign in</title><p>Sign in here</p>"), on=SERVED),
    failed("a word", "invalid", f"{FORM}: Ollama is running", body("Ollama is running"), on=SERVED),
    failed("an event stream", "invalid", f"{FORM}: data: .*Step",
           body('data: {"choices": [{"delta": {"content": "Step"}}]}\n\ndata: [DONE]\n\n'),
           on=SERVED),
    failed("an error in an event stream", "invalid", f"{FORM}: the words",
           body('data: {"error": {"message": "the words"}}\n\n'), on=SERVED),
    failed("lines of JSON", "invalid", FORM,
           body('{"message": {"content": "Step"}}\n{"message": {"content": " 2"}}\n'), on=SERVED),
    *(failed(f"a body that is {name}", "invalid", FORM if name != "another API's" else "format",
             body(content)) for name, content in {
        "empty": b"", "null": b"null", "a number": b"7", "a text": b'"said"', "a list": b"[1]",
        "cut": b'{"message": {"role": "assist', "deep": b"[" * 100_000,
        "no UTF-8": b'{"a": "\xff"}',
        "a number too large": b'{"a": ' + b"9" * 5000 + b"}", "an empty object": b"{}",
        "another API's": b'{"generated_text": "Step 2"}',
    }.items()),
    *(failed(f"content that is {name}", "invalid", "format", says(text), on=SERVED)
      for name, text in {"a number": 7, "true": True, "an object": {"text": "Step"}}.items()),
    failed("content that is a number", "invalid", "format", says(7), on=(BEDROCK,)),
    failed("a list of texts", "invalid", "format", says(["Step"]), on=SERVED),
    failed("no choices", "invalid", "format", body({"choices": []}), on=(OPENAI,)),
    failed("a choice that is null", "invalid", "format", body({"choices": [None]}), on=(OPENAI,)),
    failed("a message that is null", "invalid", "format",
           body({"message": None, "choices": [{"message": None}], "output": {"message": None}})),
    *(failed(f"no word: {name}", "empty", "empty reply", answer) for name, answer in {
        "empty": says(""), "space": says(" \n\t"), "an empty thought": says("<think></think>\n"),
    }.items()),
    failed("no word: null", "empty", "empty reply", says(None)),
    failed("no word for a verdict but a thought", "empty", "empty reply",
           says("", thought="hm"), role="judge"),
    failed("all tokens thought", "empty", "all 2000 tokens went into thinking: raise critic.max_t",
           says("", thought="hm", reason="length")),
    failed("all tokens thought, unseen", "empty", "raise critic.max_tokens",
           says("", reason="length")),
    failed("all tokens thought, in the text", "empty", "raise critic.max_tokens",
           says("<think>and so on", reason="length")),
    failed("all tokens of a rewrite thought", "empty", "raise critic.max_tokens",
           says("", thought="hm", reason="length"), role="rewrite"),
    failed("filtered", "empty", "content_filter", says("", reason="content_filter")),
    failed("declined", "empty", "the model declined: I cannot help",
           lambda name: wire.ok({"choices": [{"message": {
               "content": None, "refusal": "I cannot help"}, "finish_reason": "stop"}]}),
           on=(OPENAI,)),
    failed("loaded and no more", "empty", "finish reason load", says("", reason="load"),
           on=(OLLAMA,)),
    failed("a text without an end", "too_large", "characters for critic.max_tokens",
           says("on and on " * 100_000)),
    failed("a body without an end", "too_large", "more than",
           body(b" " * (REPLY_BYTES + 1)), on=SERVED),
    failed("much, packed", "too_large", "more than",
           packed(gzip.compress, "gzip", b" " * 4 * REPLY_BYTES)),
    failed("packed twice", "invalid", "packed as 'gzip, gzip'",
           packed(lambda one: gzip.compress(gzip.compress(one)), "gzip, gzip")),
    failed("packed as br", "invalid", "packed as 'br'", packed(lambda one: one, "br")),
    failed("not packed as it says", "invalid", "format", packed(lambda one: one, "gzip")),
    *(failed(f"the server: {fault.action}", "timeout", "no reply within 0.4 s", does(fault),
             settings=(("deadline_s", 0.4),))
      for fault in (wire.STALL, wire.DRIP, wire.DRIP_HEADERS)),
    *(failed(f"the server: {fault.action}", "reset", "", does(fault))
      for fault in (wire.HANG_UP, wire.RESET, wire.SHORT)),
    *(failed(f"no HTTP: {name}", "reset", "", raw(content)) for name, content in {
        "a banner": b"SSH-2.0-OpenSSH_9.6\r\n", "zeros": b"\0" * 100,
        "a status": b"HTTP/1.1 OK\r\n",
        "a length": b"HTTP/1.1 200 OK\r\nContent-Length: many\r\n\r\n{}",
        "two lengths": b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nContent-Length: 3\r\n\r\n{} ",
        "a large header": b"HTTP/1.1 200 OK\r\nX: " + b"x" * 300_000 + b"\r\n\r\n",
        "a chunk": b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n{}",
    }.items()),
    failed("nobody there", "connect", "cannot reach", settings=(("base_url", "closed"),)),
    failed("no TLS", "connect", "cannot reach", says(), settings=(("base_url", "https"),)),
    *(failed(f"Ollama: {name}", "http_500", re.escape(words), refuses(500, words), on=(OLLAMA,))
      for name, words in {
        "an option": 'option "temperature" must be of type float32',
        "a format": 'invalid format: "xml"; expected "json" or a valid JSON Schema object',
        "a model": "llama-server process has terminated: error loading model vocabulary",
        "memory": "model requires more system memory (9.0 GiB) than is available (2.0 GiB)",
        "a runner that died": "an error was encountered while running the model: unexpected EOF",
    }.items()),
    failed("Ollama: a long prompt", "truncated_prompt", "raise critic.num_ctx, now 8",
           lambda name: lambda sent: SAID, on=(OLLAMA,), settings=(("num_ctx", 8),)),
    failed("Ollama: a shifted window", "truncated_prompt", "raise critic.num_ctx",
           says(used={"prompt": 400, "completion": 200}), on=(OLLAMA,),
           settings=(("num_ctx", 512),)),
    *(failed(f"AWS: {code}", kind, words, aws(code, said), on=(BEDROCK,))
      for code, said, kind, words in (
        ("ThrottlingException", "Too many", "http_429", "Too many"),
        ("ModelNotReadyException", "wait", "http_429", "wait"),
        ("ModelTimeoutException", "slow", "http_408", "slow"),
        ("ModelErrorException", "broken", "http_424", "broken"),
        ("AccessDeniedException", "no", "http_403", "no access to critic in us-east-1"),
        ("ExpiredTokenException", "old", "http_403", "aws sso login"),
        ("UnrecognizedClientException", "bad", "http_403", "aws sso login"),
        ("ResourceNotFoundException", "none", "http_404", "Bedrock has no model critic"),
        ("ValidationException", "on-demand throughput isn't supported", "http_400",
         "inference profiles only"),
        ("ServiceUnavailableException", "later", "http_503", "later"),
    )),
]  # fmt: skip
# What the same request would bring again: it is sent once.
FINAL = re.compile(
    "^http_(3|4(?!08|09|24|29))|^too_large|^truncated|thinking|filter|declined|packed as|"
    "must be of type|invalid format|loading model|system memory"
)


def chunked(content: bytes) -> bytes:
    head = (
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nContent-Type: application/json\r\n\r\n"
    )
    parts = [content[i : i + 20] for i in range(0, len(content), 20)]
    return head + b"".join(b"%x\r\n%s\r\n" % (len(p), p) for p in [*parts, b""])


MODES = [(mode, name) for mode in (*RIGHT, *FAILED) for name in mode.on]
CASES = [pytest.param(*case, id=f"{case[1]}: {case[0].name}") for case in MODES]
FEW_CASES = CASES[::10]


@pytest.fixture(scope="module", autouse=True)
def usual(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(client, "BACKOFF_S", 0.001)
        fake_bedrock.credentials(patch, tmp_path_factory.mktemp("aws"))
        yield


@pytest.fixture(scope="module")
def servers() -> Iterator[dict[str, Loopback]]:
    made = {name: PROVIDERS[name].fake().__enter__() for name in ALL}
    yield made
    for server in made.values():
        server.__exit__(None, None, None)


def played(mode: Mode, server: Loopback, again: int = 1) -> client.Client:
    """Returns a critic at the server, which does as the mode says, for so many calls."""
    answers = [answer(server.name) for answer in mode.answers]
    server.requests.clear()
    server.faults[:] = [one for one in answers[:-1] for _ in range(again)]
    last = answers[-1] if answers else None
    server.reply = last if callable(last) else lambda body: last  # type: ignore[assignment,return-value]
    settings = {"deadline_s": 20.0, **dict(mode.settings)}
    where = settings.pop("base_url", "")
    url = f"http://127.0.0.1:{free_port()}" if where == "closed" else server.url
    url = url.replace("http", "https") if where == "https" else url
    return critic_at((server.name, url), **settings)


def calls(mode: Mode, n: int = 1) -> list[Call]:
    schema = Judgement.model_json_schema() if mode.role == "judge" else None
    return [call(f"hello {i}", role=mode.role, schema=schema, attempt=str(i)) for i in range(n)]


def asked_once(mode: Mode, server: Loopback) -> None:
    with closing(played(mode, server)) as critic:
        [reply] = critic.ask(calls(mode))
    assert (reply.kind, reply.text) == (mode.kind, mode.text)
    assert all(type(n) is int and 0 <= n < 10**9 for n in reply.usage.values())
    if mode.kind:
        assert reply.error and "\n" not in reply.error and len(reply.error) < 500
        assert re.search(mode.words if server.name != BEDROCK or FORM not in mode.words else
                         "format", reply.error)  # fmt: skip
        tries = 1 if FINAL.search(f"{reply.kind} {reply.error}") else TRIES
        assert reply.tries == tries or reply.kind == "timeout"
    elif mode.role == "judge":
        assert parse(reply.text, Judgement) == Judgement.model_validate_json(VERDICT)


@pytest.mark.parametrize(("mode", "name"), FEW_CASES)
def test_a_call(mode: Mode, name: str, servers: dict[str, Loopback]) -> None:
    asked_once(mode, servers[name])


@pytest.mark.slow
@pytest.mark.parametrize(("mode", "name"), [one for one in CASES if one not in FEW_CASES])
def test_a_call_of_each_mode(mode: Mode, name: str, servers: dict[str, Loopback]) -> None:
    asked_once(mode, servers[name])


@pytest.mark.slow
@pytest.mark.parametrize(("mode", "name"), CASES)
def test_a_run_goes_on_or_stops(mode: Mode, name: str, servers: dict[str, Loopback]) -> None:
    """None of its calls is silent: it has a text, or it is counted as failed with a reason."""
    recipe = load_recipe("quickstart", [])
    with closing(played(mode, servers[name], FEW)) as critic:
        session = Session(recipe, TASKS["countdown"], {"basic": critic})
        asked = calls(mode, FEW)
        at = Try("basic", 0, "")
        if mode.kind:
            with pytest.raises(UserError) as caught:
                if mode.role == "judge":
                    session.structured(asked, [None] * FEW, at)
                else:
                    session.ask(asked, [None] * FEW, at)
            said = caught.value.message
            assert re.search(mode.words if name != BEDROCK or FORM not in mode.words else "format",
                             said)  # fmt: skip
            assert "\n" not in said and "\n" not in caught.value.hint and caught.value.hint
        elif mode.role == "judge":
            assert all(value for value, _ in session.structured(asked, [None] * FEW, at))
        else:
            assert [turn.text for turn in session.ask(asked, [None] * FEW, at)] == [mode.text] * FEW
        counts = session.figures()
    assert counts["failed"] == (FEW if mode.kind else 0)
    assert counts["calls"] == FEW and not counts["unknown"]
    assert set(counts["kinds"]) == ({mode.kind} if mode.kind else set())


def test_there_are_enough_of_them() -> None:
    for name in ALL:
        assert len({mode.name for mode, one in MODES if one == name}) >= 80
