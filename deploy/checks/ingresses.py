"""Holds the ingresses of Kubernetes to what the tested examples of deploy/ingress route to the gateway and take off."""

import json
import re

import yaml

from checks.configurations import ROOT
from checks.documents import at

EXAMPLES = ROOT / "deploy/ingress"
# Where the routes of a kind stand.
ROUTES = {
    "Ingress": "spec.rules.0.http.paths", "HTTPRoute": "spec.rules",
    "IngressRoute": "spec.routes", "VirtualService": "spec.http",
}

# How an ingress is told of origins.
SAYS_ORIGINS = re.compile(r"allowOrigins|cors-allow-origin")


def faults(file, documents):
    """What does not get to the gateway's public port, and what gets through to the API or out again."""
    routes = [json.dumps(route) for each in documents for route in at(each, ROUTES.get(each["kind"], "none")) or []]
    gateways = " ".join(route for route in routes if '"emporix-gateway' in route)
    found = [f"/{path} does not go to the gateway" for path in own_paths() if not re.search(rf"[/(|]{path}\b", gateways)]
    # Who sends all calls of other origins there sends their preflights too.
    if not re.search(r"OPTIONS|`Origin`", gateways) and "enable-cors" not in file.read_text():
        found.append("nobody answers preflights")
    kept = taken_off(file.stem) - {word.lower() for word in re.findall(r"[\w-]+", json.dumps(documents))}
    # Who does not hand the gateway's own CORS headers on says them once more.
    unsaid = [name for name in exposed() if name not in file.read_text()] if SAYS_ORIGINS.search(file.read_text()) else []
    return (found + [f"{header} is not taken off" for header in sorted(kept)]
            + [f"{header} is not exposed to pages of another origin" for header in unsaid])


def exposed():
    """The headers that the gateway lets pages of another origin read."""
    return re.search(r'EXPOSED_HEADERS: &str =\s*"([^"]+)"', (ROOT / "src/edge/proof.rs").read_text())[1].split(", ")


def own_paths():
    return re.search(r"location ~ \^/\(([^)]+)\)", (EXAMPLES / "nginx.conf").read_text())[1].split("|")


def taken_off(ingress):
    """The headers that the example of the same proxy takes off requests and answers."""
    match ingress:
        case "traefik":
            middlewares = yaml.safe_load((EXAMPLES / "traefik-routes.yaml").read_text())["http"]["middlewares"]
            headers = [each.get("headers", {}) for each in middlewares.values()]
            return {name.lower() for each in headers for names in each.values() for name in names}
        case "istio" | "envoy-gateway":
            listener = yaml.safe_load((EXAMPLES / "envoy.yaml").read_text())["static_resources"]["listeners"][0]
            manager = at(listener, "filter_chains.0.filters.0.typed_config")
            route = at(manager, "route_config.virtual_hosts.0.routes")[-1]
            early = at(manager, "early_header_mutation_extensions.0.typed_config.mutations")
            return {*route["request_headers_to_remove"], *route["response_headers_to_remove"],
                    *(each["remove"] for each in early)}
        case _:
            # ingress-nginx takes nothing off without snippets, as its file says.
            return set()
