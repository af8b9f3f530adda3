"""What the Bedrock critic alone does: the real boto3 client against a loopback server."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from support import fake_bedrock as fake
from support.critics import ask, call, critic_at
from support.fake_bedrock import FakeBedrock, aws
from support.fake_server import Body, Fault

from mlxreflect.core.errors import UserError
from mlxreflect.critics.base import Reply

TOKEN, BEARER = "session//token==", "bedrock-api-key-abc=="
AWS = ("bedrock", "")  # its own endpoint
ARN = "arn:aws:bedrock:us-east-1:123456789012:inference-profile/us.amazon.nova-pro-v1:0"


@pytest.fixture(autouse=True)
def nothing_of_the_users(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    fake.credentials(monkeypatch, tmp_path)


# ---- what is sent and what comes back ------------------------------------------------------------


@pytest.mark.parametrize(
    ("model", "path"),
    [
        ("us.amazon.nova-pro-v1:0", "/model/us.amazon.nova-pro-v1%3A0/converse"),
        (ARN, "/model/arn%3Aaws%3Abedrock%3Aus-east-1%3A123456789012%3Ainference-profile%2Fus."
              "amazon.nova-pro-v1%3A0/converse"),
    ],
)  # fmt: skip
def test_what_is_sent(model: str, path: str) -> None:
    with FakeBedrock() as server:
        ask(server, temperature=0.25, max_tokens=99, model=model)
        [seen] = server.requests
    assert seen.path == path
    assert seen.body == {
        "system": [{"text": "Review."}],
        "messages": [{"role": "user", "content": [{"text": "hello"}]}],
        "inferenceConfig": {"maxTokens": 99, "temperature": 0.25},
    }
    signed = seen.headers["authorization"]
    assert signed.startswith("AWS4-HMAC-SHA256 Credential=AKIDEXAMPLE/")
    assert "/us-east-1/bedrock/aws4_request" in signed
    # What was signed is what came.
    names = signed.partition("SignedHeaders=")[2].partition(",")[0].split(";")
    assert set(names) <= set(seen.headers)
    assert seen.headers["host"] == server.url.removeprefix("http://")


def test_neighbours_of_one_role_become_one_message() -> None:
    messages = [
        {"role": "system", "content": "a"}, {"role": "user", "content": "b"},
        {"role": "user", "content": "c"}, {"role": "assistant", "content": "d"},
        {"role": "system", "content": "e"}, {"role": "user", "content": "cut \ud83d"},
    ]  # fmt: skip
    with FakeBedrock() as server:
        ask(server, call(messages=messages), call(messages=messages[1:2]))
        both = {len(body["messages"]): body for body in server.chats}
    assert both[3]["system"] == [{"text": "a"}, {"text": "e"}]
    assert both[3]["messages"] == [
        {"role": "user", "content": [{"text": "b"}, {"text": "c"}]},
        {"role": "assistant", "content": [{"text": "d"}]},
        {"role": "user", "content": [{"text": "cut ?"}]},
    ]
    assert "system" not in both[1]


def test_reasoning_is_left_out_and_texts_are_joined() -> None:
    blocks = [
        {"reasoningContent": {"reasoningText": {"text": "thought", "signature": "s"}}},
        {"text": "one, "}, {"text": "two"},
    ]  # fmt: skip
    answer = {"output": {"message": {"role": "assistant", "content": blocks}}}
    with FakeBedrock(reply=lambda body: answer) as server:
        assert ask(server)[0].text == "one, two"


@pytest.mark.parametrize(
    ("stop", "expected"),
    [("end_turn", "stop"), ("stop_sequence", "stop"), ("max_tokens", "length"),
     ("guardrail_intervened", "guardrail_intervened")],
)  # fmt: skip
def test_why_it_stopped(stop: str, expected: str) -> None:
    def reply(body: Body) -> Body:
        return FakeBedrock().written(body, "fine", {"stopReason": stop, "usage": None})

    with FakeBedrock(reply=reply) as server:  # usage may be missing
        assert ask(server)[0] == Reply("fine", finish_reason=expected)


# ---- faults --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fault", "meaning"),
    [
        (aws("ValidationException", "Invocation of model ID critic with on-demand throughput isn’t "
             "supported. Retry your request with the ID or ARN of an inference profile"),
         "set critic.model to the id of one, for example us.critic"),
        (aws("ValidationException", "The provided model identifier is invalid."),
         "Bedrock has no model critic in us-east-1"),
        (aws("ResourceNotFoundException", "Could not resolve the foundation model"),
         "Bedrock has no model critic in us-east-1"),
        (aws("AccessDeniedException", "You don't have access to the model"),
         "no access to critic in us-east-1: request it on the model access page"),
        (aws("ExpiredTokenException", "The security token included in the request is expired"),
         "renew them, for example with `aws sso login`"),
        (aws("UnrecognizedClientException", "The security token is invalid."), "renew them"),
    ],
)  # fmt: skip
def test_errors_in_plain_words(fault: Fault, meaning: str) -> None:
    with FakeBedrock(faults=[fault]) as server:
        [reply] = ask(server)
    assert meaning in (reply.error or "")
    assert "HTTP 40" in (reply.error or "")  # and AWS's own words


@pytest.mark.parametrize(
    "words",
    ["This model doesn't support the temperature field. Remove temperature and try again.",
     "The model returned the following errors: `temperature` is deprecated for this model."],
)  # fmt: skip
def test_a_refused_temperature_is_left_out_from_then_on(words: str) -> None:
    def reply(body: Body) -> str | Fault:
        refused = "temperature" in body["inferenceConfig"]
        return aws("ValidationException", words) if refused else FakeBedrock.echo(body)

    with FakeBedrock(reply=reply) as server:
        replies = ask(server, call("a"), call("b"), concurrency=1)
        assert len(server.chats) == 3
    assert [one.text for one in replies] == ["reply to a", "reply to b"]


# ---- credentials ---------------------------------------------------------------------------------


@pytest.fixture
def certificate(tmp_path: Path) -> Path:
    """A certificate of 127.0.0.1 and its key in one file, signed by itself."""
    path = tmp_path / "certificate.pem"
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-keyout", path,
         "-out", tmp_path / "public.pem", "-subj", "/CN=127.0.0.1",
         "-addext", "subjectAltName=IP:127.0.0.1"],
        check=True, capture_output=True,
    )  # fmt: skip
    path.write_text(path.read_text() + (tmp_path / "public.pem").read_text())
    return path


@pytest.mark.skipif(not shutil.which("openssl"), reason="makes its certificate with openssl")
def test_a_bearer_token_is_used_and_kept_secret(
    certificate: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """boto3 sends one over TLS only; AWS_CA_BUNDLE says whom to trust."""
    monkeypatch.setenv("AWS_BEARER_TOKEN_BEDROCK", BEARER)
    monkeypatch.setenv("AWS_CA_BUNDLE", str(certificate.with_name("public.pem")))
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    with FakeBedrock(reply=lambda body: f"you sent {BEARER}", certificate=certificate) as server:
        critic = critic_at(server)
        critic.preflight()
        assert critic.ask([call()])[0].text == "you sent [key]"
        critic.close()
        assert server.requests[0].headers["authorization"] == f"Bearer {BEARER}"


@pytest.mark.parametrize(
    ("environment", "settings", "said", "mends"),
    [
        ({"AWS_SECRET_ACCESS_KEY": None}, {},
         "the AWS credentials cannot be used: Partial credentials", "critic.profile"),
        ({"AWS_CA_BUNDLE": "missing.pem"}, {}, "missing.pem is no file of cert", "AWS_CA_BUNDLE"),
        ({"AWS_CA_BUNDLE": __file__}, {}, f"{__file__} is no file of cert", "AWS_CA_BUNDLE"),
        ({}, {"profile": "mine"}, "(mine) could not be found", "correct critic.profile"),
        ({}, {"region": ""}, "no AWS region is set", "critic.region=us-east-1"),
        ({}, {"region": "us east"}, "us east", "correct critic.region or critic.base_url"),
        ({}, {"base_url": "nowhere"}, "nowhere", "correct critic.region or critic.base_url"),
        ({"AWS_ACCESS_KEY_ID": None}, {}, "no AWS credentials were found",
         "run `aws configure`, set critic.profile, or export AWS_BEARER_TOKEN_BEDROCK"),
    ],
)  # fmt: skip
def test_what_a_person_can_mend(
    environment: dict[str, str | None], settings: dict[str, str], said: str, mends: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    for name, value in environment.items():
        monkeypatch.setenv(name, value) if value else monkeypatch.delenv(name)
    with pytest.raises(UserError) as caught:
        critic_at(AWS, **settings).preflight()
    assert said in caught.value.message and mends in caught.value.hint


def test_credentials_that_end_meanwhile_are_a_failed_call(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    critic = critic_at(AWS)
    assert critic.ask([call()])[0].kind == "refused"
    critic.close()


def test_a_profile_and_its_region(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    (tmp_path / "AWS_CONFIG_FILE").write_text(
        "[profile mine]\nregion = eu-west-3\naws_access_key_id = AKIDPROFILE\n"
        "aws_secret_access_key = b\n"
    )
    with FakeBedrock() as server:
        critic = critic_at(server, profile="mine", region="")
        critic.preflight()
        critic.ask([call()])
        critic.close()
        assert "AKIDPROFILE" in server.requests[0].headers["authorization"]
        assert "/eu-west-3/" in server.requests[0].headers["authorization"]


def test_only_a_replay_needs_no_boto3(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "boto3", None)
    with pytest.raises(UserError, match="needs boto3") as caught:
        critic_at(AWS)
    assert caught.value.hint == "run: pip install 'mlxreflect[bedrock]'"
    critic = critic_at(AWS, replay=True)
    critic.preflight()
    critic.close()
