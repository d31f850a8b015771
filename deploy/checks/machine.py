"""What runs on machines of their own: the systemd unit, the composition, and the rights of the gateway in Redis."""

import re
import shutil
import subprocess
import tempfile
from pathlib import Path

import yaml

from checks.configurations import BINARY, ROOT

DEPLOY = ROOT / "deploy"
UNIT = DEPLOY / "systemd/emporix-gateway.service"

# `systemd-analyze security` counts from 0, safe, to 10; times ten.
MOST_EXPOSED = 15


def unit_settings(name):
    """All values of a setting of the unit."""
    return re.findall(rf"^{name}=(.*)$", UNIT.read_text(), re.MULTILINE)


def credential(path):
    """Whether the unit loads what stands at this path."""
    loaded = [setting.split(":")[0] for setting in unit_settings("LoadCredential")]
    return path in [f"/run/credentials/{UNIT.name}/{name}" for name in loaded]


def unit_faults():
    """What systemd says of the unit; None where there is no systemd to ask."""
    if not shutil.which("systemd-analyze"):
        return None
    with tempfile.TemporaryDirectory() as folder:
        unit = Path(folder, UNIT.name)
        unit.write_text(UNIT.read_text().replace("/usr/local/bin/emporix-gateway", str(BINARY.resolve())))
        found = []
        for asked in (["verify"], ["security", "--offline=yes", f"--threshold={MOST_EXPOSED}", "--no-pager"]):
            answer = subprocess.run(["systemd-analyze", *asked, unit], capture_output=True, text=True)
            if answer.returncode or (asked == ["verify"] and answer.stderr):
                found.append(f"{answer.stderr.strip() or answer.stdout.splitlines()[-1]}")
        return found


def composition():
    return yaml.safe_load((DEPLOY / "compose/compose.yaml").read_text())


def mounted_secret(path):
    """Whether the composition gives the gateway this file."""
    return path in [f"/run/secrets/{name}" for name in composition()["services"]["gateway"]["secrets"]]


def composition_faults():
    """Names that are used and not declared, files that are not there, images that change by themselves."""
    whole, found = composition(), []
    for name, service in whole["services"].items():
        used = [("configs", config["source"]) for config in service.get("configs", [])]
        used += [("secrets", secret) for secret in service.get("secrets", [])]
        used += [("volumes", volume.split(":")[0]) for volume in service.get("volumes", [])]
        used += [("services", other) for other in service.get("depends_on", [])]
        found += [f"{name}: {kind} has no {what}" for kind, what in used if what not in whole[kind]]
        if not re.search(r":[\w.-]*\d", service["image"]):
            found.append(f"{name}: the image names no version")
    admin = yaml.safe_load((DEPLOY / "compose/config.yaml").read_text()).get("admin", {}).get("listen", "127.0.0.1:9090")
    if admin.startswith("127."):
        found.append(f"gateway: admin.listen is {admin}, where no other service, as Prometheus, reaches it")
    published = [port for port in whole["services"]["gateway"]["ports"] if port.endswith(":" + admin.split(":")[-1])]
    found += [f"gateway: the operators' port is published: {port}" for port in published]
    files = [config["file"] for config in whole["configs"].values() if "file" in config]
    return found + [f"{file} is not there" for file in files if not (DEPLOY / "compose" / file).exists()]


def redis_faults():
    """The users of Redis: the same rights wherever they are written, enough for the code, and such as Redis takes."""
    users = composition()["configs"]["redis-users"]["content"]
    granted = rights(users)
    found = []
    told = rights((DEPLOY / "README.md").read_text())
    if told != granted:
        found.append(f"deploy/README.md and compose.yaml differ in {' '.join(sorted(told ^ granted))}")
    names = {right[1:].split("|")[0] for right in granted if right.startswith("+")}
    found += [f"the code says {command}, which the user may not" for command in sorted(spoken() - names)]
    return found + taken_by_redis(users)


def rights(text):
    """The rights of user gateway, in a users file or in a text that quotes one."""
    user = re.search(r"^ *user gateway on >\S+(?: [^}\n]*})?((?:\s+[-+~&r]\S+)+)", text, re.MULTILINE)
    return set(user.group(1).split()) if user else set()


def spoken():
    """Commands that the store's code and scripts say, but for those of a cluster."""
    store = ROOT / "src/store"
    scripts = "".join(file.read_text() for file in (store / "scripts").glob("*.lua"))
    code = "".join(file.read_text() for file in [store / "redis.rs", *(store / "redis").glob("*.rs")])
    said = re.findall(r"redis\.call\('(\w+)'", scripts) + re.findall(r'\bcmd\("(\w+)"\)', code)
    return {command.lower() for command in said} - {"cluster"}


def taken_by_redis(users):
    """Whether a Redis starts with these users. CLIENT SETINFO came with 7.2."""
    version = subprocess.run(["redis-server", "--version"], capture_output=True, text=True).stdout
    if re.search(r"v=([0-6]\.|7\.[01]\.)", version):
        users = users.replace("+client|setinfo ", "")
    users = re.sub(r"\$\{[^}]*\}", "password", users)
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "users.acl").write_text(users)
        Path(folder, "redis.conf").write_text((DEPLOY / "compose/redis.conf").read_text())
        own = ["--port", "0", "--unixsocket", f"{folder}/socket", "--dir", folder, "--aclfile", f"{folder}/users.acl"]
        server = subprocess.Popen(["redis-server", "redis.conf", *own], cwd=folder, stdout=subprocess.PIPE, text=True)
        try:
            for line in server.stdout:
                if "ready to accept connections" in line:
                    return []
            return [f"the server did not start: {line.strip()}"]
        finally:
            server.terminate()
            server.wait()
