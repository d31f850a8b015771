"""Holds the ingresses of Kubernetes to what the tested examples of deploy/ingress route to the gateway and take off."""

import fnmatch
import itertools
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

# What Gateway API takes in one list of a filter of headers, and how such filters are called.
MOST_IN_A_FILTER = 16

FILTER_OF_HEADERS = re.compile(r"HeaderModifier$|RequestHeaders$|ResponseHeaders$")

# Those who show a verdict some of a head: where names with `_` are refused, by what word, and where stands what is shown.
ENVOYS = {
    "istio": (
        "spec.configPatches.0.patch.value.typed_config.common_http_protocol_options.headers_with_underscores_action",
        "REJECT_REQUEST",
        "spec.meshConfig.extensionProviders.0.envoyExtAuthzHttp.includeRequestHeadersInCheck",
    ),
    "envoy-gateway": ("spec.headers.withUnderscoresAction", "RejectRequest", "spec.extAuth.headersToExtAuth"),
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
    if file.stem == "traefik" and tested_rule() not in gateways:
        found.append("other requests go to the gateway than in the tested example")
    kept = taken_off(file.stem) - {word.lower() for word in re.findall(r"[\w-]+", json.dumps(documents))}
    # Who does not hand the gateway's own CORS headers on says them once more.
    unsaid = [name for name in exposed() if name not in file.read_text()] if SAYS_ORIGINS.search(file.read_text()) else []
    found += [f"{path} has {length} headers, over {MOST_IN_A_FILTER}"
              for path, length in header_lists(documents) if length > MOST_IN_A_FILTER]
    if file.stem in ENVOYS:
        found += [f"{alias} passes unseen" for alias in unseen_aliases(file.stem, documents)]
    return (found + [f"{header} is not taken off" for header in sorted(kept)]
            + [f"{header} is not exposed to pages of another origin" for header in unsaid])


def small_bodies(documents):
    """Ingresses of nginx that let less through to the gateway than it takes: 1 MiB where they say nothing."""
    taken = yaml.safe_load((ROOT / "config/gateway.yaml").read_text())["limits"]["api_body_bytes"]
    for each in documents:
        if at(each, "spec.ingressClassName") == "nginx" and '"emporix-gateway"' in json.dumps(each["spec"]):
            size = (at(each, "metadata.annotations") or {}).get("nginx.ingress.kubernetes.io/proxy-body-size", "1m")
            if int(size.removesuffix("m")) << 20 < taken:
                yield f"{at(each, 'metadata.name')}: bodies over {size} are refused, and the gateway takes {taken} bytes"


def header_lists(node, path="", within=""):
    """Every list of Gateway API's filters of headers, in Envoy Gateway's policies too, and how long it is."""
    steps = node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else ()
    for step, below in steps:
        if step in ("remove", "set", "add") and isinstance(below, list) and FILTER_OF_HEADERS.search(within):
            yield f"{path}.{step}"[1:], len(below)
        yield from header_lists(below, f"{path}.{step}", str(step))


def unseen_aliases(ingress, documents):
    """Aliases of the gateway's guarded names that are neither refused nor shown to the verdict, which would refuse them."""
    where_underscores, refused, where_shown = ENVOYS[ingress]
    if all(at(each, where_underscores) != refused for each in documents):
        yield "a name with _"
    shown = next(names for each in documents if (names := at(each, where_shown)))
    yield from (alias for alias in dotted_aliases() if not any(fnmatch.fnmatchcase(alias, name) for name in shown))


def dotted_aliases():
    """The guarded names with dots in place of some dashes."""
    guarded = re.search(r"const GUARDED: [^=]*= \[([^\]]+)\]", (ROOT / "src/edge/headers.rs").read_text())[1]
    for name in re.findall(r'"([^"]+)"', guarded):
        words = name.split("-")
        for joints in itertools.product("-.", repeat=len(words) - 1):
            if "." in joints:
                yield words[0] + "".join(joint + word for joint, word in zip(joints, words[1:]))


def exposed():
    """The headers that the gateway lets pages of another origin read."""
    return re.search(r'EXPOSED_HEADERS: &str =\s*"([^"]+)"', (ROOT / "src/edge/proof.rs").read_text())[1].split(", ")


def own_paths():
    return re.search(r"location ~ \^/\(([^)]+)\)", (EXAMPLES / "nginx.conf").read_text())[1].split("|")


def tested_rule():
    return yaml.safe_load((EXAMPLES / "traefik-routes.yaml").read_text())["http"]["routers"]["gateway"]["rule"]


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
