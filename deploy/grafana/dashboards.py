"""The three Grafana dashboards as one table: what each panel asks of Prometheus, and which question it answers.

Writes the JSON that the Helm chart carries: `python3 deploy/grafana/dashboards.py`. `make dashboards` fails while a
file is not what this table says.
"""

import json
from dataclasses import dataclass
from pathlib import Path

FILES = Path(__file__).parent.parent / "helm/emporix-gateway/files/dashboards"

# Of Grafana's grid.
WIDTH = 24
API = 'route=~"guest|visitor|customer"'
HELD_BACK = 'dependency!="store",event="refused"'
LOST = 'outcome="lost"'
UNANSWERED = 'outcome=~"unavailable|unknown"'


@dataclass
class Panel:
    title: str
    answers: str
    unit: str
    queries: dict[str, str]  # legend: query
    kind: str = "timeseries"
    width: int = 8


def rate(metric: str, by: str, match: str = "") -> str:
    return f"sum by ({by}) (rate({of(metric, match)}[$__rate_interval]))"


def quantile(q: float, timer: str, by: str = "", match: str = "") -> str:
    return f"histogram_quantile({q}, {rate(timer + '_bucket', f'le, {by}' if by else 'le', match)})"


def of(metric: str, match: str = "") -> str:
    return metric + "{" + ",".join(filter(None, ['namespace=~"$namespace"', 'instance=~"$instance"', match])) + "}"


def share(metric: str, part: str, whole: str = "", window: str = "$__rate_interval") -> str:
    return f"sum(rate({of(metric, part)}[{window}])) / sum(rate({of(metric, whole)}[{window}]))"


def spent(window: str) -> str:
    """How many times faster than in 30 days the error budget is spent. Recorded of each namespace, not of its replicas."""
    return f'max(gateway:failures:ratio_rate{window}{{namespace=~"$namespace"}}) / 0.001'


def breakers(match: str, by: str) -> str:
    """How many are open."""
    return f"sum by ({by}) ({of('gateway_breakers_open', match)})"


OVERVIEW = [
    Panel("Availability", "Share of requests in the shown time that neither the gateway nor its store failed. The objective is 99.9 %.",
          "percentunit",
          {"": "1 - " + share("gateway_requests_total", 'outcome="server_error"', 'outcome!="aborted"', "$__range")},
          "stat", 6),
    Panel("Requests", "Requests that end, a second.", "reqps",
          {"": f"sum(rate({of('gateway_requests_total')}[$__rate_interval]))"}, "stat", 6),
    Panel("p99 of API requests", "Until the answer's last byte, Emporix included; of a stream, until it began.", "s",
          {"": quantile(0.99, "gateway_request_seconds", match=API)}, "stat", 6),
    Panel("Replicas", "Replicas that Prometheus can read.", "short",
          {"": f"count({of('gateway_build_info')})"}, "stat", 6),
    Panel("How requests end", "server_error is the gateway's or its store's 5xx, upstream_error Emporix'.", "reqps",
          {"{{outcome}}": rate("gateway_requests_total", "outcome")}, width=12),
    Panel("Failures by route", "Which way of using the shop fails. Token routes alone: look at the token endpoints.",
          "reqps", {"{{route}}": rate("gateway_requests_total", "route", 'outcome=~"(server|upstream)_error"')}, width=12),
    Panel("Speed at which the error budget is spent",
          "1 spends it in exactly 30 days. Over 14.4 in the last hour pages, over 6 in six hours is a ticket.", "short",
          {"5 m": spent("5m"), "1 h": spent("1h"), "6 h": spent("6h")}, width=12),
    Panel("Duration of API requests", "Whole requests, and how much of it the API took until its head.", "s",
          {"p99": quantile(0.99, "gateway_request_seconds", match=API),
           "p99 of the API": quantile(0.99, "gateway_upstream_seconds", match=API),
           "p50": quantile(0.5, "gateway_request_seconds", match=API),
           "p50 of the API": quantile(0.5, "gateway_upstream_seconds", match=API)}, width=12),
    Panel("Over their rate", "Requests refused with 429: passwords tried, or visitors minted, in masses.", "reqps",
          {"{{limit}}": rate("gateway_rate_limited_total", "limit")}),
    Panel("Webhook deliveries", "Emporix' customer events by what became of them.", "reqps",
          {"{{outcome}}": rate("gateway_webhooks_total", "outcome")}),
    Panel("Memory", "Resident memory of each replica.", "bytes",
          {"{{instance}}": of("process_resident_memory_bytes")}),
    Panel("CPU", "Cores that each replica keeps busy.", "short",
          {"{{instance}}": rate("process_cpu_seconds_total", "instance")}),
    Panel("Open descriptors", "Share of the descriptors that a replica may have open.", "percentunit",
          {"{{instance}}": f"{of('process_open_fds')} / {of('process_max_fds')}"}),
    Panel("Ready", "1: the replica takes requests. 0: its store does not answer, or it is draining.", "short",
          {"{{instance}}": f"{of('gateway_store_reachable')} * (1 - {of('gateway_draining')})"}),
    Panel("Open streams", "Event streams and WebSockets, which a stopping replica waits for.", "short",
          {"{{instance}}": of("gateway_open_streams")}),
]

