"""What a store without valid credentials, bucket or network says, and what never shows them."""

import json
import pickle
import re
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from cdvae_ray.data import object_store
from cdvae_ray.data.roots import list_folder, open_root
from cdvae_ray.errors import CdvaeError, DataError, StorageError, holds_secrets, redact
from cdvae_ray.storage.store import Store
from cdvae_ray.training.run_folder import remember_tracking, remembered_tracking

KEY, SECRET, TOKEN = "AKIAPLANTEDKEY", "plantedSecretKey", "plantedSessionToken"
ONE_LINE = re.compile(r"s3://bucket/folder[^\n]*: got [^\n]+, expected [^\n]+; [^\n]+")
OPERATIONS = {
    "read": lambda store: store.read("a"),
    "write": lambda store: store.write("a", b"content"),
    "exists": lambda store: store.exists("a"),
    "names": lambda store: store.names(),
    "delete": lambda store: store.delete("a"),
    "write_folder": lambda store: store.write_folder("a", {"b": b""}, last="b"),
}


class Handler(BaseHTTPRequestHandler):
    """Answers every request with the server's one error, or never."""

    def answer(self):
        self.server.requests += 1
        if self.server.code == "silence":
            self.server.closing.wait(60)
            return
        self.rfile.read(int(self.headers.get("Content-Length") or 0))
        body = (
            f'<?xml version="1.0"?><Error><Code>{self.server.code}</Code><Message>about {KEY}'
            f"</Message><AWSAccessKeyId>{KEY}</AWSAccessKeyId></Error>"
        ).encode()
        self.send_response(self.server.status)
        self.send_header("Content-Type", "application/xml")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    do_GET = do_PUT = do_HEAD = do_POST = do_DELETE = answer  # noqa: N815 - the library's names

    def log_message(self, *_):
        pass


