{{/* The container of the gateway, standalone or as a sidecar. */}}
{{- define "timbr-gateway.container" -}}
name: timbr-gateway
image: {{ include "timbr-gateway.image" . }}
imagePullPolicy: {{ .Values.image.pullPolicy }}
args:
  - serve
  - --config=/etc/timbr-gateway/config/gateway.yaml
  {{- with .Values.extraArgs }}
  {{- toYaml . | nindent 2 }}
  {{- end }}
{{- with .Values.extraEnv }}
env:
  {{- tpl (toYaml .) $ | nindent 2 }}
{{- end }}
{{- with .Values.extraEnvFrom }}
envFrom:
  {{- tpl (toYaml .) $ | nindent 2 }}
{{- end }}
ports:
  {{- include "timbr-gateway.containerPorts" . | trim | nindent 2 }}
startupProbe:
  {{- include "timbr-gateway.probe" (list "/startupz" .Values.startupProbe .) | nindent 2 }}
readinessProbe:
  {{- include "timbr-gateway.probe" (list "/readyz" .Values.readinessProbe .) | nindent 2 }}
livenessProbe:
  {{- include "timbr-gateway.probe" (list "/livez" .Values.livenessProbe .) | nindent 2 }}
{{- with .Values.lifecycle }}
lifecycle:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .Values.resources }}
resources:
  {{- toYaml . | nindent 2 }}
{{- end }}
securityContext:
  {{- toYaml .Values.securityContext | nindent 2 }}
volumeMounts:
  {{- include "timbr-gateway.volumeMounts" . | nindent 2 }}
  {{- if eq (include "timbr-gateway.keepsFile" .) "true" }}
  - name: tokens
    mountPath: /var/lib/timbr-gateway
  {{- end }}
  {{- with .Values.extraVolumeMounts }}
  {{- tpl (toYaml .) $ | nindent 2 }}
  {{- end }}
{{- end }}

{{- define "timbr-gateway.containerPorts" -}}
{{- if .Values.listeners.https.enabled -}}
- name: https
  containerPort: {{ .Values.listeners.https.port }}
  protocol: TCP
{{- end }}
{{- /* In a sidecar, plain HTTP is on the loopback address and needs no container port. */}}
{{- if and .Values.listeners.http.enabled (ne .Values.mode "sidecar") }}
- name: http
  containerPort: {{ .Values.listeners.http.port }}
  protocol: TCP
{{- end }}
{{ printf "- name: %s" (include "timbr-gateway.adminPort" .) }}
  containerPort: {{ .Values.listeners.admin.port }}
  protocol: TCP
{{- end }}

{{/* The name of the admin port. Port names are unique in a pod, and the backend can have a port `admin`. */}}
{{- define "timbr-gateway.adminPort" -}}
{{- ternary "gateway-admin" "admin" (eq .Values.mode "sidecar") -}}
{{- end }}

{{- define "timbr-gateway.probe" -}}
{{- $root := index . 2 -}}
httpGet:
  path: {{ index . 0 }}
  port: {{ include "timbr-gateway.adminPort" $root }}
{{- range $key, $value := index . 1 }}
{{ $key }}: {{ $value }}
{{- end }}
{{- end }}

{{/*
The gateway as a native sidecar (Kubernetes 1.29): an init container that keeps running. The kubelet starts the following
containers after its startup probe succeeds, and stops it after all other containers.

For a chart that has this one as a dependency, with the name or alias `timbr-gateway` and `mode: sidecar`:

  initContainers:
    {{- include "timbr-gateway.sidecar" (index .Subcharts "timbr-gateway") | nindent 8 }}
  volumes:
    {{- include "timbr-gateway.sidecar.volumes" (index .Subcharts "timbr-gateway") | nindent 8 }}
*/}}
{{- define "timbr-gateway.sidecar" -}}
- restartPolicy: Always
  {{- include "timbr-gateway.container" . | nindent 2 }}
{{- end }}

{{- define "timbr-gateway.sidecar.volumes" -}}
{{- include "timbr-gateway.volumes" . }}
{{- with .Values.extraVolumes }}
{{ tpl (toYaml .) $ }}
{{- end }}
{{- end }}

{{/* Annotations for the pod, which is replaced when the configuration changes. */}}
{{- define "timbr-gateway.sidecar.annotations" -}}
checksum/gateway-config: {{ include "timbr-gateway.configChecksum" . }}
{{- end }}
