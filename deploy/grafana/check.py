"""Holds dashboards, alerts and runbooks to what the gateway really exposes: a real Prometheus answers every query.

With --draw, draws docs/dashboards from the answers. Ends with one line of counts, and with 1 where there was a fault.
"""

import json
import math
import re
import sys
import time

import dashboards
import drawing
from stage import ROOT, Shoppers, Stage

RUNBOOKS = ROOT / "docs/runbooks"
SECONDS = 60

# Charts that show nothing but zeros here, and why. All others must show that something happened.
QUIET = {
    "Writes that wait for a replica of Redis": "this Redis has no replica",
}

faults: list[str] = []


def fault(what: str):
    faults.append(what)
    print(f"fault: {what}")


def check_files() -> None:
    for path, text in dashboards.files().items():
        if path.read_text() != text:
            fault(f"{path.relative_to(ROOT)} is not what dashboards.py says; run it")


def play(stage: Stage) -> None:
    """A minute of a shop with tokens that live for seconds: Redis dies and comes back, Emporix fails for a while."""
    stage.lever("PATCH", "settings", {"customer_access_ttl": 8, "anonymous_access_ttl": 8})
    with Shoppers(stage):
        time.sleep(SECONDS / 3)
        stage.deliver("customer.deleted", {"customerNumber": "13869000"})
        stage.deliver("customer.deleted", {"customerNumber": "13869000"}, secret="of-somebody-else")
        stage.kill("redis")
        time.sleep(SECONDS / 12)
        stage.start_redis()
        time.sleep(SECONDS / 6)
        stage.lever("POST", "faults", {"operation": "anonymous_login", "mode": "status", "status": 503})
        stage.lever("POST", "faults", {"operation": "refresh", "mode": "reset", "times": 3})
        spray(stage)
        time.sleep(SECONDS / 6)
        stage.lever("DELETE", "faults")
        time.sleep(SECONDS / 4)


def spray(stage: Stage) -> None:
    """More sign-ins than one address may try."""
    for attempt in range(40):
        stage.sign_in(f"nobody-{attempt}@example.com", "guessed1", address="203.0.113.9")


def concrete(query: str, namespace: str = ".*") -> str:
    """The query with Grafana's variables replaced."""
    for name, value in {"$namespace": namespace, "$instance": ".*", "$__rate_interval": "10s",
                        "$__range": f"{SECONDS}s"}.items():
        query = query.replace(name, value)
    return query


def answered(stage: Stage, panel: dict) -> list:
    """The panel's series as (legend, points), of what Prometheus answers."""
    now, is_chart, series = time.time(), panel["type"] == "timeseries", []
    for target in panel["targets"]:
        query = concrete(target["expr"])
        if is_chart:
            answer = stage.told("query_range", query=query, start=now - SECONDS, end=now, step=1)
        else:
            answer = stage.told("query", query=query)
        if stage.query(concrete(target["expr"], namespace="elsewhere")):
            fault(f"{panel['title']}: shows another namespace than the chosen one: {query}")
        if answer["status"] != "success":
            fault(f"{panel['title']}: {answer['error']}: {query}")
            continue
        lines = [(legend(target, one["metric"]), finite(one.get("values") or [one["value"]]))
                 for one in answer["data"]["result"]]
        lines = [line for line in lines if line[1]]
        if not lines:
            fault(f"{panel['title']}: no data: {query}")
        elif is_chart and panel["title"] not in QUIET and not any(value for _, points in lines for _, value in points):
            fault(f"{panel['title']}: nothing but zeros: {query}")
        series += lines
    return series


def legend(target: dict, labels: dict) -> str:
    return re.sub(r"{{(\w+)}}", lambda name: labels.get(name[1], ""), target["legendFormat"])


def finite(values: list) -> list:
    return [(at, float(value)) for at, value in values if math.isfinite(float(value))]


def check_series(stage: Stage, where: str, query: str) -> None:
    for series in re.findall(r"(?:\b(?:gateway[:_]|process_)[\w:]+|\bup\b)(?:{.*?})?", query):
        if not stage.query(f"count({series})"):
            fault(f"{where}: no such series: {series}")


def check_alerts(stage: Stage) -> list[dict]:
    """Prometheus evaluates every rule, and every series that a rule names is there: one mistyped would never fire."""
    rules = [rule for group in stage.told("rules")["data"]["groups"] for rule in group["rules"]]
    for rule in rules:
        if rule["health"] != "ok":
            fault(f"{rule['name']}: {rule['health']} {rule.get('lastError', '')}")
        check_series(stage, rule["name"], rule["query"])
    return [rule for rule in rules if rule["type"] == "alerting"]


def check_runbooks(stage: Stage, alerts: list[dict]) -> None:
    """Every alert has its page and every page its alert; what a page asks is answered, what it quotes is logged."""
    indexes = [RUNBOOKS / "README.md", ROOT / "docs/OBSERVABILITY.md"]
    pages = {page.relative_to(ROOT).as_posix(): page for page in RUNBOOKS.glob("*.md") if page.name != "README.md"}
    for alert in alerts:
        url = alert["annotations"]["runbook_url"]
        if url not in pages or f"# {alert['name']}\n" not in pages[url].read_text():
            fault(f"{alert['name']}: no such runbook, or another one: {url}")
        for index in indexes:
            link = (ROOT / url).relative_to(index.parent)
            if f"| [{alert['name']}]({link}) | {alert['labels']['severity']} |" not in index.read_text():
                fault(f"{alert['name']} is not in {index.relative_to(ROOT)}")
    for url in pages.keys() - {alert["annotations"]["runbook_url"] for alert in alerts}:
        fault(f"{url} belongs to no alert")
    program = "".join(source.read_text() for source in (ROOT / "src").rglob("*.rs"))
    for url, page in pages.items():
        for query in re.findall(r"^- ask: `(.+?)`", page.read_text(), re.MULTILINE):
            if stage.told("query", query=query)["status"] != "success":
                fault(f"{url}: not understood: {query}")
            check_series(stage, url, query)
        for line in re.findall(r"^- log: `(.+?)`", page.read_text(), re.MULTILINE):
            if f'"{line}"' not in program:
                fault(f"{url}: the program never logs “{line}”")


def main() -> None:
    check_files()
    queries = 0
    with Stage() as stage:
        play(stage)
        for path in dashboards.files():
            dashboard = json.loads(path.read_text())
            answers = {panel["id"]: answered(stage, panel) for panel in dashboard["panels"]}
            queries += sum(len(panel["targets"]) for panel in dashboard["panels"])
            if "--draw" in sys.argv and all(answers.values()):
                (ROOT / f"docs/dashboards/{path.stem}.svg").write_text(drawing.drawn(dashboard, answers))
        alerts = check_alerts(stage)
        check_runbooks(stage, alerts)
    print(f"observability: {len(dashboards.files())} dashboards, {queries} queries answered, {len(alerts)} alerts, "
          f"{len(faults)} faults")
    sys.exit(bool(faults))


if __name__ == "__main__":
    main()
