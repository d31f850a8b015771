"""What the chart promises, one sentence a test. A test takes `made`, which renders values and checks what comes out."""

import re

from checks.chart import refusal, render, storefront, with_files
from checks.configurations import ROOT
from checks.documents import at

SINGLE = {"config": {"tenants": {"acme": {"client_id": "key"}}}}
SEAL = {"active": "a", "keys": [{"id": "a", "secret_file": "/run/secrets/gateway/seal"}]}
REDIS = {"kind": "redis", "redis": {"url": "redis://redis:6379"}, "seal": SEAL}


def with_config(**sections):
    return {"config": {**SINGLE["config"], **sections}, "existingSecret": "emporix-gateway"}


def kinds(documents):
    return sorted(document["kind"] for document in documents)


def the(documents, kind, name="emporix-gateway"):
    (found,) = [each for each in documents if (each["kind"], each["metadata"]["name"]) == (kind, name)]
    return found


def container(documents):
    return at(the(documents, "Deployment"), "spec.template.spec.containers.0")


def config_text(documents):
    return the(documents, "ConfigMap")["data"]["config.yaml"]


def one_replica_with_memory_needs_nothing_but_a_tenant(made):
    assert kinds(made(SINGLE)) == [
        "ConfigMap", "Deployment", "Pod", "PodDisruptionBudget", "Service", "Service", "ServiceAccount"]


def a_release_without_tenants_is_refused(made):
    assert "missing property 'tenants'" in refusal({})
    assert "minProperties" in refusal({"config": {"tenants": {}}})


def a_misspelt_value_is_refused(made):
    assert "'replicas' not allowed" in refusal({**SINGLE, "replicas": 2})
    assert "'annotation' not allowed" in refusal({**SINGLE, "service": {"annotation": {}}})


def a_value_of_the_wrong_kind_is_refused(made):
    for values in ({"mode": "boat"}, {"replicaCount": "2"}, {"replicaCount": 0}, {"ports": {"public": 70000}},
                   {"image": {"digest": "latest"}}, {"service": {"type": "ExternalName"}},
                   {"forwardAuth": {"trustedPeers": []}}, {"ingress": {"enabled": True}},
                   {"httpRoute": {"enabled": True}}, {"networkPolicy": {"redis": {"ports": []}}}):
        assert "values don't meet the specifications" in refusal({**SINGLE, **values}), values


def replicas_that_share_no_store_are_refused(made):
    told = "need config.store.kind: redis"
    assert "2 replicas " + told in refusal({**SINGLE, "replicaCount": 2})
    assert "6 replicas " + told in refusal({**SINGLE, "autoscaling": {"enabled": True}})
    assert at(the(made({**with_config(store=REDIS), "replicaCount": 2}), "Deployment"), "spec.replicas") == 2


def a_secret_in_the_configuration_is_refused(made):
    names = {"tenants.*": "acme", "services.*": "erp", "keys.*": "1"}
    for pattern in secret_paths():
        key = re.sub(r"\w+\.\*", lambda within: within[0].replace("*", names[within[0]]), pattern)
        told = refusal({"config": holding(SINGLE["config"], key.split("."), "https://user:hush@there")})
        assert f"config.{key} would be readable" in told and "hush" not in told, key
    for key in ("upstream.base_url", "store.redis.nodes", "tenants.acme.saas_token.jwks_url"):
        there = ["redis://user:hush@there"] if key.endswith("nodes") else "https://user:hush@there"
        told = refusal({"config": holding(SINGLE["config"], key.split("."), there)})
        assert f"config.{key} names a user" in told and "hush" not in told, key
    plain = {"store": REDIS, "traces": {"otlp_endpoint": "http://collector:4318/v1/traces"}}
    assert "collector:4318" in config_text(made(with_config(**plain)))


def secret_paths():
    """The keys whose values the gateway itself shows to nobody."""
    return re.findall(r'"([\w.*]+)"', re.search(r"SECRET_PATHS: [^=]*= \[([^\]]+)\]", (ROOT / "src/config/secret_files.rs").read_text())[1])


