"""Asks the gateway itself whether a configuration is one, with stand-ins for the secrets that it names."""

import base64
import os
import re
import secrets
import subprocess
import tempfile
from pathlib import Path

import yaml

ROOT = Path(__file__).parents[2]
BINARY = Path(os.environ.get("GATEWAY_BINARY", ROOT / "target/debug/emporix-gateway"))

# `key_file: /path`, also as an item of a list.
NAMED_FILE = re.compile(r"^[ -]*(\w+)_file: *(\S+)$", re.MULTILINE)


def faults(text, holds):
    """What is wrong with a configuration; `holds` says whether a file is there where the gateway will run."""
    named = NAMED_FILE.findall(text)
    found = [f"{key}_file: nothing puts {path} there" for key, path in named if not holds(path)]
    with tempfile.TemporaryDirectory() as folder:
        for key, path in named:
            stand_in = Path(folder + path)
            stand_in.parent.mkdir(parents=True, exist_ok=True)
            stand_in.write_text(content(key))
        file = Path(folder, "config.yaml")
        file.write_text(NAMED_FILE.sub(lambda found: found[0].replace(found[2], folder + found[2]), text))
        answer = subprocess.run([BINARY, "check-config", "--config", file], capture_output=True, text=True, env={})
    told = [line for line in answer.stderr.replace(folder, "").splitlines() if line.strip()]
    return found + ([" · ".join(told)] if answer.returncode else [])


def proxy_faults(text):
    """Behind a proxy whose word does not count, every client has the proxy's address, and all share one rate."""
    trusted = (yaml.safe_load(text).get("listen") or {}).get("trusted_proxies")
    return [] if trusted else ["listen.trusted_proxies names nobody: all clients share one rate"]


def content(key):
    """What could stand in a file of this key."""
    match key:
        case "secret":
            return base64.b64encode(secrets.token_bytes(32)).decode()
        case "url":
            return "redis://127.0.0.1:6379"
        case "certificate" | "key":
            return certificate()[key]
        case "client_ca":
            return certificate()["certificate"]
        case _:
            return secrets.token_hex(32)


def certificate(made={}):
    """A certificate that signs itself, and its key."""
    if not made:
        request = "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -subj /CN=gateway -days 1"
        both = subprocess.run([*request.split(), "-keyout", "-"], capture_output=True, text=True, check=True).stdout
        start = both.index("-----BEGIN CERTIFICATE")
        made.update(key=both[:start], certificate=both[start:])
    return made


def understands(*arguments):
    """Whether the gateway has a command of these words."""
    return subprocess.run([BINARY, *arguments, "--help"], capture_output=True, env={}).returncode == 0