@pytest.fixture(autouse=True)
def credentials(monkeypatch, tmp_path):
    """Dummy credentials, and no others that this machine may have."""
    for name, value in {
        "AWS_ACCESS_KEY_ID": KEY,
        "AWS_SECRET_ACCESS_KEY": SECRET,
        "AWS_SESSION_TOKEN": TOKEN,
        "AWS_EC2_METADATA_DISABLED": "true",
        "AWS_SHARED_CREDENTIALS_FILE": str(tmp_path / "none"),
        "AWS_CONFIG_FILE": str(tmp_path / "none"),
    }.items():
        monkeypatch.setenv(name, value)
    for name in ("http_proxy", "HTTP_PROXY", "AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def server():
    """An object store on loopback; `code` and `status` say what it answers."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads, server.block_on_close = True, False
    server.code, server.status, server.requests = "AccessDenied", 403, 0
    server.closing = threading.Event()
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield server
    server.closing.set()
    server.shutdown()
    server.server_close()
    thread.join()


@pytest.fixture
def uri(server):
    return (
        f"s3://bucket/folder?scheme=http&region=eu&endpoint_override=127.0.0.1:{server.server_port}"
    )


def refusal(operation, store):
    with pytest.raises(StorageError) as refused:
        OPERATIONS[operation](store)
    text = str(refused.value)
    assert ONE_LINE.fullmatch(text), text
    for secret in (KEY, SECRET, TOKEN):
        assert secret not in text
    return text


@pytest.mark.parametrize("operation", OPERATIONS)
@pytest.mark.parametrize(
    ("code", "status", "got", "remedy"),
    [
        ("ExpiredToken", 400, "credentials that have expired", "renew them"),
        ("ExpiredToken", 403, "credentials that have expired", "renew them"),
        ("InvalidAccessKeyId", 403, "credentials that are not known there", "correct them"),
        ("InvalidToken", 400, "credentials that are not known there", "correct them"),
        ("SignatureDoesNotMatch", 403, "a secret key that is not the access key's", "correct"),
        ("AccessDenied", 403, "access denied", "give them the permission, or use others"),
    ],
)
def test_refused_credentials_are_named_with_where_they_are_read_from(
    server, uri, operation, code, status, got, remedy
):
    server.code, server.status = code, status
    text = refusal(operation, Store.at(uri))
    assert f": got {got}, expected " in text
    assert remedy in text
    assert "AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY and AWS_SESSION_TOKEN" in text
    assert "~/.aws/credentials" in text
    assert server.requests <= 5


@pytest.mark.parametrize("operation", ["write", "write_folder"])
def test_a_bucket_that_does_not_exist_is_named_when_it_is_written_to(server, uri, operation):
    server.code, server.status = "NoSuchBucket", 404
    text = refusal(operation, Store.at(uri))
    assert "got no such bucket" in text and "create it, or correct the address" in text


def test_nothing_is_in_a_bucket_that_does_not_exist(server, uri):
    server.code, server.status = "NoSuchBucket", 404
    store = Store.at(uri)
    assert not store.exists("a") and store.names() == []
    assert "Path does not exist" in refusal("read", store)


@pytest.mark.parametrize("operation", ["read", "write", "exists", "names"])
@pytest.mark.parametrize("copied", [False, True])
def test_a_store_that_never_answers_is_given_up(server, uri, monkeypatch, operation, copied):
    monkeypatch.setattr(object_store, "SILENT_SECONDS", 1.0)
    monkeypatch.setattr(object_store, "ATTEMPTS", 2)
    server.code = "silence"
    store = Store.at(uri)
    if copied:  # as Ray sends it to workers, which try once more
        store = pickle.loads(pickle.dumps(store))  # noqa: S301 - in memory
    text = refusal(operation, store)
    assert "got no answer in time" in text and "endpoint_override" in text
    assert server.requests <= 6


def test_a_dataset_there_is_refused_in_the_same_words(server, uri):
    server.code, server.status = "ExpiredToken", 400
    filesystem, root = open_root(uri, setting="data.path")
    with pytest.raises(DataError, match=r"data\.path s3://bucket/folder.*have expired.*renew them"):
        list_folder(filesystem, root, uri, setting="data.path")


def test_options_of_an_address_stay_behind_the_names_inside(uri):
    store = Store.at(uri)
    address, options = uri.split("?")
    child = store.child("train").child("run")
    assert child.uri == f"{address}/train/run?{options}"
    assert child.root == "bucket/folder/train/run"
    parent, name = child.parent()
    assert (parent.uri, parent.root, name) == (
        store.child("train").uri,
        "bucket/folder/train",
        "run",
    )
    again = Store.at(child.uri)
    assert again.root == child.root
    assert again.filesystem.equals(child.filesystem)


@pytest.mark.parametrize(
    "address",
    [
        f"s3://{KEY}:{SECRET}@bucket/folder",
        f"s3://{KEY}:a/{SECRET}@bucket/folder",
        f"s3://{KEY}:{SECRET}%2Fb@bucket/folder?region=eu",
        f"abfss://:{SECRET}@account/container",
        f"abfss://account/container?client_secret={SECRET}",
        f"gs://bucket/folder?scheme=https&access_token={SECRET}",
    ],
)
def test_credentials_in_an_address_are_refused_and_not_shown(address):
    assert holds_secrets(address)
    for kind, opened in (
        (StorageError, lambda: Store.at(address)),
        (DataError, lambda: open_root(address, setting="data.path")),
    ):
        with pytest.raises(kind, match="got an address with credentials in it") as refused:
            opened()
        for part in (str(refused.value), *map(str, refused.value.__reduce__()[1])):
            assert KEY not in part and SECRET not in part
        assert "AWS_ACCESS_KEY_ID" in str(refused.value)


@pytest.mark.parametrize(
    "address",
    [
        "s3://bucket/folder",
        "s3://bucket/a:b@c",
        "s3://bucket/folder?region=eu&endpoint_override=127.0.0.1:9000",
        "abfss://container@account.dfs.core.windows.net/folder",
        "http://host:5000/a@b",
        "/a/key:word@c",
    ],
)
def test_other_addresses_are_taken(address):
    assert not holds_secrets(address)


def test_no_part_of_an_error_shows_a_password():
    error = CdvaeError(
        f"s3://{KEY}:{SECRET}@bucket",
        got=OSError(f"Cannot parse URI: 's3://{KEY}:a/{SECRET}@bucket/x?token={TOKEN}'"),
        expected=f"http://user:{SECRET}@host",
        remedy=f"ask http://host/?token={TOKEN}",
    )
    shown = f"{error} {vars(error)} {error.args} {pickle.dumps(error)!r}"
    for secret in (KEY, SECRET, TOKEN):
        assert secret not in shown
    assert redact("at http://host:5000/x, of a@b") == "at http://host:5000/x, of a@b"


def test_a_run_folder_remembers_no_password_of_its_tracker(tmp_path):
    store, uri = Store.at(tmp_path), f"http://user:{SECRET}@host:5000"
    remember_tracking(store, run_id="r", uri=uri)
    assert SECRET not in (tmp_path / "tracking.json").read_text()
    assert remembered_tracking(store, uri=uri) == "r"
    assert remembered_tracking(store, uri="http://host:5000") == "r"
    assert remembered_tracking(store, uri="http://other:5000") is None
    # As earlier versions wrote it.
    (tmp_path / "tracking.json").write_text(json.dumps({"run_id": "q", "uri": uri}))
    assert remembered_tracking(store, uri=uri) == "q"