AUTH_AND_REFRESH = [
    Panel("What authentication decides",
          "dead: a session that is over. unknowable: the store or Emporix could not tell.", "reqps",
          {"{{decision}}": rate("gateway_auth_total", "decision")}),
    Panel("Sign-ins", "refused is the customer's password, failed is ours or Emporix' fault.", "reqps",
          {"{{outcome}}": rate("gateway_logins_total", "outcome")}),
    Panel("What happens to sessions", "customer_lost and refresh_reused should be seldom.", "reqps",
          {"{{event}}": rate("gateway_sessions_total", "event")}),
    Panel("Refreshes of customers",
          "Customers whose refresh is unavailable are served until their access token is over.", "reqps",
          {"{{outcome}}": rate("gateway_refreshes_total", "outcome", 'half="customer"')}),
    Panel("Refreshes of visitors", "The same for the anonymous half of sessions.", "reqps",
          {"{{outcome}}": rate("gateway_refreshes_total", "outcome", 'half="anonymous"')}),
    Panel("Refresh tokens lost", "Sent twice, and nobody has the answer: that customer signs in again.", "short",
          {"{{half}}": f"sum by (half) (increase({of('gateway_refreshes_total', LOST)}[$__range]))"}, "stat"),
    Panel("Calls of token endpoints", "What Emporix has to serve.", "reqps",
          {"{{operation}}": rate("gateway_emporix_calls_total", "operation")}),
    Panel("Calls without an answer", "unavailable did nothing at Emporix, unknown may have.", "reqps",
          {"{{operation}} {{outcome}}": rate("gateway_emporix_calls_total", "operation, outcome", UNANSWERED)}),
    Panel("p99 of token endpoints", "Time of one call. Refreshes of fresh tokens run behind the request.", "s",
          {"{{operation}}": quantile(0.99, "gateway_emporix_seconds", "operation")}),
    Panel("Open breakers", "Kinds of calls that are held back now, over all replicas and tenants.", "short",
          {"{{dependency}}": breakers('dependency!="store"', "dependency")}),
    Panel("Calls held back", "What open breakers, and Emporix' 429s, spare the token endpoints.", "reqps",
          {"{{dependency}}": rate("gateway_breaker_events_total", "dependency", HELD_BACK)}),
    Panel("Calls that were not needed", "What owning the tokens saves Emporix.", "reqps",
          {"{{reason}}": rate("gateway_emporix_calls_saved_total", "reason")}),
]

