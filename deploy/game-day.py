"""Makes every alert fire against a real Prometheus by breaking what it watches, and end by mending it.

In the copy of the rules that is tried here a minute lasts a second and an hour a minute, or it would take a day. The
expressions, thresholds and labels are the shipped ones. Ends with one line of counts, and with 1 unless all did.
"""

import itertools
import re
import signal
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass

from grafana.stage import RULES, WORK, Shoppers, Stage


@dataclass
class Act:
    alerts: set[str]
    how: str
    begin: Callable[[Stage], object]
    again: Callable[[Stage], object] = lambda stage: None  # until the alerts fire
    end: Callable[[Stage], object] = lambda stage: None


def fail(operation: str, mode: str, **more):
    return lambda stage: stage.lever("POST", "faults", {"operation": operation, "mode": mode} | more)


def mend(stage: Stage):
    stage.lever("DELETE", "faults")


def expire(stage: Stage):
    stage.lever("POST", "expire", {"kind": "customer_access"})


def end_sessions_while_a_replica_stands_still(stage: Stage):
    """The other replica was asked for each of the sessions before, so it holds them in memory."""
    handles = [stage.signed_in() for _ in range(10)]
    for handle in handles:
        stage.read(handle, 1)
    stage.processes["replica-1"].send_signal(signal.SIGSTOP)
    for handle in handles:
        stage.log_out(handle)
    time.sleep(1.5)
    stage.processes["replica-1"].send_signal(signal.SIGCONT)


def try_passwords(stage: Stage):
    for attempt in range(10):
        stage.sign_in(f"nobody-{attempt}@example.com", "guessed1", address="203.0.113.9")


def deliver_forged(stage: Stage):
    stage.deliver("customer.deleted", {"customerNumber": "13869000"}, secret="of-somebody-else")


class Outage:
    """Redis dies behind customers who read on, and whose tokens outlive it: nothing but the store is missed."""

    def begin(self, stage: Stage):
        stage.lever("PATCH", "settings", {"customer_access_ttl": 300})
        self.handles = [stage.signed_in() for _ in range(4)]
        self.again(stage)
        stage.kill("redis")

    def again(self, stage: Stage):
        for handle, replica in itertools.product(self.handles, range(2)):
            stage.read(handle, replica)

    def end(self, stage: Stage):
        stage.start_redis()
        stage.lever("PATCH", "settings", TOKENS_LIVE_FOR_SECONDS)


OUTAGE = Outage()
TOKENS_LIVE_FOR_SECONDS = {"customer_access_ttl": 8, "anonymous_access_ttl": 8}
ACTS = [
    Act({"GatewayReplicaMissing"}, "a replica is killed",
        lambda stage: stage.kill("replica-1"), end=lambda stage: stage.start_replica(1)),
    Act({"GatewayRefusesConfiguration"}, "a configuration has a fault",
        lambda stage: stage.configure(1, no_such_section={}), end=lambda stage: stage.configure(1)),
    Act({"GatewayCertificateEnds"}, "a certificate ends in a week",
        lambda stage: stage.certify(days=7), end=lambda stage: stage.certify(days=3650)),
    Act({"GatewayStoreAway", "GatewayServesInGrace", "GatewayFailsRequests", "GatewaySpendsErrorBudget"},
        "Redis is killed while customers read on", OUTAGE.begin, OUTAGE.again, OUTAGE.end),
    Act({"GatewayStoreFails"}, "Redis is full: maxmemory 1 MB",
        lambda stage: stage.redis("CONFIG", "SET", "maxmemory", "1mb"),
        end=lambda stage: stage.redis("CONFIG", "SET", "maxmemory", "0")),
    Act({"GatewayUpstreamFails"}, "Emporix' API answers 503",
        fail("api", "status", status=503), end=mend),
    Act({"GatewayTokenEndpointsFail"}, "Emporix answers logins with 503",
        fail("login", "status", status=503), end=mend),
    Act({"GatewayRefreshesFail"}, "Emporix answers refreshes with 503",
        fail("refresh", "status", status=503), end=mend),
    Act({"GatewayLosesRefreshTokens"}, "Emporix spends refresh tokens and loses its answers",
        fail("refresh", "late_reset", times=6), end=mend),
    Act({"GatewaySlow"}, "access tokens are called over, and refreshes take 1.5 s",
        fail("refresh", "delay", delay_ms=1500), expire, mend),
    Act({"GatewayHearsRevocationsLate"}, "a replica stands still while sessions end on the other",
        end_sessions_while_a_replica_stands_still),
    Act({"GatewayLimitsRates"}, "passwords are tried in masses from one address", try_passwords, try_passwords),
    Act({"GatewayRefusesWebhooks"}, "forged deliveries come in", deliver_forged, deliver_forged),
]


def quickened(rules: str) -> str:
    """The rules with a minute for an hour, and a second for a minute."""
    for unit, quicker in {"m": "s", "h": "m"}.items():
        rules = re.sub(rf"(\[|for: )(\d+){unit}\b", rf"\g<1>\g<2>{quicker}", rules)
    return rules


def firing(stage: Stage) -> dict[str, str]:
    """The alerts that fire, with their summaries."""
    alerts = stage.told("alerts")["data"]["alerts"]
    return {alert["labels"]["alertname"]: alert["annotations"]["summary"]
            for alert in alerts if alert["state"] == "firing"}


def waited(holds: Callable[[], bool], seconds: float, meanwhile: Callable[[], object] = lambda: None) -> bool:
    until = time.monotonic() + seconds
    while not holds():
        if time.monotonic() > until:
            return False
        meanwhile()
        time.sleep(0.5)
    return True


def played(stage: Stage, act: Act) -> tuple[int, int]:
    """How many of its alerts the act made fire, and how many ended with it."""
    waited(lambda: not act.alerts & firing(stage).keys(), 90)
    before, seen, began = act.alerts & firing(stage).keys(), {}, time.monotonic()
    act.begin(stage)
    waited(lambda: seen.update(firing(stage)) or act.alerts <= seen.keys(), 60, lambda: act.again(stage))
    act.end(stage)
    fired, mended = (act.alerts & seen.keys()) - before, time.monotonic()
    waited(lambda: not act.alerts & firing(stage).keys(), 120)
    resolved = fired - firing(stage).keys()
    print(f"{act.how}: {mended - began:.0f} s until it fired, {time.monotonic() - mended:.0f} s until it ended")
    for alert in sorted(act.alerts):
        state = "was firing before" if alert in before else "never fired" if alert not in fired else \
            "fired and ended" if alert in resolved else "fired and did not end"
        print(f"  {alert} {state}: {seen.get(alert, '')}", flush=True)
    return len(fired), len(resolved)


def main() -> None:
    rules = WORK / "quickened-alerts.yaml"
    rules.write_text(quickened(RULES.read_text()))
    with Stage(rules) as stage:
        every = {rule["name"] for group in stage.told("rules")["data"]["groups"]
                 for rule in group["rules"] if rule["type"] == "alerting"}
        left_out = every - set.union(*(act.alerts for act in ACTS))
        for alert in sorted(left_out):
            print(f"no act makes {alert} fire")
        stage.lever("PATCH", "settings", TOKENS_LIVE_FOR_SECONDS)
        with Shoppers(stage):
            time.sleep(10)
            counts = [played(stage, act) for act in ACTS]
    fired, resolved = map(sum, zip(*counts))
    print(f"game day: {len(every)} alerts, {len(ACTS)} ways to break things, {fired} fired, {resolved} ended, "
          f"{len(left_out)} left out")
    sys.exit(resolved != len(every))


if __name__ == "__main__":
    main()