def holding(config, path, value):
    """The configuration with this value at a path; a number is a place in a list."""
    first, *rest = path
    if not rest:
        return {**config, first: value}
    if rest[0].isdigit():
        return {**config, first: [{"id": "a"}] * int(rest[0]) + [holding({"id": "b"}, rest[1:], value)]}
    return {**config, first: holding(config.get(first, {}), rest, value)}


def what_the_chart_itself_listens_on_is_not_the_configurations(made):
    for sections in ({"listen": {"public": "0.0.0.0:80"}}, {"listen": {"tls": {"key_file": "/key"}}},
                     {"admin": {"listen": "0.0.0.0:9091"}}, {"forward_auth": {"visitors": True}},
                     {"internal": {"listen": "0.0.0.0:8082"}}):
        assert "is the chart's" in refusal(with_config(**sections)), sections


def a_replica_is_given_the_time_to_drain(made):
    assert "must be over 38" in refusal({**SINGLE, "terminationGracePeriodSeconds": 38})
    assert made({**SINGLE, "terminationGracePeriodSeconds": 39})
    assert "must be over 98" in refusal(with_config(listen={"drain_timeout": "1m 30s"}))
    assert "must be over 48" in refusal({**SINGLE, "preStopSeconds": 15})
    spec = at(the(made(SINGLE), "Deployment"), "spec.template.spec")
    assert spec["terminationGracePeriodSeconds"] == 45
    assert at(spec, "containers.0.lifecycle.preStop.sleep.seconds") == 5


def the_configuration_is_passed_on_as_it_is(made):
    text = config_text(made(with_config(hot_cache={"max_bytes": 536870912}, log={"access": True})))
    assert "max_bytes: 536870912\n" in text and "access: true" in text


def a_changed_configuration_rolls_the_replicas(made):
    annotation = "spec.template.metadata.annotations"
    one, same, other = (at(the(made(values), "Deployment"), annotation)["checksum/config"]
                        for values in (SINGLE, SINGLE, with_config(log={"level": "warn"})))
    assert one == same != other


def listeners_follow_the_ports(made):
    documents = made({**SINGLE, "ports": {"public": 8888, "admin": 9999}})
    assert "public: 0.0.0.0:8888" in config_text(documents) and "listen: 0.0.0.0:9999" in config_text(documents)
    assert [port["containerPort"] for port in container(documents)["ports"]] == [8888, 9999]
    asks = at(the(documents, "Pod", "emporix-gateway-ready"), "spec.containers.0.args")
    assert "http://emporix-gateway-admin:9999" in asks


def probes_ask_the_operators_port(made):
    for probe, path in {"startup": "/startupz", "liveness": "/livez", "readiness": "/readyz"}.items():
        assert container(made(SINGLE))[f"{probe}Probe"]["httpGet"] == {"path": path, "port": "admin"}


def readiness_outlives_the_grace_of_sessions_in_memory(made):
    probe = container(made(SINGLE))["readinessProbe"]
    assert probe["periodSeconds"] * probe["failureThreshold"] > 60


def nobody_in_the_pod_is_root_or_writes(made):
    documents = made(SINGLE)
    context = container(documents)["securityContext"]
    assert context["runAsNonRoot"] and context["runAsUser"] == 65532 and context["readOnlyRootFilesystem"]
    assert context["capabilities"] == {"drop": ["ALL"]} and not context["allowPrivilegeEscalation"]
    assert context["seccompProfile"]["type"] == "RuntimeDefault"
    assert at(the(documents, "Deployment"), "spec.template.spec.automountServiceAccountToken") is False
    assert at(the(documents, "ServiceAccount"), "automountServiceAccountToken") is False


def secrets_are_files_of_one_secret(made):
    documents = made({**SINGLE, "existingSecret": "shop-secrets"})
    volumes = at(the(documents, "Deployment"), "spec.template.spec.volumes")
    assert {"name": "gateway-secrets", "secret": {"secretName": "shop-secrets"}} in volumes
    assert "/run/secrets/gateway" in [mount["mountPath"] for mount in container(documents)["volumeMounts"]]
    assert "Secret" not in kinds(documents)


