"""What can be known of the image without a container engine."""

import json
import re
import shlex
import shutil
import subprocess
import tempfile
import tomllib
from pathlib import Path

from checks import chart, configurations, ports
from checks.configurations import ROOT
from checks.documents import at

MOST_BYTES = 25_000_000


def faults():
    """What is wrong with the Dockerfile and with what it is built from."""
    instructions = read(ROOT / "deploy/docker/Dockerfile")
    return (stages(instructions) + user(instructions) + exposed(instructions) + commands(instructions)
            + context(instructions))


def read(file):
    """Instructions and their arguments, in order."""
    lines = [line for line in file.read_text().splitlines() if not line.startswith("#")]
    whole = "\n".join(lines).replace("\\\n", " ")
    return [tuple(line.split(None, 1)) for line in whole.splitlines() if line.strip()]


def stages(instructions):
    found, known = [], []
    for instruction, arguments in instructions:
        words = shlex.split(arguments) if instruction in ("FROM", "COPY") else []
        if instruction == "FROM":
            known.append(words[2] if words[1:2] == ["AS"] else "")
        for word in words:
            stage = word.removeprefix("--from=")
            if stage != word and stage not in known[:-1]:
                found.append(f"Dockerfile: there is no stage {stage}")
    rust = tomllib.loads((ROOT / "Cargo.toml").read_text())["package"]["rust-version"]
    if not any(argument.startswith(f"rust:{rust}-") for name, argument in instructions if name == "FROM"):
        found.append(f"Dockerfile: the program is built with Rust {rust}")
    return found


def user(instructions):
    last = [arguments for name, arguments in instructions if name == "USER"][-1:]
    fit = last and re.fullmatch(r"[1-9]\d*:[1-9]\d*", last[0])
    return [] if fit else ["Dockerfile: USER is a number that is not 0, so that Kubernetes can see that it is not root"]


def exposed(instructions):
    """The ports that the image tells of are those of the chart."""
    (pod,) = [each for each in chart.render(ports.EVERYTHING) if each["kind"] == "Deployment"]
    opened = sorted(port["containerPort"] for port in at(pod, "spec.template.spec.containers.0.ports"))
    told = sorted(int(port) for name, arguments in instructions if name == "EXPOSE" for port in arguments.split())
    return [] if told == opened else [f"Dockerfile: EXPOSE is {told}, where the chart opens {opened}"]


def commands(instructions):
    """Commands are lists, for there is no shell, and the gateway knows them."""
    found = []
    for name, arguments in instructions:
        if name not in ("CMD", "ENTRYPOINT", "HEALTHCHECK"):
            continue
        try:
            command = json.loads(arguments.removeprefix("CMD "))
        except ValueError:
            found.append(f"Dockerfile: {name} is no list")
            continue
        word = [word for word in command if not word.startswith("/")][:1]
        if word and not configurations.understands(*word):
            found.append(f"Dockerfile: {name}: the gateway has no command {word[0]}")
    return found


def context(instructions):
    """Cargo finds in the build context all that the manifests name."""
    sources = [shlex.split(arguments)[:-1] for name, arguments in instructions if name == "COPY"]
    copied = [source for words in sources if not words[0].startswith("--from=") for source in words]
    found = [f"Dockerfile: {source} is not there" for source in copied if not (ROOT / source).exists()]
    kept = [line.removeprefix("!") for line in (ROOT / ".dockerignore").read_text().splitlines() if line[:1] == "!"]
    with tempfile.TemporaryDirectory() as folder:
        for name in kept:
            copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copy
            copy(ROOT / name, Path(folder) / name)
        asked = ["cargo", "metadata", "--format-version=1", "--locked", "--no-deps", "--offline"]
        answer = subprocess.run(asked, cwd=folder, capture_output=True, text=True)
        if answer.returncode:
            return [*found, f"the build context is not whole: {answer.stderr.strip()}"]
        packages = json.loads(answer.stdout)["packages"]
        paths = [Path(target["src_path"]) for package in packages for target in package["targets"]]
        paths += named_in_sources(Path(folder))
        return found + [f"the build context lacks {path}" for path in paths if not path.exists()]


def named_in_sources(folder):
    """Files that the program holds inside."""
    for source in (folder / "src").rglob("*.rs"):
        for name in re.findall(r'include_(?:str|bytes)!\("([^"]+)"\)', source.read_text()):
            yield source.parent / name


def weight():
    """Bytes of the program as the image holds it; None where it has not been built for release."""
    named = configurations.BINARY
    built = named if named.parent.name == "release" else ROOT / "target/release/emporix-gateway"
    if not built.exists():
        return None
    with tempfile.TemporaryDirectory() as folder:
        stripped = Path(folder, "stripped")
        subprocess.run(["strip", "-o", stripped, built], check=True)
        return stripped.stat().st_size
