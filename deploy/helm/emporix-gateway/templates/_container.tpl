{{/* The container and its volumes: the Deployment's, and under the name `sidecar` another chart's. */}}

{{- define "emporix-gateway.sidecar" -}}
- name: gateway
  image: {{ include "emporix-gateway.image" . | quote }}
  imagePullPolicy: {{ .Values.image.pullPolicy }}
  args: [serve, --config, /etc/emporix-gateway/config.yaml]
{{- with .Values.extraEnv }}
  env:
    {{- toYaml . | nindent 4 }}
{{- end }}
  ports:
    - name: public
      containerPort: {{ .Values.ports.public }}
    - name: admin
      containerPort: {{ .Values.ports.admin }}
    {{- if .Values.forwardAuth.enabled }}
    - name: forward-auth
      containerPort: {{ .Values.forwardAuth.port }}
    {{- end }}
    {{- if .Values.internal.enabled }}
    - name: internal
      containerPort: {{ .Values.internal.port }}
    {{- end }}
{{- range $probe, $path := dict "startup" "/startupz" "liveness" "/livez" "readiness" "/readyz" }}
  {{ $probe }}Probe:
    httpGet:
      path: {{ $path }}
      port: admin
    {{- with index $.Values.probes $probe }}
    {{- toYaml . | nindent 4 }}
    {{- end }}
{{- end }}
{{- if .Values.preStopSeconds }}
  lifecycle:
    preStop:
      sleep:
        seconds: {{ .Values.preStopSeconds }}
{{- end }}
{{- with .Values.resources }}
  resources:
    {{- toYaml . | nindent 4 }}
{{- end }}
{{- with .Values.securityContext }}
  securityContext:
    {{- toYaml . | nindent 4 }}
{{- end }}
  volumeMounts:
    - name: gateway-config
      mountPath: /etc/emporix-gateway
      readOnly: true
    {{- if .Values.existingSecret }}
    - name: gateway-secrets
      mountPath: /run/secrets/gateway
      readOnly: true
    {{- end }}
    {{- if .Values.tls.existingSecret }}
    - name: gateway-tls
      mountPath: /run/secrets/tls
      readOnly: true
    {{- end }}
    {{- if .Values.internal.tls.existingSecret }}
    - name: gateway-internal-tls
      mountPath: /run/secrets/internal-tls
      readOnly: true
    {{- end }}
    {{- with .Values.extraVolumeMounts }}
    {{- toYaml . | nindent 4 }}
    {{- end }}
{{- end }}

{{- define "emporix-gateway.sidecarVolumes" -}}
- name: gateway-config
  configMap:
    name: {{ include "emporix-gateway.fullname" . }}
{{- with .Values.existingSecret }}
- name: gateway-secrets
  secret:
    secretName: {{ . }}
{{- end }}
{{- with .Values.tls.existingSecret }}
- name: gateway-tls
  secret:
    secretName: {{ . }}
{{- end }}
{{- with .Values.internal.tls.existingSecret }}
- name: gateway-internal-tls
  secret:
    secretName: {{ . }}
{{- end }}
{{- with .Values.extraVolumes }}
{{ toYaml . }}
{{- end }}
{{- end }}