def tls_is_the_public_ports_and_changes_the_service(made):
    documents = made({**SINGLE, "tls": {"existingSecret": "shop-tls"}})
    assert "certificate_file: /run/secrets/tls/tls.crt" in config_text(documents)
    assert at(the(documents, "Service"), "spec.ports.0") == {"name": "https", "port": 443, "targetPort": "public"}
    assert at(the(made(SINGLE), "Service"), "spec.ports.0") == {"name": "http", "port": 80, "targetPort": "public"}
    assert container(documents)["readinessProbe"]["httpGet"].get("scheme") is None


def verdicts_have_a_port_of_their_own(made):
    documents = made({**SINGLE, "forwardAuth": {"enabled": True, "port": 8082, "trustedPeers": ["10.1.0.0/16"]}})
    text = config_text(documents)
    assert "forward_auth:\n  listen: 0.0.0.0:8082\n  trusted_peers:\n  - 10.1.0.0/16" in text
    assert at(the(documents, "Service"), "spec.ports.1.port") == 8082
    assert "forward_auth" not in config_text(made(SINGLE)) and at(the(made(SINGLE), "Service"), "spec.ports.1") is None


def visitors_get_sessions_by_verdicts_where_that_is_wanted(made):
    assert "visitors: false" in config_text(made({**SINGLE, "forwardAuth": {"enabled": True}}))
    assert "visitors: true" in config_text(made({**SINGLE, "forwardAuth": {"enabled": True, "visitors": True}}))


def a_load_balancer_may_keep_clients_addresses(made):
    values = {**SINGLE, "service": {"type": "LoadBalancer", "externalTrafficPolicy": "Local"}}
    assert at(the(made(values), "Service"), "spec.externalTrafficPolicy") == "Local"
    assert "externalTrafficPolicy" not in the(made(SINGLE), "Service")["spec"]
    told = refusal({**SINGLE, "service": {"externalTrafficPolicy": "Local"}})
    assert "service.externalTrafficPolicy needs service.type: LoadBalancer or NodePort" in told


def listeners_and_services_are_of_the_clusters_address_families(made):
    listening = {"forwardAuth": {"enabled": True}, "internal": {"enabled": True},
                 **with_config(internal={"token_file": "/run/secrets/gateway/internal-token"})}
    families = {"ipFamilyPolicy": "PreferDualStack", "ipFamilies": ["IPv6", "IPv4"]}
    documents = made({**listening, "service": families})
    services = [each["spec"] for each in documents if each["kind"] == "Service"]
    assert len(services) == 3 and all(families.items() <= spec.items() for spec in services)
    # `[::]` takes IPv4 too.
    text = config_text(documents)
    assert text.count("'[::]:") == 4 and " 0.0.0.0" not in text
    for dual in ("PreferDualStack", "RequireDualStack"):
        assert config_text(made({**listening, "service": {"ipFamilyPolicy": dual}})).count("'[::]:") == 4, dual
    alone = {**listening, "service": {"ipFamilies": ["IPv6"]}}
    assert "forwardAuth.trustedPeers needs a network of IPv6" in refusal(alone)
    made({**alone, "forwardAuth": {"enabled": True, "trustedPeers": ["fd00::/8"]}})
    documents = made({**listening, "service": {"ipFamilies": ["IPv4"]}})
    assert config_text(documents).count(" 0.0.0.0:") == 4
    for wrong in ({"ipFamilyPolicy": "DualStack"}, {"ipFamilies": ["IPv5"]}):
        assert "don't meet" in refusal({**SINGLE, "service": wrong})


def verdicts_are_not_for_everybody(made):
    told = refusal({**SINGLE, "forwardAuth": {"enabled": True}, "service": {"type": "LoadBalancer"}})
    assert "forwardAuth needs service.type: ClusterIP" in told


