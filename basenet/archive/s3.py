"""The archive in a bucket of S3 or of a server that speaks like it: ``s3://bucket/prefix``.

Credentials come from where every AWS program takes them, ``AWS_ENDPOINT_URL`` names another
server. boto3 is imported when the first store is opened, because not every archive is in S3.

Q17 and Q18 of the design's cluster rules stand on ``If-None-Match: *`` and ``If-Match``. Both are
sent with exactly one attempt, and `basenet.archive.remote` settles what is then in doubt.

*Quotes.* An ETag is a quoted text in HTTP, and ``If-Match`` repeats it with its quotes. Ceph's
gateway compares it with the bare text, so that no quoted one ever matches. A store that says that
the condition fails while the object is still the expected version is such a server, if it also
refuses a bare ETag that matches nothing; it gets bare ones from then on.
"""

import email.utils
import secrets
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final, TypeVar
from urllib.parse import urlsplit

from basenet.archive.port import (
    Entry,
    Object,
    StoreConflict,
    StoreNotFound,
    StoreRefused,
    StoreUnavailable,
    Token,
)
from basenet.archive.probe import PROBE_PREFIX
from basenet.archive.remote import (
    Absent,
    Backend,
    Condition,
    Limits,
    Matches,
    Page,
    RemoteStore,
)
from basenet.errors import BasenetError, UsageError

REGION_DEFAULT: Final = "us-east-1"
NANOSECONDS: Final = 1_000_000_000

_Result = TypeVar("_Result")


class _BeyondEnd(StoreRefused):
    """A range begins at or after the end of its object."""


_Sentence = tuple[type[BasenetError], str]
_BAD_CREDENTIALS: Final[_Sentence] = (
    StoreRefused,
    "{where} refuses the AWS credentials with {code}: correct them",
)
_OTHER_REGION: Final[_Sentence] = (
    StoreRefused,
    "{where} is in another region: set AWS_REGION to its region",
)
_NO_OBJECT: Final[_Sentence] = (StoreNotFound, "there is no object {name} in {where}")
_NO_PERMISSION: Final[_Sentence] = (
    StoreRefused,
    (
        "{where} gives no permission for {name}: allow s3:GetObject, s3:PutObject, s3:DeleteObject "
        "and s3:ListBucket to these credentials"
    ),
)
_BUSY: Final[_Sentence] = (StoreUnavailable, "{where} answers {status} {code}: it needs some time")
_REFUSED: Final[_Sentence] = (
    StoreRefused,
    (
        "{where} refuses a request for {name} with {status} {code}: compare BASE_ARCHIVE, "
        "BASE_ARCHIVE_SSE and the AWS variables with what the server wants"
    ),
)
_BY_CODE: Final[dict[str, _Sentence]] = {
    "NoSuchBucket": (StoreRefused, "{where} does not exist: make it, or correct BASE_ARCHIVE"),
    "RequestTimeTooSkewed": (
        StoreUnavailable,
        "the clock of this machine differs too much from that of {where}: set it right",
    ),
    "ExpiredToken": (
        StoreRefused,
        "the AWS credentials for {where} have expired: renew them, or give this machine a role",
    ),
    "InvalidAccessKeyId": _BAD_CREDENTIALS,
    "InvalidToken": _BAD_CREDENTIALS,
    "SignatureDoesNotMatch": _BAD_CREDENTIALS,
    "TokenRefreshRequired": _BAD_CREDENTIALS,
    "AuthorizationHeaderMalformed": _OTHER_REGION,
    "PermanentRedirect": _OTHER_REGION,
    # Passing troubles that Amazon answers with 400.
    "BadDigest": _BUSY,
    "IncompleteBody": _BUSY,
    "RequestTimeout": _BUSY,
    "ThrottlingException": _BUSY,
}
# After these the credentials are looked for anew: somebody may have renewed them.
_CREDENTIAL_CODES: Final = frozenset(
    {
        "ExpiredToken",
        "InvalidAccessKeyId",
        "InvalidToken",
        "SignatureDoesNotMatch",
        "TokenRefreshRequired",
    }
)
_KMS: Final[_Sentence] = (
    StoreRefused,
    "{where} cannot use its KMS ({code}): correct BASE_ARCHIVE_SSE_KMS_KEY_ID or the key's policy",
)
_BY_STATUS: Final[dict[int, _Sentence]] = {
    401: _NO_PERMISSION,
    403: _NO_PERMISSION,
    404: _NO_OBJECT,
    408: _BUSY,
    # Another conditional write to the same object is under way: the end of it is not known.
    409: _BUSY,
    412: (StoreConflict, "the condition of a write to {name} in {where} does not hold"),
    416: (_BeyondEnd, "object {name} in {where} ends before the range"),
    429: _BUSY,
    501: (
        StoreRefused,
        (
            "{where} does not know a request that basenet needs ({code}): take another server, or "
            "set BASE_ARCHIVE_UNCONDITIONAL=1 for a single writer"
        ),
    ),
}
_SERVER_FAULT_STATUS: Final = 500


