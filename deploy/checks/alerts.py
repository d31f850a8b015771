"""Holds the alerts to their rule tests, by the real promtool, and demands one for each alert."""

import subprocess

import yaml

from checks.configurations import ROOT

PROMTOOL = ROOT / "target/observe/prometheus/usr/bin/promtool"
RULES = ROOT / "deploy/helm/emporix-gateway/files/alerts.yaml"
TESTS = ROOT / "deploy/prometheus/alerts_test.yaml"


def faults():
    """What promtool says of rules and tests, and the alerts that no test shows firing."""
    return promtool("check", "rules", RULES) + promtool("test", "rules", TESTS) + untested(RULES.read_text(), samples())


def untested(rules, shown):
    groups = yaml.safe_load(rules)["groups"]
    alerts = [rule["alert"] for group in groups for rule in group["rules"] if "alert" in rule]
    return [f"{alert} fires in no rule test" for alert in alerts
            if not any(f'alertname="{alert}"' in sample["labels"] for sample in shown)]


def samples():
    """All that the tests expect to be there."""
    return [sample for test in questions() for sample in test["exp_samples"]]


def questions():
    return [question for test in yaml.safe_load(TESTS.read_text())["tests"] for question in test["promql_expr_test"]]


def promtool(*arguments):
    told = subprocess.run([PROMTOOL, *arguments], capture_output=True, text=True)
    return [] if told.returncode == 0 else [f"promtool {arguments[0]} {arguments[1]}: {told.stdout}{told.stderr}"]