def the_operators_port_is_not_on_the_public_service(made):
    documents = made(SINGLE)
    assert "admin" not in [port["targetPort"] for port in at(the(documents, "Service"), "spec.ports")]
    assert at(the(documents, "Service", "emporix-gateway-admin"), "spec.clusterIP") == "None"


def the_back_office_has_a_port_and_a_service_of_its_own(made):
    token = with_config(internal={"token_file": "/run/secrets/gateway/internal-token"})
    documents = made({**token, "internal": {"enabled": True, "port": 8083}, "service": {"type": "LoadBalancer"},
                      "networkPolicy": {"enabled": True}})
    assert "internal:\n  listen: 0.0.0.0:8083\n  token_file: " in config_text(documents)
    service, (port,) = the(documents, "Service", "emporix-gateway-internal"), container(documents)["ports"][2:]
    assert port == {"name": "internal", "containerPort": 8083}
    assert at(service, "spec.ports") == [{"name": "http", "port": 8083, "targetPort": "internal"}]
    assert "type" not in service["spec"] and len(at(the(documents, "Service"), "spec.ports")) == 1
    assert at(service, "spec.selector").items() <= at(the(documents, "Deployment"), "spec.template.metadata.labels").items()
    rule = at(the(documents, "NetworkPolicy"), "spec.ingress.2")
    assert rule == {"ports": [{"port": "internal"}], "from": [{"podSelector": {}}]}
    assert "emporix-gateway-internal" not in [at(each, "metadata.name") for each in made(SINGLE)]


def back_office_callers_may_show_certificates(made):
    authority = {"client_ca_file": "/run/secrets/internal-tls/ca.crt"}
    documents = made({**with_config(internal={"tls": authority}),
                      "internal": {"enabled": True, "tls": {"existingSecret": "office-tls"}}})
    assert "certificate_file: /run/secrets/internal-tls/tls.crt" in config_text(documents)
    volumes = at(the(documents, "Deployment"), "spec.template.spec.volumes")
    assert {"name": "gateway-internal-tls", "secret": {"secretName": "office-tls"}} in volumes
    assert at(the(documents, "Service", "emporix-gateway-internal"), "spec.ports.0.name") == "https"


def an_ingress_sends_its_hosts_to_the_public_port(made):
    hosts = {"enabled": True, "className": "nginx", "hosts": ["a.example.com", "b.example.com"]}
    ingress = the(made({**SINGLE, "ingress": hosts, "tls": {"existingSecret": "shop-tls"}}), "Ingress")
    assert at(ingress, "spec.ingressClassName") == "nginx"
    for rule, host in zip(at(ingress, "spec.rules"), hosts["hosts"], strict=True):
        (path,) = at(rule, "http.paths")
        assert (rule["host"], path["path"], path["pathType"]) == (host, "/", "Prefix")
        assert path["backend"] == {"service": {"name": "emporix-gateway", "port": {"number": 443}}}


def an_http_route_sends_its_hosts_to_the_public_port(made):
    wanted = {"enabled": True, "parentRefs": [{"name": "public"}], "hostnames": ["shop.example.com"]}
    route = the(made({**SINGLE, "httpRoute": wanted, "service": {"port": 8000}}), "HTTPRoute")
    assert at(route, "spec.parentRefs") == wanted["parentRefs"] and at(route, "spec.hostnames") == wanted["hostnames"]
    (rule,) = at(route, "spec.rules")
    assert rule["backendRefs"] == [{"name": "emporix-gateway", "port": 8000}]
    # Streams and large answers take as long as they take; some gateways cut everything at 15 s of their own.
    assert rule["timeouts"] == {"request": "0s"}
    for timeouts, told in (({"request": "60s", "backendRequest": "30s"}, {"request": "60s", "backendRequest": "30s"}), (None, None)):
        route = the(made({**SINGLE, "httpRoute": {**wanted, "timeouts": timeouts}}), "HTTPRoute")
        assert at(route, "spec.rules.0.timeouts") == told
    assert "don't meet" in refusal({**SINGLE, "httpRoute": {**wanted, "timeouts": {"request": 0}}})