@dataclass(frozen=True, slots=True, kw_only=True)
class Encryption:
    """How the server encrypts what it keeps: ``AES256``, ``aws:kms`` or ``aws:kms:dsse``."""

    algorithm: str
    kms_key_id: str | None = None


def make_encryption(algorithm: str | None, kms_key_id: str | None) -> Encryption | None:
    """Return what BASE_ARCHIVE_SSE and BASE_ARCHIVE_SSE_KMS_KEY_ID ask for; None: nothing."""
    return None if algorithm is None else Encryption(algorithm=algorithm, kms_key_id=kms_key_id)


def open_s3(
    bucket: str,
    prefix: str,
    *,
    environment: Mapping[str, str],
    limits: Limits,
    encryption: Encryption | None = None,
) -> RemoteStore:
    """Return a store on ``bucket``, whose names begin with ``prefix`` (empty, or ending with /).

    Nothing is sent yet. Raises `UsageError` when boto3 is missing or the endpoint is no URL.
    """
    return RemoteStore(
        S3Backend(bucket, prefix, environment=environment, limits=limits, encryption=encryption),
        limits,
    )


class S3Backend(Backend):
    """boto3 in the port's words."""

    def __init__(
        self,
        bucket: str,
        prefix: str,
        *,
        environment: Mapping[str, str],
        limits: Limits,
        encryption: Encryption | None,
    ) -> None:
        """See `open_s3`."""
        _import_sdk()
        self._bucket = bucket
        self._prefix = prefix
        self._environment = environment
        self._limits = limits
        self._encryption = _encryption_arguments(encryption)
        self._endpoint_url, self._server = _parse_endpoint(environment)
        self._client: Any = None
        self._client_lock = threading.Lock()
        self._compares_bare_etags: bool | None = None  # None: nothing has shown it yet
        self.url = f"s3://{bucket}/{prefix}".rstrip("/")
        self.endpoint = f"s3://{bucket} at {self._server}"

    def put(self, name: str, data: bytes, condition: Condition) -> Token:
        """Send PutObject with the condition's header."""
        match condition:
            case Absent():
                return self._put(name, data, IfNoneMatch="*")
            case Matches(token):
                return self._replace(name, data, token)
        return self._put(name, data)

    def _replace(self, name: str, data: bytes, token: Token) -> Token:
        """Write over the version ``token``, with its ETag as this server wants it."""
        if self._compares_bare_etags:
            return self._put(name, data, IfMatch=token)
        try:
            written = self._put(name, data, IfMatch=f'"{token}"')
        except StoreConflict:
            if self._compares_bare_etags is None and self._finds_bare_etags(name, token):
                self._compares_bare_etags = True
                return self._put(name, data, IfMatch=token)
            raise
        self._compares_bare_etags = False
        return written

    def _finds_bare_etags(self, name: str, token: Token) -> bool:
        """Return whether it was only the quotes that did not match: see the top of this file."""
        try:
            if self.get(name).token != token:
                return False
        except StoreNotFound:
            return False
        probe = PROBE_PREFIX + secrets.token_hex(8)
        try:
            self._put(probe, b"", IfMatch=token)
        except StoreConflict:
            return True
        self.delete(probe)  # it takes no notice of a bare ETag: never send it one
        return False

    def _put(self, name: str, data: bytes, **condition: str) -> Token:
        arguments = {**self._encryption, **condition}
        try:
            answer = self._call(
                lambda client: client.put_object(
                    Bucket=self._bucket, Key=self._prefix + name, Body=data, **arguments
                ),
                name,
            )
        except StoreNotFound as error:
            if "IfMatch" not in condition:
                raise StoreRefused(
                    f"{self.url} at {self._server} takes no objects: check that its bucket exists"
                ) from error
            # The object that If-Match speaks of is gone.
            raise StoreConflict(f"object {name} in {self.url} is gone: another was here") from error
        return _parse_etag(answer)

    def get(self, name: str) -> Object:
        """Send GetObject."""
        answer, data = self._call(lambda client: self._read(client, name), name)
        headers = answer["ResponseMetadata"]["HTTPHeaders"]
        return Object(
            data=data,
            token=_parse_etag(answer),
            modified_ns=_nanoseconds(answer.get("LastModified")),
            server_now_ns=_parse_date(headers.get("date")),
        )

    def get_range(self, name: str, start: int, length: int) -> bytes:
        """Send GetObject with a Range header."""
        wanted = f"bytes={start}-{start + length - 1}"
        try:
            _, data = self._call(lambda client: self._read(client, name, Range=wanted), name)
        except _BeyondEnd:
            return b""
        return data

    def _read(self, client: Any, name: str, **arguments: str) -> tuple[dict[str, Any], bytes]:
        answer = client.get_object(Bucket=self._bucket, Key=self._prefix + name, **arguments)
        with answer["Body"] as body:
            return answer, body.read()

    def list_page(self, prefix: str, start_after: str | None, page: str | None) -> Page:
        """Send ListObjectsV2."""
        arguments: dict[str, Any] = {"MaxKeys": self._limits.page_entries}
        if start_after is not None:
            arguments["StartAfter"] = self._prefix + start_after
        if page is not None:
            arguments["ContinuationToken"] = page
        answer = self._call(
            lambda client: client.list_objects_v2(
                Bucket=self._bucket, Prefix=self._prefix + prefix, **arguments
            ),
            prefix,
        )
        return Page(
            entries=tuple(
                Entry(name=item["Key"].removeprefix(self._prefix), size=item["Size"])
                for item in answer.get("Contents", ())
            ),
            next_page=answer.get("NextContinuationToken") if answer.get("IsTruncated") else None,
        )

    def delete(self, name: str) -> None:
        """Send DeleteObject."""
        try:
            self._call(
                lambda client: client.delete_object(Bucket=self._bucket, Key=self._prefix + name),
                name,
            )
        except StoreNotFound:
            return

    def close(self) -> None:
        """Close the connection pool."""
        if self._client is not None:
            self._client.close()

    def _call(self, call: Callable[[Any], _Result], name: str) -> _Result:
        """Let ``call`` use the client, and turn what goes wrong into the store's errors."""
        import botocore.exceptions  # noqa: PLC0415  (not every archive is in S3)
        import urllib3.exceptions  # noqa: PLC0415  (comes with botocore, which lets some through)

        try:
            return call(self._get_client())
        except botocore.exceptions.ClientError as error:
            if error.response.get("Error", {}).get("Code") in _CREDENTIAL_CODES:
                self._forget_credentials()
            raise self._explain_answer(error.response, name) from error
        except botocore.exceptions.BotoCoreError as error:
            if isinstance(error, botocore.exceptions.NoCredentialsError):
                self._forget_credentials()
            raise self._explain_failure(error) from error
        except (urllib3.exceptions.HTTPError, OSError) as error:
            raise self._unreachable(type(error).__name__) from error

    def _get_client(self) -> Any:
        # Made at the first call and in its thread: finding credentials can mean asking a server.
        with self._client_lock:
            if self._client is None:
                self._client = self._make_client()
            return self._client

    def _forget_credentials(self) -> None:
        """Let the next call look for credentials; calls under way keep the client they have."""
        with self._client_lock:
            self._client = None

    def _make_client(self) -> Any:
        import boto3  # noqa: PLC0415  (not every archive is in S3)
        from botocore.config import Config  # noqa: PLC0415  (the same)

        get = self._environment.get
        keys = {}
        if get("AWS_ACCESS_KEY_ID") and get("AWS_SECRET_ACCESS_KEY"):
            keys = {
                "aws_access_key_id": get("AWS_ACCESS_KEY_ID"),
                "aws_secret_access_key": get("AWS_SECRET_ACCESS_KEY"),
                "aws_session_token": get("AWS_SESSION_TOKEN") or None,
            }
        session = boto3.Session(profile_name=get("AWS_PROFILE") or None, **keys)
        # boto3 knows AWS_DEFAULT_REGION only, every other SDK AWS_REGION.
        region = get("AWS_REGION") or get("AWS_DEFAULT_REGION") or session.region_name
        client = session.client(
            "s3",
            region_name=region or REGION_DEFAULT,
            endpoint_url=self._endpoint_url,
            config=Config(
                connect_timeout=self._limits.connect_timeout_seconds,
                read_timeout=self._limits.read_timeout_seconds,
                max_pool_connections=self._limits.concurrent_calls_max,
                retries={"mode": "standard", "total_max_attempts": 1},
                request_checksum_calculation="when_required",
                response_checksum_validation="when_required",
                s3={"addressing_style": "path" if self._endpoint_url else "auto"},
                user_agent_extra="basenet",
            ),
        )
        client.meta.events.register_last("before-call.s3", _send_body_at_once)
        return client

    def _explain_answer(self, response: Mapping[str, Any], name: str) -> BasenetError:
        """Turn an error that the server answered into the store's; never quote what it wrote."""
        code = str(response.get("Error", {}).get("Code", ""))
        status = int(response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0))
        is_server_fault = status == 0 or status >= _SERVER_FAULT_STATUS
        otherwise = _BUSY if is_server_fault else _REFUSED
        is_of_kms = code.startswith("KMS.") and not is_server_fault
        known = _KMS if is_of_kms else _BY_CODE.get(code)
        kind, sentence = known or _BY_STATUS.get(status) or otherwise
        where = f"bucket {self._bucket} at {self._server}"
        return kind(sentence.format(where=where, name=name, code=code, status=status))

    def _explain_failure(self, error: Exception) -> BasenetError:
        """Turn an error that boto3 found without an answer into the store's."""
        from botocore import exceptions  # noqa: PLC0415  (not every archive is in S3)

        if isinstance(
            error,
            exceptions.NoCredentialsError
            | exceptions.PartialCredentialsError
            | exceptions.CredentialRetrievalError
            | exceptions.ProfileNotFound,
        ):
            return StoreRefused(
                "no usable AWS credentials were found: set AWS_ACCESS_KEY_ID and "
                "AWS_SECRET_ACCESS_KEY, AWS_PROFILE, or give this machine a role"
            )
        if isinstance(error, exceptions.ParamValidationError | exceptions.InvalidRegionError):
            return StoreRefused(f"{self.url} or AWS_REGION is not one that S3 can have: correct it")
        return self._unreachable(type(error).__name__)

    def _unreachable(self, reason: str) -> StoreUnavailable:
        hint = ""
        endpoint = self._environment.get("AWS_ENDPOINT_URL", "")
        if endpoint and "://" not in endpoint:
            hint = "; AWS_ENDPOINT_URL has no scheme, so https:// was taken"
        return StoreUnavailable(
            f"the S3 endpoint {self._server} does not answer as it should ({reason}): "
            f"check the network and AWS_ENDPOINT_URL{hint}"
        )


