"""Critics on Amazon Bedrock, through boto3's Converse (extra `bedrock`): any model or profile.

boto3 finds the credentials, signs and reads. The request itself goes over our own wire, because
boto3's has an end for a server that says nothing, but none for one that never stops.
"""

import os
import re
import ssl
from itertools import groupby
from operator import itemgetter
from types import SimpleNamespace
from typing import Any

import httpx

from mlxreflect.config.schema import CriticConfig
from mlxreflect.core.errors import UserError
from mlxreflect.core.records import Messages
from mlxreflect.critics.base import Call, Reply
from mlxreflect.critics.http import (
    NOTHING,
    CallError,
    Wire,
    fold_system,
    invalid_reply,
    reading,
    token_counts,
    typed,
    with_thought,
)

BEARER = "AWS_BEARER_TOKEN_BEDROCK"  # read by boto3 itself
REASONS = {
    "end_turn": "stop", "stop_sequence": "stop", "max_tokens": "length",
    "model_context_window_exceeded": "length",
}  # fmt: skip
EXPIRED = ("ExpiredTokenException", "UnrecognizedClientException", "InvalidSignatureException")


class Bedrock:
    """One model or inference profile. `base_url` replaces the endpoint of the region.

    Raises UserError where boto3, the profile or the region is missing.
    """

    own = False
    silent = "Bedrock does not answer"
    start = "try again, or set critic.region"

    def __init__(self, config: CriticConfig) -> None:
        self.config = config
        self.session: Any = None
        self.runtime: Any = None
        if not config.replay:
            self.session, self.runtime = open_runtime(config)
            self.runtime.meta.events.register("before-send.bedrock-runtime.Converse", self.deliver)
        self.wire = Wire(self.runtime.meta.endpoint_url if self.runtime else "Bedrock")
        verify = trusted_certificates(os.environ.get("AWS_CA_BUNDLE", ""))
        self.http = self.wire.client(verify=verify)

    def preflight(self) -> None:
        """Looks for credentials. Whether they open this model is known at the first call."""
        if os.environ.get(BEARER):
            return
        from botocore.exceptions import BotoCoreError, ClientError

        try:
            found = self.session.get_credentials()
            if found is not None:
                found.get_frozen_credentials()  # renews what has expired
        except (BotoCoreError, ClientError) as error:
            raise unusable(error) from None
        if found is None:
            raise UserError(
                "no AWS credentials were found",
                f"run `aws configure`, set critic.profile, or export {BEARER}",
            )

    def send(self, call: Call, refused: frozenset[str]) -> Reply:
        from botocore.exceptions import BotoCoreError, ClientError
        from botocore.parsers import ResponseParserError

        limits: dict[str, Any] = {"maxTokens": self.config.max_tokens}
        if self.config.top_p < 1:
            limits["topP"] = self.config.top_p
        if "temperature" not in refused:
            limits["temperature"] = call.heat(self.config.temperature)
        messages = fold_system(call.messages) if "system" in refused else call.messages
        asked = {"modelId": self.config.model, "inferenceConfig": limits, **divided(messages)}
        try:
            with reading():  # boto3 reads the reply, and raises what it meets there
                answer = self.runtime.converse(**asked)
        except ClientError as error:
            raise self.refusal(error.response) from None
        except BotoCoreError as error:  # credentials that ended meanwhile, an id that is none
            said = self.wire.clean(one_line(error))
            raise CallError("refused", said, usage=NOTHING) from None
        except ResponseParserError as error:
            raise invalid_reply(error) from None
        return self.read(answer, call)

    @reading()
    def read(self, answer: dict[str, Any], call: Call) -> Reply:
        blocks = answer["output"]["message"]["content"]
        usage, reason = answer.get("usage") or {}, str(answer.get("stopReason") or "")
        reason = REASONS.get(reason, reason)
        thoughts = [block["reasoningContent"] for block in blocks if "reasoningContent" in block]
        thought = "".join(one.get("reasoningText", {}).get("text", "") for one in thoughts)
        text = "".join(block["text"] for block in blocks if "text" in block)
        return Reply(
            with_thought(thought, text, call, reason == "length"),
            finish_reason=reason or None,
            usage=token_counts(usage.get("inputTokens"), usage.get("outputTokens")),
        )

    def deliver(self, request: Any, **_: Any) -> Any:
        """Sends what boto3 has signed and hands its response back; called by boto3."""
        from botocore.awsrequest import AWSResponse

        headers = {
            name: value.decode() if isinstance(value, bytes) else value
            for name, value in request.headers.items()
        }
        sent = httpx.Request(request.method, request.url, headers=headers, content=request.body)
        with typed(self.wire.shown):
            response = self.http.send(sent)
        raw = SimpleNamespace(stream=lambda: [response.content])
        return AWSResponse(request.url, response.status_code, dict(response.headers), raw)

    def refusal(self, response: dict[str, Any]) -> CallError:
        """Returns the error of a refused call: plain words where there are some, then AWS's own."""
        meta = response.get("ResponseMetadata") or {}
        fault = response.get("Error") or {}
        code, said = str(fault.get("Code", "")), str(fault.get("Message", ""))
        status = meta.get("HTTPStatusCode", 500)
        asked = meta.get("HTTPHeaders", {}).get("retry-after", "")
        error = self.wire.refusal(status, said or code, asked)
        meaning = explain(code, said, self.config.model, self.runtime.meta.region_name)
        return CallError(
            error.kind,
            f"{meaning} ({error})" if meaning else str(error),
            # 424: the model failed, and may not the next time.
            retry=error.retry or code == "ModelErrorException",
            retry_after=error.retry_after,
            blame=refused_parameter(str(error)) if status == 400 else None,
        )

    def close(self) -> None:
        self.http.close()