def a_route_to_a_tls_port_says_whose_certificate_is_there(made):
    tls = {"tls": {"existingSecret": "shop-tls"}}
    route = {"enabled": True, "parentRefs": [{"name": "public"}]}
    told = {**route, "backendTls": {"hostname": "shop.example.com", "caConfigMap": "shop-ca"}}
    assert "httpRoute.backendTls.hostname is needed" in refusal({**SINGLE, **tls, "httpRoute": route})
    assert "httpRoute.backendTls.hostname is needed" in refusal({**SINGLE, "httpRoute": told})
    documents = made({**SINGLE, **tls, "httpRoute": told})
    policy, service = the(documents, "BackendTLSPolicy"), the(documents, "Service")
    (target,) = at(policy, "spec.targetRefs")
    assert target == {"group": "", "kind": "Service", "name": "emporix-gateway", "sectionName": "https"}
    assert at(service, "spec.ports.0.name") == "https"
    assert at(policy, "spec.validation") == {
        "hostname": "shop.example.com", "caCertificateRefs": [{"group": "", "kind": "ConfigMap", "name": "shop-ca"}]}
    system = {**route, "backendTls": {"hostname": "shop.example.com"}}
    assert at(the(made({**SINGLE, **tls, "httpRoute": system}), "BackendTLSPolicy"), "spec.validation") == {
        "hostname": "shop.example.com", "wellKnownCACertificates": "System"}
    elsewhere = {**route, "backendTls": {"enabled": False}}
    for values in ({"httpRoute": route}, {**tls, "httpRoute": elsewhere}):
        assert "BackendTLSPolicy" not in kinds(made({**SINGLE, **values}))
    for wrong in ({"hostname": "*.example.com"}, {"hostname": "10.0.0.1"}, {"caConfigMap": "a b"}):
        assert "don't meet" in refusal({**SINGLE, **tls, "httpRoute": {**route, "backendTls": wrong}})


def a_disruption_budget_counts_the_replicas(made):
    documents = made(SINGLE)
    budget = the(documents, "PodDisruptionBudget")
    assert at(budget, "spec.selector") == at(the(documents, "Deployment"), "spec.selector")
    assert at(budget, "spec.maxUnavailable") == 1
    # Without Redis every replica is unready, and nodes are drained all the same.
    assert at(budget, "spec.unhealthyPodEvictionPolicy") == "AlwaysAllow"
    for none in (0, "0", "0%"):
        assert "don't meet" in refusal({**SINGLE, "podDisruptionBudget": {"maxUnavailable": none}}), none
    assert at(the(made({**SINGLE, "podDisruptionBudget": {"maxUnavailable": "50%"}}), "PodDisruptionBudget"),
              "spec.maxUnavailable") == "50%"


def resources_are_the_containers(made):
    assert container(made(SINGLE))["resources"] == {
        "requests": {"cpu": "500m", "memory": "1Gi"}, "limits": {"memory": "1Gi"}}
    limits = {"limits": {"memory": "2Gi"}}
    assert container(made({**SINGLE, "resources": limits}))["resources"]["limits"] == {"memory": "2Gi"}


def services_find_the_replicas_and_not_the_test_pod(made):
    documents = made(SINGLE)
    selector = at(the(documents, "Service"), "spec.selector").items()
    assert selector <= at(the(documents, "Deployment"), "spec.template.metadata.labels").items()
    assert not selector <= at(the(documents, "Pod", "emporix-gateway-ready"), "metadata.labels").items()


def the_test_asks_with_the_gateways_own_image(made):
    documents = made({**SINGLE, "image": {"repository": "registry.example.com/gateway", "tag": "9.9.9"}})
    asked = at(the(documents, "Pod", "emporix-gateway-ready"), "spec.containers.0")
    assert asked["image"] == container(documents)["image"] == "registry.example.com/gateway:9.9.9"
    assert asked["args"][:2] == ["healthcheck", "--admin"]


