{{/* Names, labels, the image, and the configuration as it takes effect. */}}

{{- define "emporix-gateway.name" -}}
{{ .Values.nameOverride | default "emporix-gateway" | trunc 63 | trimSuffix "-" }}
{{- end }}

{{- define "emporix-gateway.fullname" -}}
{{- $name := include "emporix-gateway.name" . -}}
{{- $full := ternary .Release.Name (printf "%s-%s" .Release.Name $name) (contains $name .Release.Name) -}}
{{/* Room for the longest suffix, -dashboards. */}}
{{- .Values.fullnameOverride | default $full | trunc 52 | trimSuffix "-" -}}
{{- end }}

{{- define "emporix-gateway.selectorLabels" -}}
app.kubernetes.io/name: {{ include "emporix-gateway.name" . }}
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end }}

{{- define "emporix-gateway.labels" -}}
{{ include "emporix-gateway.selectorLabels" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_" }}
{{- end }}

{{- define "emporix-gateway.serviceAccount" -}}
{{- $own := ternary (include "emporix-gateway.fullname" .) "default" .Values.serviceAccount.create -}}
{{ .Values.serviceAccount.name | default $own }}
{{- end }}

{{- define "emporix-gateway.image" -}}
{{- with .Values.image -}}
{{ .repository }}{{ if .digest }}@{{ .digest }}{{ else }}:{{ .tag | default $.Chart.AppVersion }}{{ end }}
{{- end -}}
{{- end }}

{{- define "emporix-gateway.servicePort" -}}
{{ .Values.service.port | default (ternary 443 80 (ne .Values.tls.existingSecret "")) }}
{{- end }}

{{- define "emporix-gateway.config" -}}
{{/* `[::]` takes IPv4 too. */}}
{{- $has6 := or (has "IPv6" .Values.service.ipFamilies) (hasSuffix "DualStack" .Values.service.ipFamilyPolicy) -}}
{{- $any := ternary "[::]" "0.0.0.0" $has6 -}}
{{- $listen := dict "public" (printf "%s:%d" $any (int .Values.ports.public)) -}}
{{- if .Values.tls.existingSecret -}}
{{- $_ := set $listen "tls" (include "emporix-gateway.certificate" "/run/secrets/tls" | fromYaml) -}}
{{- end -}}
{{- $own := dict "listen" $listen "admin" (dict "listen" (printf "%s:%d" $any (int .Values.ports.admin))) -}}
{{- with .Values.forwardAuth -}}
{{- if .enabled -}}
{{- $address := printf "%s:%d" $any (int .port) -}}
{{- $_ := set $own "forward_auth" (dict "listen" $address "trusted_peers" .trustedPeers "visitors" .visitors) -}}
{{- end -}}
{{- end -}}
{{- with .Values.internal -}}
{{- if .enabled -}}
{{- $internal := dict "listen" (printf "%s:%d" $any (int .port)) -}}
{{- if .tls.existingSecret -}}
{{- $_ := set $internal "tls" (include "emporix-gateway.certificate" "/run/secrets/internal-tls" | fromYaml) -}}
{{- end -}}
{{- $_ := set $own "internal" $internal -}}
{{- end -}}
{{- end -}}
{{- mustMergeOverwrite (deepCopy .Values.config) $own | toYaml -}}
{{- end }}

{{/* What every Service says of addresses. */}}
{{- define "emporix-gateway.families" -}}
{{- with .Values.service.ipFamilyPolicy }}
ipFamilyPolicy: {{ . }}
{{- end }}
{{- with .Values.service.ipFamilies }}
ipFamilies:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- end }}

{{/* The files of a mounted Secret of type kubernetes.io/tls, as a `tls` section names them. */}}
{{- define "emporix-gateway.certificate" -}}
certificate_file: {{ . }}/tls.crt
key_file: {{ . }}/tls.key
{{- end }}
