"""What the gateway is observed on: Redis, the simulator, two replicas and Prometheus, on loopback, ended with the run.

Programs: GATEWAY_BINARY and SIMULATOR_BINARY, by default what `cargo build` left in target/debug.
"""

import base64
import http.client
import itertools
import json
import os
import random
import shutil
import socket
import subprocess
import threading
import time
import urllib.error
import urllib.parse
import urllib.request
from pathlib import Path

ROOT = Path(__file__).parent.parent.parent
WORK = ROOT / "target/observe"
DEBIAN = WORK / "prometheus/usr/bin"  # where the Makefile unpacks Debian's package
RULES = ROOT / "deploy/helm/emporix-gateway/files/alerts.yaml"
WEBHOOK_SECRET = "a-webhook-secret-of-the-stage"
SEALING_KEY = base64.b64encode(bytes(32)).decode()
PORTS = itertools.count(19100)


def free_port() -> int:
    for port in PORTS:
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)):
                return port
    raise AssertionError("ports do not end")


def ask(method: str, url: str, body=None, headers: dict | None = None, timeout: float = 5):
    """The status and body of an answer; status 0 where there was none."""
    data = None if body is None else json.dumps(body).encode()
    headers = {"Content-Type": "application/json"} | (headers or {})
    request = urllib.request.Request(url, data, headers, method=method)
    try:
        with urllib.request.urlopen(request, timeout=timeout) as answer:
            status, text = answer.status, answer.read()
    except urllib.error.HTTPError as refusal:
        status, text = refusal.code, refusal.read()
    except (OSError, http.client.HTTPException):
        return 0, None
    try:
        return status, json.loads(text)
    except ValueError:
        return status, text