def a_digest_wins_over_a_tag(made):
    image = {"tag": "1.2.3", "digest": "sha256:" + "a" * 64}
    assert container(made({**SINGLE, "image": image}))["image"] == "emporix-gateway@sha256:" + "a" * 64


def the_network_policy_tells_the_ports_apart(made):
    values = {**with_config(store=REDIS), "networkPolicy": {"enabled": True}, "forwardAuth": {"enabled": True}}
    spec = the(made(values), "NetworkPolicy")["spec"]
    public, admin, verdicts = spec["ingress"]
    assert public == {"ports": [{"port": "public"}]}
    assert at(admin, "from.0.namespaceSelector.matchLabels") == {"kubernetes.io/metadata.name": "monitoring"}
    assert at(verdicts, "from.0.namespaceSelector.matchLabels") == {"kubernetes.io/metadata.name": "ingress-nginx"}
    assert outward(spec) == [53, 53, 443, 6379, 26379]


def what_the_configuration_names_can_be_reached(made):
    open_to = {"networkPolicy": {"enabled": True}}
    keys = {"acme": {"client_id": "key", "saas_token": {"mode": "jwks", "jwks_url": "https://keys.example.com:8443/set"}}}
    named = {"upstream": {"base_url": "http://proxy.shop"}, "traces": {"otlp_endpoint": "http://[fd00::1]:4318/v1/traces"},
             "tenants": keys, "store": {**REDIS, "redis": {"url": "rediss://redis:6380"}}}
    spec = the(made({**with_config(**named), **open_to}), "NetworkPolicy")["spec"]
    assert outward(spec) == [53, 53, 443, 80, 4318, 8443, 6379, 26379, 6380]
    nodes = {"topology": "cluster", "nodes": ["redis://a:7000", "redis://b:7001", "redis://c"]}
    spec = the(made({**with_config(store={**REDIS, "redis": nodes}), **open_to}), "NetworkPolicy")["spec"]
    assert outward(spec) == [53, 53, 443, 6379, 26379, 7000, 7001]
    odd = {"traces": {"otlp_endpoint": "HTTP://collector:04318"}, "store": {**REDIS, "redis": {"url": "redis://a"}}}
    spec = the(made({**with_config(**odd), **open_to}), "NetworkPolicy")["spec"]
    assert outward(spec) == [53, 53, 443, 4318, 6379, 26379]
    # A section that is left empty is told of by the gateway, in words.
    for empty in ({"traces": None, "upstream": None}, {"store": {**REDIS, "redis": {"nodes": None}}}):
        render({**with_config(**empty), **open_to})


def outward(policy):
    return [port["port"] for rule in policy["egress"] for port in rule["ports"]]


def the_autoscaler_alone_counts_replicas(made):
    documents = made({**with_config(store=REDIS), "autoscaling": {"enabled": True}})
    assert at(the(documents, "Deployment"), "spec.replicas") is None
    assert at(the(documents, "HorizontalPodAutoscaler"), "spec.scaleTargetRef.name") == "emporix-gateway"
    turned = {"autoscaling": {"enabled": True, "minReplicas": 7}}
    assert "autoscaling.minReplicas is over autoscaling.maxReplicas" in refusal({**with_config(store=REDIS), **turned})


def monitors_look_at_the_operators_port_once(made):
    documents = made({**SINGLE, "serviceMonitor": {"enabled": True, "labels": {"release": "prometheus"}}})
    monitor = the(documents, "ServiceMonitor")
    assert monitor["metadata"]["labels"]["release"] == "prometheus" and at(monitor, "spec.endpoints.0.port") == "admin"
    wanted = at(monitor, "spec.selector.matchLabels").items()
    assert [at(service, "metadata.name") for service in documents if service["kind"] == "Service"
            and wanted <= at(service, "metadata.labels").items()] == ["emporix-gateway-admin"]
    assert at(the(made({**SINGLE, "podMonitor": {"enabled": True}}), "PodMonitor"),
              "spec.podMetricsEndpoints.0.port") == "admin"


