"""Holds the Kustomize base to the chart: the same ports, behind the same Services, open to the same peers."""

from checks import chart
from checks.documents import at

EVERYTHING = {
    "config": {"tenants": {"acme": {"client_id": "storefront"}}},
    "forwardAuth": {"enabled": True}, "internal": {"enabled": True}, "networkPolicy": {"enabled": True},
}


def faults(base):
    """What the base opens otherwise than the chart with every listener on."""
    ours, charts = opened(base), opened(chart.render(EVERYTHING))
    return [f"{what}: {ours.get(what)}, where the chart has {charts.get(what)}"
            for what in sorted({*ours, *charts}) if ours.get(what) != charts.get(what)]


def opened(documents):
    found = {}
    for each in documents:
        named = f"{each['kind']} {at(each, 'metadata.name')}"
        match each["kind"]:
            case "Deployment":
                found[named] = at(each, "spec.template.spec.containers.0.ports")
            case "Service":
                found[named] = at(each, "spec.ports")
            case "NetworkPolicy":
                # The chart also lets in what `helm test` starts.
                found[named] = [(rule["ports"], rule.get("from", [])[:1]) for rule in at(each, "spec.ingress")]
    return found