STORE_AND_CACHE = [
    Panel("Lookups without the store", "Share of session lookups that the hot cache answers alone.", "percentunit",
          {"": share("gateway_hot_cache_total", 'outcome="hit"')}, "stat", 6),
    Panel("Failed operations", "Share of store operations that fail.", "percentunit",
          {"": share("gateway_store_operations_total", 'outcome="failed"')}, "stat", 6),
    Panel("Replicas without the store", "Replicas whose breaker in front of the store is open.", "short",
          {"": breakers('dependency="store"', "dependency")}, "stat", 6),
    Panel("Sessions in memory", "Sessions in the hot caches; one that several replicas hold counts for each.", "short",
          {"": f"sum({of('gateway_hot_cache_sessions')})"}, "stat", 6),
    Panel("What the hot cache does", "grace: served although the store cannot tell, for hot_cache.hot_grace at most.",
          "reqps", {"{{outcome}}": rate("gateway_hot_cache_total", "outcome")}),
    Panel("Memory of the hot cache", "Estimate; bounded by hot_cache.max_bytes.", "bytes",
          {"{{instance}}": of("gateway_hot_cache_bytes")}),
    Panel("Breaker by replica", "1: this replica has no connection to the store. One alone: its network.", "short",
          {"{{instance}}": breakers('dependency="store"', "instance")}),
    Panel("Store operations", "What Redis has to serve. A walk is an operator's revocation.", "ops",
          {"{{operation}}": rate("gateway_store_operations_total", "operation")}),
    Panel("Failures by operation", "Writes alone: Redis is read-only or full. Loads alone: records cannot be read.",
          "ops", {"{{operation}}": rate("gateway_store_operations_total", "operation", 'outcome="failed"')}),
    Panel("p99 of store operations", "As the gateway sees it, waiting for a connection included.", "s",
          {"{{operation}}": quantile(0.99, "gateway_store_seconds", "operation")}),
    Panel("Until an end is heard", "From the end of a session on one replica until another refuses it, p99.", "s",
          {"{{path}}": quantile(0.99, "gateway_revocation_seconds", "path")}),
    Panel("How ends are heard", "revalidation: no message came, the store was asked. Often: replicas are not heard.",
          "ops", {"{{path}}": rate("gateway_revocation_seconds_count", "path")}),
    Panel("Replicas that hear the others", "0: this replica asks the store again after revocation_staleness.", "short",
          {"{{instance}}": of("gateway_hears_invalidations")}),
    Panel("Writes that wait for a replica of Redis", "late: a failover now may forget a session or its end.", "ops",
          {"{{outcome}}": rate("gateway_store_replication_total", "outcome")}),
]

DASHBOARDS = {
    "overview": ("Emporix gateway: overview", OVERVIEW),
    "auth-and-refresh": ("Emporix gateway: auth and refresh", AUTH_AND_REFRESH),
    "store-and-cache": ("Emporix gateway: store and cache", STORE_AND_CACHE),
}

# The timers whose buckets name a trace.
TRACED = ("gateway_request_seconds_bucket", "gateway_emporix_seconds_bucket")

SOURCE = {"type": "prometheus", "uid": "${datasource}"}


def grid(panels: list[Panel]) -> list[dict]:
    """Panels from left to right, row by row."""
    placed, x, y, height = [], 0, 0, 0
    for number, panel in enumerate(panels, 1):
        if x + panel.width > WIDTH:
            x, y = 0, y + height
        height = 4 if panel.width == 6 else 8
        placed.append(drawn(number, panel) | {"gridPos": {"x": x, "y": y, "w": panel.width, "h": height}})
        x += panel.width
    return placed


def drawn(number: int, panel: Panel) -> dict:
    instant = panel.kind == "stat"
    targets = [{"refId": chr(ord("A") + place), "expr": query, "legendFormat": legend, "instant": instant}
               | ({"exemplar": True} if not instant and any(timer in query for timer in TRACED) else {})
               for place, (legend, query) in enumerate(panel.queries.items())]
    return {"id": number, "type": panel.kind, "title": panel.title, "description": panel.answers, "datasource": SOURCE,
            "fieldConfig": {"defaults": {"unit": panel.unit, "min": 0}, "overrides": []}, "targets": targets}


def choice(name: str, label: str, series: str) -> dict:
    """A variable with the values of a label; all of them, at first, and then also what has no such label."""
    return {"name": name, "label": label, "type": "query", "datasource": SOURCE, "refresh": 2, "multi": True,
            "query": f"label_values({series}, {name})", "includeAll": True, "allValue": ".*",
            "current": {"text": "All", "value": "$__all"}}


def dashboard(name: str, title: str, panels: list[Panel]) -> dict:
    variables = [
        {"name": "datasource", "label": "Prometheus", "type": "datasource", "query": "prometheus"},
        choice("namespace", "Namespace", "gateway_build_info"),
        choice("instance", "Replica", 'gateway_build_info{namespace=~"$namespace"}'),
    ]
    others = {"title": "Emporix gateway", "type": "dashboards", "tags": ["emporix-gateway"], "keepTime": True}
    return {"uid": f"emporix-gateway-{name}", "title": title, "tags": ["emporix-gateway"], "schemaVersion": 38,
            "editable": False, "refresh": "30s", "time": {"from": "now-6h", "to": "now"}, "links": [others],
            "templating": {"list": variables}, "panels": grid(panels)}


def files() -> dict[Path, str]:
    """What stands in each file."""
    return {FILES / f"{name}.json": json.dumps(dashboard(name, *content), indent=1) + "\n"
            for name, content in DASHBOARDS.items()}


if __name__ == "__main__":
    for path, text in files().items():
        path.write_text(text)
