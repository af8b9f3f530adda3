"""A loopback HTTP server that speaks Bedrock's Converse, with scripted replies and faults.

It cuts a reply at maxTokens with stopReason "max_tokens".
"""

import json
import re
from pathlib import Path

import pytest

from support.fake_server import Body, Fault, Loopback, Seen, cut

CONVERSE = re.compile("/model/([^/]+)/converse")
STATUS = {
    "ValidationException": 400, "AccessDeniedException": 403, "UnrecognizedClientException": 403,
    "ExpiredTokenException": 403, "ResourceNotFoundException": 404, "ModelTimeoutException": 408,
    "ModelErrorException": 424, "ThrottlingException": 429, "ModelNotReadyException": 429,
    "InternalServerException": 500, "ServiceUnavailableException": 503,
}  # fmt: skip
SECRET = "very/secret+access+key"
BAD_JSON = Fault(body=b'{"output": {"message": {"role": "assist')
WRONG_SCHEMA = Fault(body=b'{"choices": [{"message": {"content": "another API"}}]}')
NOT_UTF8 = Fault(
    body=b'{"output": {"message": {"role": "assistant", "content": [{"text": "\xff\xfe"}]}}}'
)


def aws(code: str, message: str = "scripted fault", retry_after: str | float = "") -> Fault:
    """An error as AWS sends it: its kind in a header, its words in the body."""
    headers = {"x-amzn-ErrorType": f"{code}:http://internal.amazon.com/coral/"}
    if retry_after != "":
        headers["Retry-After"] = str(retry_after)
    return Fault(STATUS[code], json.dumps({"message": message}).encode(), headers)


def credentials(patch: pytest.MonkeyPatch, folder: Path) -> None:
    """Those of a user who has nothing else set; folder: of boto3's files, which are not there."""
    for name in ("AWS_PROFILE", "AWS_DEFAULT_REGION", "AWS_REGION", "AWS_CA_BUNDLE",
                 "AWS_BEARER_TOKEN_BEDROCK", "AWS_SESSION_TOKEN"):  # fmt: skip
        patch.delenv(name, raising=False)
    for name in ("AWS_CONFIG_FILE", "AWS_SHARED_CREDENTIALS_FILE"):
        patch.setenv(name, str(folder / name))
    patch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    patch.setenv("AWS_ACCESS_KEY_ID", "AKIDEXAMPLE")
    patch.setenv("AWS_SECRET_ACCESS_KEY", SECRET)


class FakeBedrock(Loopback):
    name = "bedrock"

    def is_chat(self, path: str) -> bool:
        return CONVERSE.fullmatch(path) is not None

    def answer(self, seen: Seen) -> Fault:
        if not self.is_chat(seen.path):
            return aws("ResourceNotFoundException", "no such page")
        return self.chat(seen.body)

    @classmethod
    def said(cls, body: Body) -> str:
        return "".join(block["text"] for block in body["messages"][-1]["content"])

    def written(self, body: Body, text: str, fields: Body) -> Body:
        sent, text, tokens, was_cut = cut(
            self.said(body), text, body["inferenceConfig"]["maxTokens"]
        )
        response = {
            "output": {"message": {"role": "assistant", "content": [{"text": text}]}},
            "stopReason": "max_tokens" if was_cut else "end_turn",
            "usage": {"inputTokens": sent, "outputTokens": tokens, "totalTokens": sent + tokens},
            "metrics": {"latencyMs": 1},
        }
        return response | fields