def open_runtime(config: CriticConfig) -> tuple[Any, Any]:
    """Opens boto3's session and its client. Raises UserError for what a person can mend."""
    try:
        import boto3
        from botocore.config import Config
        from botocore.exceptions import BotoCoreError, NoRegionError, ProfileNotFound
    except ImportError:
        raise UserError(
            'critic.provider = "bedrock" needs boto3, which is not installed',
            "run: pip install 'mlxreflect[bedrock]'",
        ) from None
    once = Config(retries={"total_max_attempts": 1, "mode": "standard"})  # our client repeats
    place, profile = config.region or None, config.profile or None
    try:
        session = boto3.Session(profile_name=profile, region_name=place)
        url = config.base_url or None
        return session, session.client("bedrock-runtime", endpoint_url=url, config=once)
    except ProfileNotFound as error:
        fault, hint = one_line(error), "correct critic.profile or AWS_PROFILE, or `aws configure`"
    except NoRegionError:
        fault, hint = "no AWS region is set", "add --set critic.region=us-east-1, or another"
    except ValueError as error:
        fault, hint = one_line(error), "correct critic.region or critic.base_url"
    except BotoCoreError as error:
        raise unusable(error) from None
    raise UserError(fault, hint)


def trusted_certificates(certificates: str) -> ssl.SSLContext | bool:
    """Returns whom TLS trusts. certificates: a file of them; "": the usual ones."""
    if not certificates:
        return True
    try:
        return ssl.create_default_context(cafile=certificates)
    except OSError:  # also what ssl says of a file without any
        raise UserError(
            f"{certificates} is no file of certificates", "correct or unset AWS_CA_BUNDLE"
        ) from None


def unusable(error: Exception) -> UserError:
    return UserError(
        f"the AWS credentials cannot be used: {one_line(error)}",
        "renew them, for example with `aws sso login`, or set critic.profile",
    )


def divided(messages: Messages) -> dict[str, list[Any]]:
    """Returns system texts, and the other messages with neighbours of one role as one."""
    system = [{"text": m["content"]} for m in messages if m["role"] == "system"]
    others = [m for m in messages if m["role"] != "system"]
    turns = [
        {"role": role, "content": [{"text": m["content"]} for m in neighbours]}
        for role, neighbours in groupby(others, key=itemgetter("role"))
    ]
    return {"messages": turns, **({"system": system} if system else {})}


def refused_parameter(said: str) -> str | None:
    """Returns what a model does not take, of what can be left out of a request or put otherwise."""
    if re.search("system (messages|prompts?|role)", said):
        return "system"
    return "temperature" if "temperature" in said else None


def explain(code: str, said: str, model: str, region: str) -> str:
    """Says what a person can do about an error of AWS; empty where its own words have to do."""
    if "on-demand throughput" in said:
        profiles = f"{model} is served through inference profiles only"
        return f"{profiles}: set critic.model to the id of one, for example us.{model}"
    if code in EXPIRED:
        return "AWS does not accept the credentials: renew them, for example with `aws sso login`"
    if code == "AccessDeniedException":
        page = "request it on the model access page of the Bedrock console"
        return f"no access to {model} in {region}: {page}, and allow bedrock:InvokeModel"
    if code == "ResourceNotFoundException" or "model identifier is invalid" in said:
        return f"Bedrock has no model {model} in {region}: correct critic.model or critic.region"
    return ""


def one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:200]