def alerts_and_dashboards_are_taken_as_they_are_where_there_are_any(made):
    values = {**SINGLE, "prometheusRule": {"enabled": True}, "dashboards": {"enabled": True}}
    alerts = "groups: [{name: a, rules: [{alert: b, expr: c, annotations: {summary: '{{ $labels.d }}'}}]}]"
    with with_files(**{"alerts.yaml": alerts, "dashboards/overview.json": '{"title": "{{ e }}"}'}) as chart:
        documents = made(values, chart=chart)
    rule = at(the(documents, "PrometheusRule"), "spec.groups.0.rules.0")
    assert rule == {"alert": "b", "expr": "c", "annotations": {"summary": "{{ $labels.d }}"}}
    dashboards = the(documents, "ConfigMap", "emporix-gateway-dashboards")
    assert dashboards["data"] == {"overview.json": '{"title": "{{ e }}"}'}
    assert dashboards["metadata"]["labels"]["grafana_dashboard"] == "1"
    with with_files() as chart:
        assert kinds(made(values, chart=chart)) == kinds(made(SINGLE))


def every_alert_leads_to_its_runbook_where_those_are_published(made):
    for base, told in [({}, "docs/runbooks/"), *[({"runbookBaseUrl": f"https://wiki.example.com/a%20b{slash}"},
                                                  "https://wiki.example.com/a%20b/") for slash in ("", "/")]]:
        rules = [rule for group in at(the(made({**SINGLE, "prometheusRule": {"enabled": True, **base}}), "PrometheusRule"),
                                      "spec.groups") for rule in group["rules"] if "alert" in rule]
        assert rules
        for url in [rule["annotations"]["runbook_url"] for rule in rules]:
            assert url.startswith(told) and (ROOT / "docs/runbooks" / url.removeprefix(told)).is_file(), url
    assert "runbookBaseUrl" in refusal({**SINGLE, "prometheusRule": {"runbookBaseUrl": "two words"}})


def names_stay_short_and_apart(made):
    deployment = [at(document, "metadata.name") for document in made(SINGLE, release="shop")
                  if document["kind"] == "Deployment"]
    assert deployment == ["shop-emporix-gateway"]
    names = [at(document, "metadata.name") for document in made({**SINGLE, "fullnameOverride": "x" * 80})]
    assert max(map(len, names)) <= 63


def a_sidecar_brings_its_configuration_and_nothing_else(made):
    on = {"enabled": True}
    assert kinds(made({**SINGLE, "mode": "sidecar", "networkPolicy": on, "serviceMonitor": on})) == ["ConfigMap"]


def a_sidecar_stands_in_another_charts_pod(made):
    with storefront() as chart:
        documents = made({}, chart=chart, release="shop")
    assert kinds(documents) == ["ConfigMap", "Deployment"]
    pod = at(the(documents, "Deployment", "storefront"), "spec.template.spec")
    sidecar = at(pod, "initContainers.0")
    assert sidecar["name"] == "gateway" and sidecar["restartPolicy"] == "Always"
    assert pod["terminationGracePeriodSeconds"] == 45
    volumes = {volume["name"]: volume for volume in pod["volumes"]}
    assert {mount["name"] for mount in sidecar["volumeMounts"]} == set(volumes)
    named = at(volumes["gateway-config"], "configMap.name")
    assert the(documents, "ConfigMap", named)["data"]["config.yaml"]


def a_sidecars_monitor_is_told_whose_pods_they_are(made):
    values = {**SINGLE, "mode": "sidecar", "podMonitor": {"enabled": True}}
    assert "podMonitor.matchLabels" in refusal(values)
    values["podMonitor"]["matchLabels"] = {"app": "storefront"}
    assert at(the(made(values), "PodMonitor"), "spec.selector.matchLabels") == {"app": "storefront"}


ALL = [test for name, test in list(globals().items())
       if callable(test) and getattr(test, "__module__", "") == __name__ and test.__code__.co_varnames[:1] == ("made",)]
