"""A bucket behind S3's own API: moto's server on a free port of this machine, which s3fs asks over HTTP as it asks AWS or MinIO."""

import contextlib
import json
import logging
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import fsspec
import pytest

from moe.corpora.shard_cache import stated

NAME, KEY, SECRET = "corpora", "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"
ALLOWED = {"Version": "2012-10-17", "Statement": [{"Effect": "Allow", "Action": "s3:*", "Resource": "*"}]}
SETTINGS = {KEY: "anybody", SECRET: "anything", "AWS_DEFAULT_REGION": "us-east-1", "AWS_EC2_METADATA_DISABLED": "true"}
FROM_OUTSIDE = ("AWS_PROFILE", "AWS_SESSION_TOKEN", "AWS_ENDPOINT_URL_S3", "AWS_CA_BUNDLE")


@dataclass(frozen=True)
class Bucket:
    """The server's endpoint, and how its owner, who needs no right, puts things there."""

    endpoint: str
    client: Any

    def upload(self, folder: Path, name: str) -> str:
        """The files of a folder, and the empty keys that consoles make for folders; returns their address."""
        paths = sorted(folder.rglob("*"))
        for path in paths:
            key = f"{name}/{path.relative_to(folder).as_posix()}"
            self.client.put_object(
                Bucket=NAME, Key=key if path.is_file() else f"{key}/", Body=path.read_bytes() if path.is_file() else b""
            )
        return f"s3://{NAME}/{name}"

    def delete(self, address: str) -> None:
        """Remove one file."""
        self.client.delete_object(Bucket=NAME, Key=address.removeprefix(f"s3://{NAME}/"))

    def new_keys(self, policy: dict[str, Any]) -> dict[str, str]:
        """Credentials of a new user who may do what the policy says, as environment variables."""
        import boto3

        iam = boto3.client("iam")
        name = f"user{len(iam.list_users()['Users'])}"
        iam.create_user(UserName=name)
        iam.put_user_policy(UserName=name, PolicyName="own", PolicyDocument=json.dumps(policy))
        made = iam.create_access_key(UserName=name)["AccessKey"]
        return {KEY: made["AccessKeyId"], SECRET: made["SecretAccessKey"]}


@contextlib.contextmanager
def bucket() -> Iterator[Bucket]:
    """A server with an empty bucket, which the environment names, for as long as the block."""
    pytest.importorskip("s3fs", reason="needs requirements-buckets.txt")
    pytest.importorskip("moto", reason="needs requirements-dev.txt")
    import boto3
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    server.start()
    with pytest.MonkeyPatch.context() as patch:
        for name in FROM_OUTSIDE:
            patch.delenv(name, raising=False)
        endpoint = "http://{}:{}".format(*server.get_host_and_port())
        for name, value in (SETTINGS | {"AWS_ENDPOINT_URL": endpoint}).items():
            patch.setenv(name, value)
        client = boto3.client("s3")
        client.create_bucket(Bucket=NAME)
        try:
            yield Bucket(endpoint, client)
        finally:
            ask_anew()
            server.stop()


@contextlib.contextmanager
def asking_for_keys() -> Iterator[None]:
    """Within the block the server looks at who asks."""
    from moto.core.authorization import enable_iam_authentication

    with enable_iam_authentication():
        yield


def ask_anew() -> None:
    """Forget what this process knows of addresses, as a new process does."""
    import s3fs

    s3fs.S3FileSystem.clear_instance_cache()
    stated.cache_clear()


def endpoint_by_fsspec(patch: pytest.MonkeyPatch, variable: str, value: str) -> None:
    """What fsspec makes of a variable when it is loaded."""
    patch.setattr(fsspec.config, "conf", {})
    fsspec.config.set_conf_env(fsspec.config.conf, {variable: value})
