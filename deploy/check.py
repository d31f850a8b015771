#!/usr/bin/env python3
"""Renders and examines everything under deploy/, as `make deploy-check` runs it. Ends with one line of counts.

A fault is a line of its own; any makes the exit code 1. What this machine cannot examine is told and counted too, and is a
fault where NOTHING_LEFT_OUT is set, as in CI."""

import functools
import os
import subprocess
import sys
import tomllib
from pathlib import Path

import yaml

from checks import alerts, chart, chart_tests, configurations, documents, image, ingresses, machine, ports, selectors
from checks.configurations import ROOT
from checks.documents import at

DEPLOY = ROOT / "deploy"


class Check:
    """What was examined, and what is wrong with it."""

    def __init__(self):
        self.charts = self.documents = self.tests = self.configurations = 0
        self.faults, self.left_out = [], []

    def fault(self, where, faults):
        self.faults += [f"{where}: {fault}" for fault in faults]

    def examine(self, where, rendered):
        """Every document, and every configuration of the gateway among them, in the pod that reads it."""
        for document in rendered:
            self.documents += 1
            self.fault(where, documents.faults(document))
        self.fault(where, selectors.faults(rendered))
        mounted = [mount["mountPath"] for pod in rendered for mount in gateway_mounts(pod)]
        for text in configuration_texts(rendered):
            self.configuration(where, text, lambda path: str(Path(path).parent) in mounted)
        return rendered

    def configuration(self, where, text, holds):
        self.configurations += 1
        self.fault(where, configurations.faults(text, holds))

    def rendered(self, where, values, **how):
        self.charts += 1
        return self.examine(where, chart.render(values, **how))


def configuration_texts(rendered):
    return [document["data"]["config.yaml"] for document in rendered if "config.yaml" in (at(document, "data") or {})]


def gateway_mounts(document):
    pod = at(document, "spec.template.spec") or {}
    containers = pod.get("containers", []) + pod.get("initContainers", [])
    return [mount for each in containers if each["name"] == "gateway" for mount in each["volumeMounts"]]


def examples(check):
    for file in sorted((DEPLOY / "helm/examples").glob("*.yaml")):
        values = yaml.safe_load(file.read_text())
        check.fault(file.name, chart.lint(values))
        rendered = check.rendered(file.name, values)
        check.fault(file.name, ingresses.small_bodies(rendered))
        (text,) = configuration_texts(rendered)
        if "forward_auth:" in text or any(each["kind"] in ("Ingress", "HTTPRoute") for each in rendered):
            check.fault(file.name, configurations.proxy_faults(text))
    program = tomllib.loads((ROOT / "Cargo.toml").read_text())["package"]["version"]
    if yaml.safe_load((chart.CHART / "Chart.yaml").read_text())["appVersion"] != program:
        check.fault("Chart.yaml", [f"appVersion is the program's version, {program}"])


def promises(check):
    for test in chart_tests.ALL:
        check.tests += 1
        try:
            test(functools.partial(check.rendered, test.__name__))
        except Exception as error:
            check.fault(test.__name__, [f"{type(error).__name__} {error}"])


def manifests(check):
    for folder in [DEPLOY / "kustomize/base", *sorted((DEPLOY / "kustomize/overlays").iterdir())]:
        kubectl = Path(sys.executable).with_name("kubectl")
        built = subprocess.run([kubectl, "kustomize", folder], capture_output=True, text=True)
        check.fault(folder.name, [built.stderr.strip()] if built.returncode else [])
        rendered = check.examine(folder.name, list(yaml.safe_load_all(built.stdout)))
        check.fault(folder.name, ports.faults(rendered))
        for text in configuration_texts(rendered):
            check.fault(folder.name, configurations.proxy_faults(text))
    for file in sorted((DEPLOY / "kubernetes-ingress").glob("*.yaml")):
        rendered = check.examine(file.name, list(yaml.safe_load_all(file.read_text())))
        check.fault(file.name, [*ingresses.faults(file, rendered), *ingresses.small_bodies(rendered)])


def machines(check):
    for where, holds in (("compose", machine.mounted_secret), ("systemd", machine.credential)):
        text = (DEPLOY / where / "config.yaml").read_text()
        check.configuration(where, text, holds)
        check.fault(where, configurations.proxy_faults(text))
    check.fault("compose", machine.composition_faults())
    check.fault("redis users", machine.redis_faults())
    unit = machine.unit_faults()
    check.fault("systemd", unit or [])
    if unit is None:
        check.left_out.append("the systemd unit: no systemd-analyze here")


def rules(check):
    check.fault("alerts", alerts.faults())


def container_image(check):
    check.fault("image", image.faults())
    weight = image.weight()
    if weight is None:
        check.left_out.append("the image's size: no release build here")
    elif weight > image.MOST_BYTES:
        check.fault("image", [f"the program is {weight} bytes, over {image.MOST_BYTES}"])


def main():
    if not configurations.BINARY.exists():
        sys.exit(f"there is no {configurations.BINARY}: build it, or name one in GATEWAY_BINARY")
    check = Check()
    for part in (examples, promises, manifests, machines, rules, container_image):
        part(check)
    if os.environ.get("NOTHING_LEFT_OUT"):
        check.fault("left out", check.left_out)
    for fault in dict.fromkeys(check.faults):
        print(f"fault: {fault}")
    for left_out in check.left_out:
        print(f"left out: {left_out}")
    print(f"deploy-check: {check.charts} charts rendered, {check.documents} documents valid, "
          f"{check.tests} chart tests, {check.configurations} configurations, {len(alerts.questions())} rule tests, "
          f"{len(check.left_out)} left out, {len(check.faults)} faults")
    sys.exit(bool(check.faults))


if __name__ == "__main__":
    main()