def _send_body_at_once(params: dict[str, Any], **_: Any) -> None:
    """Drop ``Expect: 100-continue``, which costs every write one more way there and back."""
    params["headers"].pop("Expect", None)


def _import_sdk() -> None:
    try:
        import boto3  # noqa: F401, PLC0415  (only whether it is there, before anything is started)
    except ImportError as error:
        raise UsageError("an archive at s3:// needs boto3: run pip install basenet[s3]") from error


def _parse_endpoint(environment: Mapping[str, str]) -> tuple[str | None, str]:
    """Return the endpoint for boto3 (None: Amazon's), and its name for people, without secrets."""
    text = environment.get("AWS_ENDPOINT_URL_S3") or environment.get("AWS_ENDPOINT_URL")
    if not text:
        return None, "Amazon S3"
    url = text if "://" in text else f"https://{text}"
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise UsageError("AWS_ENDPOINT_URL is not usable: give host:port or http(s)://host:port")
    if parts.username is not None:
        raise UsageError(
            f"AWS_ENDPOINT_URL for {parts.hostname} holds a user name: give credentials in "
            "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"
        )
    return url, f"{parts.scheme}://{parts.netloc}"


def _encryption_arguments(encryption: Encryption | None) -> dict[str, str]:
    if encryption is None:
        return {}
    arguments = {"ServerSideEncryption": encryption.algorithm}
    if encryption.kms_key_id is not None:
        arguments["SSEKMSKeyId"] = encryption.kms_key_id
    return arguments


def _parse_etag(answer: Mapping[str, Any]) -> Token:
    """Return the ETag bare: some servers quote it, some do not, and some do both."""
    etag = answer.get("ETag")
    if not isinstance(etag, str) or not etag.strip('"'):
        raise StoreUnavailable(
            "the S3 server answered without an ETag: it cannot be an archive, or is in trouble"
        )
    return Token(etag.removeprefix("W/").strip('"'))


def _nanoseconds(moment: datetime | None) -> int | None:
    return None if moment is None else round(moment.timestamp()) * NANOSECONDS


def _parse_date(text: str | None) -> int | None:
    if text is None:
        return None
    try:
        return _nanoseconds(email.utils.parsedate_to_datetime(text))
    except ValueError:
        return None
