"""Holds all that looks for the gateway's pods to the labels that these bear."""

from checks.documents import at

# Where a selector of a kind stands. One that is missing or empty finds every pod or none, whatever Kubernetes says of it.
OF_PODS = {
    "Deployment": "spec.selector.matchLabels", "Service": "spec.selector",
    "PodDisruptionBudget": "spec.selector.matchLabels", "NetworkPolicy": "spec.podSelector.matchLabels",
    "PodMonitor": "spec.selector.matchLabels",
}
OF_SERVICES = {"ServiceMonitor": "spec.selector.matchLabels"}


def faults(documents):
    """Selectors that do not find what stands beside them. Nothing is known of pods that another chart makes."""
    pods = [at(each, "spec.template.metadata.labels") or {} for each in documents if each["kind"] == "Deployment"]
    services = [at(each, "metadata.labels") or {} for each in documents if each["kind"] == "Service"]
    return [*astray(documents, OF_PODS, pods), *astray(documents, OF_SERVICES, services)] if pods else []


def astray(documents, places, labelled):
    for each in documents:
        if place := places.get(each["kind"]):
            wanted = at(each, place) or {}
            if not wanted or not any(wanted.items() <= labels.items() for labels in labelled):
                yield f"{each['kind']} {at(each, 'metadata.name')}: {place} is {wanted}, which finds nothing here"