class Stage:
    """Starts everything on entering, and ends what it started on leaving."""

    def __init__(self, rules: Path = RULES):
        self.rules = rules
        self.processes: dict[str, subprocess.Popen] = {}
        self.redis_port, simulator = free_port(), free_port()
        self.simulator = f"http://127.0.0.1:{simulator}"
        self.replicas = [f"http://127.0.0.1:{free_port()}" for _ in range(2)]
        self.admins = [f"http://127.0.0.1:{free_port()}" for _ in range(2)]
        self.internals = [free_port() for _ in range(2)]
        self.prometheus = f"http://127.0.0.1:{free_port()}"

    def __enter__(self):
        shutil.rmtree(WORK / "stage", ignore_errors=True)
        (WORK / "stage").mkdir(parents=True)
        try:
            self.start_redis()
            self.certify(days=3650)
            simulator = os.environ.get("SIMULATOR_BINARY", ROOT / "target/debug/emporix-simulator")
            self.start("simulator", simulator, "--listen", self.simulator.removeprefix("http://"))
            for number in range(len(self.replicas)):
                self.start_replica(number)
            self.start_prometheus()
            self.await_that(lambda: self.query("count(gateway_build_info) == 2"), "Prometheus sees both replicas")
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_):
        for process in reversed(self.processes.values()):
            process.terminate()
        for process in self.processes.values():
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                process.kill()

    def start(self, name: str, *command):
        log = open(WORK / f"stage/{name}.log", "a")
        self.processes[name] = subprocess.Popen([str(part) for part in command], stdout=log, stderr=log)

    def kill(self, name: str):
        self.processes[name].kill()
        self.processes.pop(name).wait()

    def start_redis(self):
        self.start("redis", "redis-server", "--port", self.redis_port, "--bind", "127.0.0.1", "--dir", WORK / "stage",
                   "--save", "", "--appendonly", "yes", "--appendfsync", "always")
        self.await_that(lambda: self.redis("PING") == "PONG", "Redis answers")

    def redis(self, *command: str) -> str:
        asked = subprocess.run(["redis-cli", "-p", str(self.redis_port), *command], capture_output=True, text=True)
        return asked.stdout.strip()

    def certify(self, days: int):
        """Writes the internal listeners' certificate, which ends after so many days; their key stays as it is."""
        certificate, key = WORK / "stage/certificate.pem", WORK / "stage/key.pem"
        if not key.exists():
            subprocess.run(["openssl", "genpkey", "-algorithm", "ed25519", "-out", key], check=True)
        subprocess.run(["openssl", "req", "-x509", "-key", key, "-subj", "/CN=localhost", "-days", str(days),
                        "-out", certificate.with_suffix(".new")], check=True)
        certificate.with_suffix(".new").replace(certificate)

    def configure(self, number: int, **more) -> Path:
        """Writes a replica's configuration, with these sections beside its own."""
        certificate = {"certificate_file": f"{WORK}/stage/certificate.pem", "key_file": f"{WORK}/stage/key.pem"}
        config = {
            "listen": {"public": self.replicas[number].removeprefix("http://"), "threads": 1, "drain_timeout": "1s",
                       "trusted_proxies": ["127.0.0.0/8"]},
            "admin": {"listen": self.admins[number].removeprefix("http://")},
            "internal": {"listen": f"127.0.0.1:{self.internals[number]}", "token": "a-token-of-the-back-office",
                         "tls": certificate},
            "upstream": {"base_url": self.simulator},
            "identity": {"timeout": "2s"},
            "tenants": {"acme": {"client_id": "storefront", "webhook": {"secret": WEBHOOK_SECRET},
                                 "saas_token": {"mode": "hs256", "secret": "simulator-passphrase"}}},
            "store": {"kind": "redis", "redis": {"url": f"redis://127.0.0.1:{self.redis_port}"},
                      "seal": {"active": "stage", "keys": [{"id": "stage", "secret": SEALING_KEY}]}},
            # The simulator has few customers, and all of them sign in all the time.
            "limits": {"sign_in_per_account": {"burst": 10, "per_minute": 0}},
        }
        file = WORK / f"stage/replica-{number}.yaml"
        file.write_text(json.dumps(config | more))
        return file

    def start_replica(self, number: int):
        file = self.configure(number)
        gateway = os.environ.get("GATEWAY_BINARY", ROOT / "target/debug/emporix-gateway")
        self.start(f"replica-{number}", gateway, "serve", "--config", file)
        self.await_that(lambda: ask("GET", self.admins[number] + "/readyz")[0] == 200, f"replica {number} is ready")

    def start_prometheus(self):
        targets = [admin.removeprefix("http://") for admin in self.admins]
        config = {
            "global": {"scrape_interval": "1s", "evaluation_interval": "1s"},
            "rule_files": [str(self.rules)],
            "scrape_configs": [{"job_name": "emporix-gateway", "static_configs": [{"targets": targets}]}],
        }
        (WORK / "stage/prometheus.yaml").write_text(json.dumps(config))
        self.start("prometheus", DEBIAN / "prometheus", f"--config.file={WORK}/stage/prometheus.yaml",
                   f"--storage.tsdb.path={WORK}/stage/prometheus", "--log.level=warn",
                   f"--web.listen-address={self.prometheus.removeprefix('http://')}")

    def await_that(self, holds, what: str, seconds: float = 30):
        until = time.monotonic() + seconds
        while not holds():
            for name, process in self.processes.items():
                if process.poll() is not None:
                    raise SystemExit(f"{name} ended by itself: target/observe/stage/{name}.log")
            if time.monotonic() > until:
                raise SystemExit(f"waited in vain: {what}")
            time.sleep(0.1)

    def lever(self, method: str, name: str, body=None):
        """Pulls one of the simulator's levers."""
        status, answer = ask(method, f"{self.simulator}/_simulator/{name}", body)
        assert 200 <= status < 300, (name, status, answer)
        return answer

    def deliver(self, kind: str, payload: dict, secret: str = WEBHOOK_SECRET) -> int:
        """Has Emporix deliver an event, and returns what the gateway answered."""
        event = {"type": kind, "payload": payload, "secret": secret}
        url = f"{self.replicas[0]}/_gateway/webhooks/emporix/acme"
        return self.lever("POST", "events", event | {"url": url})["answered"]

    def sign_in(self, email: str, password: str, address: str = "198.51.100.1"):
        """Tries to sign in, without a session, at the first replica."""
        credentials = {"email": email, "password": password}
        return ask("POST", f"{self.replicas[0]}/customer/acme/login", credentials, {"X-Forwarded-For": address})

    def signed_in(self) -> str:
        """A customer's handle, from the first replica."""
        address = f"192.0.2.{random.randrange(256)}"
        return self.sign_in(Shoppers.CUSTOMERS[0], "password123", address)[1]["access_token"]

    def read(self, handle: str, replica: int):
        return ask("GET", f"{self.replicas[replica]}/customer/acme/me", headers={"Authorization": f"Bearer {handle}"})

    def log_out(self, handle: str):
        return ask("GET", f"{self.replicas[0]}/customer/acme/logout", headers={"Authorization": f"Bearer {handle}"})

    def told(self, path: str, **parameters) -> dict:
        """What Prometheus' API answers; its error, where it is one."""
        answer = ask("GET", f"{self.prometheus}/api/v1/{path}?{urllib.parse.urlencode(parameters)}", timeout=30)[1]
        return answer if isinstance(answer, dict) else {"status": "error", "error": "no answer"}

    def query(self, query: str) -> list:
        return self.told("query", query=query).get("data", {}).get("result", [])


