"""Holds documents to Kubernetes' own schemas; those of other APIs to the fields that they cannot work without."""

import functools

from kubernetes_validate import utils

# The oldest release that the chart takes, and the newest whose schema is known.
RELEASES = ("1.30", "1.37")

# Fields that must be there, of kinds that are no part of Kubernetes.
SHAPES = {
    ("gateway.networking.k8s.io/v1", "HTTPRoute"): ["spec.parentRefs.0.name", "spec.rules.0.backendRefs.0.port"],
    ("gateway.networking.k8s.io/v1", "BackendTLSPolicy"): ["spec.targetRefs.0.name", "spec.validation.hostname"],
    ("monitoring.coreos.com/v1", "ServiceMonitor"): ["spec.selector.matchLabels", "spec.endpoints.0.port"],
    ("monitoring.coreos.com/v1", "PodMonitor"): ["spec.selector.matchLabels", "spec.podMetricsEndpoints.0.port"],
    ("monitoring.coreos.com/v1", "PrometheusRule"): ["spec.groups.0.name", "spec.groups.0.rules.0.expr"],
    ("traefik.io/v1alpha1", "Middleware"): ["spec"],
    ("traefik.io/v1alpha1", "IngressRoute"): ["spec.routes.0.match", "spec.routes.0.services.0.port"],
    ("install.istio.io/v1alpha1", "IstioOperator"): ["spec.meshConfig.extensionProviders.0.envoyExtAuthzHttp.service"],
    ("networking.istio.io/v1", "VirtualService"): [
        "spec.hosts.0", "spec.gateways.0", "spec.http.0.route.0.destination.port.number"],
    ("security.istio.io/v1", "AuthorizationPolicy"): ["spec.action", "spec.provider.name", "spec.rules"],
    ("networking.istio.io/v1alpha3", "EnvoyFilter"): ["spec.configPatches.0.patch.value"],
    ("gateway.envoyproxy.io/v1alpha1", "ClientTrafficPolicy"): ["spec.targetRefs.0.name", "spec.headers"],
    ("gateway.envoyproxy.io/v1alpha1", "SecurityPolicy"): ["spec.targetRefs.0.name", "spec.extAuth.http.backendRefs"],
}

# A schema is a megabyte, and read anew for each document otherwise.
utils.schema_contents = functools.cache(utils.schema_contents)


def at(document, path):
    """What stands at a dotted path, numbers counting through lists; None where nothing does."""
    for step in path.split("."):
        if isinstance(document, list):
            document = document[int(step)] if int(step) < len(document) else None
        else:
            document = (document or {}).get(step)
    return document


def faults(document):
    """All that is wrong with a document."""
    named = f"{document.get('kind')} {at(document, 'metadata.name')}"
    if not at(document, "metadata.name"):
        return [f"{named}: it has no name"]
    shape = SHAPES.get((document["apiVersion"], document["kind"]))
    if shape is not None:
        return [f"{named}: {path} is missing" for path in shape if at(document, path) is None]
    found = []
    for release in RELEASES:
        try:
            utils.validate(document, release, strict=True)
        except utils.ValidationError as error:
            found.append(f"{named}: {'.'.join(map(str, error.path))}: {error.message}, says Kubernetes {release}")
        except utils.SchemaNotFoundError as error:
            found.append(f"{named}: {error.message}")
    return found
