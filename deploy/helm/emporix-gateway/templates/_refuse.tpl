{{/* What the schema cannot say: values that contradict each other, and secrets where anybody could read them. */}}

{{- define "emporix-gateway.refuse" -}}
{{- $config := .Values.config -}}

{{- $replicas := ternary .Values.autoscaling.maxReplicas .Values.replicaCount .Values.autoscaling.enabled | int -}}
{{- if and (gt $replicas 1) (ne (include "emporix-gateway.storeKind" .) "redis") -}}
{{- fail (printf "%d replicas need config.store.kind: redis. In memory each has sessions of its own." $replicas) -}}
{{- end -}}

{{- if and .Values.autoscaling.enabled (gt (int .Values.autoscaling.minReplicas) (int .Values.autoscaling.maxReplicas)) -}}
{{- fail "autoscaling.minReplicas is over autoscaling.maxReplicas." -}}
{{- end -}}

{{- range $key := list "listen.public" "listen.tls" "admin.listen" "forward_auth" "internal.listen" -}}
{{- if include "emporix-gateway.at" (dict "config" $config "key" $key) -}}
{{- fail (printf "config.%s is the chart's: set ports, tls.existingSecret, forwardAuth or internal instead." $key) -}}
{{- end -}}
{{- end -}}

{{- $secrets := list "admin.token" "internal.token" "store.redis.password" "store.redis.sentinel.password" -}}
{{- range $tenant, $section := $config.tenants -}}
{{- $secrets = concat $secrets (list (printf "tenants.%s.saas_token.secret" $tenant)) -}}
{{- $secrets = concat $secrets (list (printf "tenants.%s.webhook.secret" $tenant)) -}}
{{- range $service, $_ := dig "services" dict $section -}}
{{- $secrets = append $secrets (printf "tenants.%s.services.%s.client_secret" $tenant $service) -}}
{{- end -}}
{{- end -}}
{{/* Addresses are secrets where they name a user. */}}
{{- range $key := list "store.redis.url" "traces.otlp_endpoint" -}}
{{- if contains "@" (include "emporix-gateway.at" (dict "config" $config "key" $key)) -}}
{{- $secrets = append $secrets $key -}}
{{- end -}}
{{- end -}}
{{- range $key := $secrets -}}
{{- if include "emporix-gateway.at" (dict "config" $config "key" $key) -}}
{{- include "emporix-gateway.readable" $key -}}
{{- end -}}
{{- end -}}
{{- $keys := include "emporix-gateway.at" (dict "config" $config "key" "store.seal.keys") | default "[]" | fromJsonArray -}}
{{- range $index, $key := $keys -}}
{{- if $key.secret -}}
{{- include "emporix-gateway.readable" (printf "store.seal.keys.%d.secret" $index) -}}
{{- end -}}
{{- end -}}

{{/* The gateway takes no user in these, and has no file for them. */}}
{{- $bare := list "upstream.base_url" "store.redis.nodes" -}}
{{- range $tenant, $_ := $config.tenants -}}
{{- $bare = append $bare (printf "tenants.%s.saas_token.jwks_url" $tenant) -}}
{{- end -}}
{{- range $key := $bare -}}
{{- if contains "@" (include "emporix-gateway.at" (dict "config" $config "key" $key)) -}}
{{- fail (printf "config.%s names a user, who would be readable in a ConfigMap. The gateway takes none there." $key) -}}
{{- end -}}
{{- end -}}

{{- $drain := dig "listen" "drain_timeout" "30s" $config | nospace -}}
{{- $start := toDate "2006-01-02" "2026-01-01" -}}
{{- $drained := sub (mustDateModify $drain $start | unixEpoch | int64) (unixEpoch $start | int64) -}}
{{/* Once drained, a second for the listeners and two for the work behind requests. */}}
{{- $needed := add $drained .Values.preStopSeconds 3 | int -}}
{{- if le (int .Values.terminationGracePeriodSeconds) $needed -}}
{{- $why := "preStopSeconds, config.listen.drain_timeout and 3 s to end. A replica would be killed amid requests." -}}
{{- fail (printf "terminationGracePeriodSeconds must be over %d, %s" $needed $why) -}}
{{- end -}}

{{- if and .Values.forwardAuth.enabled (ne .Values.service.type "ClusterIP") -}}
{{- fail "forwardAuth needs service.type: ClusterIP. Its port must not be everybody's." -}}
{{- end -}}

{{- if and .Values.service.externalTrafficPolicy (eq .Values.service.type "ClusterIP") -}}
{{- fail "service.externalTrafficPolicy needs service.type: LoadBalancer or NodePort." -}}
{{- end -}}

{{- if and .Values.forwardAuth.enabled (eq (join "," .Values.service.ipFamilies) "IPv6") -}}
{{- if not (contains ":" (join "," .Values.forwardAuth.trustedPeers)) -}}
{{- fail "forwardAuth.trustedPeers needs a network of IPv6: in a cluster of IPv6 alone no other peer comes." -}}
{{- end -}}
{{- end -}}

{{- $backend := .Values.httpRoute.backendTls -}}
{{- if and (eq .Values.mode "deployment") .Values.httpRoute.enabled $backend.enabled -}}
{{- if ne (empty .Values.tls.existingSecret) (empty $backend.hostname) -}}
{{- $who := "it is who the certificate names. Where another policy says it, set httpRoute.backendTls.enabled: false." -}}
{{- fail (printf "httpRoute.backendTls.hostname is needed with tls.existingSecret, and only there: %s" $who) -}}
{{- end -}}
{{- end -}}

{{- if and (eq .Values.mode "sidecar") .Values.podMonitor.enabled (not .Values.podMonitor.matchLabels) -}}
{{- fail "podMonitor.matchLabels: in sidecar mode the pods are another chart's; name their labels." -}}
{{- end -}}
{{- end }}

{{/* What stands at a dotted key of the configuration; empty when nothing does. */}}
{{- define "emporix-gateway.at" -}}
{{- $place := .config -}}
{{- range splitList "." .key -}}
{{- $place = ternary $place dict (kindIs "map" $place) -}}
{{- $place = get $place . -}}
{{- end -}}
{{- if $place }}{{ toJson $place }}{{ end -}}
{{- end }}

{{- define "emporix-gateway.storeKind" -}}
{{ include "emporix-gateway.at" (dict "config" .Values.config "key" "store.kind") | trimAll "\"" | default "memory" }}
{{- end }}

{{- define "emporix-gateway.readable" -}}
{{- $way := "put it into existingSecret, and name its file by the same key and _file." -}}
{{- fail (printf "config.%s would be readable in a ConfigMap: %s" . $way) -}}
{{- end }}