class Shoppers:
    """Visitors and customers on both replicas, a few requests a second each: reads, refreshes, logouts, mistakes."""

    CUSTOMERS = ["john.doe@example.com", "jane.roe@example.com"]

    def __init__(self, stage: Stage, count: int = 4, pause: float = 0.1):
        self.stage, self.pause, self.stopping = stage, pause, threading.Event()
        self.threads = [threading.Thread(target=self.shop, args=(number,), daemon=True) for number in range(count)]

    def __enter__(self):
        for thread in self.threads:
            thread.start()
        return self

    def __exit__(self, *_):
        self.stopping.set()
        for thread in self.threads:
            thread.join()

    def shop(self, number: int):
        luck = random.Random(number)
        while not self.stopping.is_set():
            Visit(self, luck).go()


class Visit:
    """One visitor's way through the shop, from an address of their own."""

    def __init__(self, shoppers: Shoppers, luck: random.Random):
        self.shoppers, self.luck = shoppers, luck
        self.address = f"198.51.{luck.randrange(256)}.{luck.randrange(256)}"
        self.visitor = self.customer = self.refresh = None

    def ask(self, method: str, path: str, body=None, handle: str | None = None):
        self.shoppers.stopping.wait(self.shoppers.pause)
        headers = {"X-Forwarded-For": self.address} | ({"Authorization": f"Bearer {handle}"} if handle else {})
        return ask(method, self.luck.choice(self.shoppers.stage.replicas) + path, body, headers)

    def go(self):
        self.visitor = self.granted("GET", "/customerlogin/auth/anonymous/login?tenant=acme&client_id=storefront")
        self.ask("GET", "/product/acme/products")
        self.ask("POST", "/cart/acme/carts", {"siteCode": "main", "currency": "EUR"}, self.visitor)
        if self.luck.random() < 0.3:
            self.err()
        if self.luck.random() < 0.3:
            return self.look_around()
        credentials = {"email": self.luck.choice(self.shoppers.CUSTOMERS), "password": "password123"}
        self.customer = self.granted("POST", "/customer/acme/login", credentials, self.visitor)
        for _ in range(80):
            if self.shoppers.stopping.is_set() or not self.customer:
                return
            status, _ = self.ask("GET", "/customer/acme/me", handle=self.customer)
            if status == 401:
                return
            if self.luck.random() < 0.05:
                self.ask("GET", f"/customer/acme/refreshauthtoken?refreshToken={self.refresh}", handle=self.visitor)
        self.ask("GET", "/ai-service/acme/agentic/chat-stream?events=8", handle=self.customer)
        self.ask("GET", "/customer/acme/logout", handle=self.customer)

    def look_around(self):
        """Fills a cart for a while, and leaves."""
        for _ in range(100):
            if self.shoppers.stopping.is_set() or self.ask("GET", "/cart/acme/carts", handle=self.visitor)[0] == 401:
                return

    def granted(self, *request) -> str | None:
        status, answer = self.ask(*request)
        if status != 200:
            return None
        self.refresh = answer["refresh_token"]
        return answer["access_token"]

    def err(self):
        """What clients do wrong."""
        self.ask("POST", "/customer/acme/login", {"email": self.shoppers.CUSTOMERS[0], "password": "mistyped"})
        self.ask("GET", "/customer/acme/me", handle=self.visitor)
        self.ask("GET", "/customer/acme/me", handle="a-handle-of-nobody")
        self.ask("GET", "/oauth/token")
